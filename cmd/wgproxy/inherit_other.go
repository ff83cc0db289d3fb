//go:build !unix

package main

import (
	"os"
	"os/exec"
)

// reloadSignals make wgproxy read its file again. This system has none.
var reloadSignals []os.Signal

// inherit returns no sockets: only Unix has service managers that pass them.
func inherit() (sockets, error) { return make(sockets), nil }

func detach(*exec.Cmd) {}
