package tun

// anyName is a name that lets the system choose the interface.
const anyName = "tun"
