//go:build freebsd || windows

package tun

// anyName is a name: these systems choose none.
const anyName = "wg0"
