//go:build !unix

package main

import "os/exec"

// inherit returns no sockets: only Unix has service managers that pass them.
func inherit() (sockets, error) { return make(sockets), nil }

func detach(*exec.Cmd) {}
