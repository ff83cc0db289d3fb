package tun

// anyName lets the system choose.
const anyName = "utun"
