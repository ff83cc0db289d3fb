//go:build !unix

package main

import (
	"fmt"
	"runtime"
)

func run(command) error {
	return fmt.Errorf("this daemon does not run on %s, only on Unix; write your own program with the packages transport/tun, uapi and conf", runtime.GOOS)
}
