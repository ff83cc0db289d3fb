//go:build unix

package main

import (
	"os"
	"os/exec"
	"syscall"
)

// reloadSignals make wgproxy read its file again.
var reloadSignals = []os.Signal{syscall.SIGHUP}

// detach makes cmd outlive the terminal.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
