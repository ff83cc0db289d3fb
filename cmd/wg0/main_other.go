//go:build !unix

package main

import (
	"fmt"
	"runtime"
)

func run(command) error {
	return fmt.Errorf("this daemon is for Unix, not for %s; a program of your own can use the packages transport/tun, uapi and conf", runtime.GOOS)
}
