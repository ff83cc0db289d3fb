//go:build freebsd || windows

package tun

// anyName is a fixed name, because these systems do not choose one.
const anyName = "wg0"
