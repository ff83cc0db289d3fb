//go:build !unix

package main

import (
	"os"
	"os/exec"
)

// reloadSignals make wgproxy read its file again. This system has none.
var reloadSignals []os.Signal

func detach(*exec.Cmd) {}
