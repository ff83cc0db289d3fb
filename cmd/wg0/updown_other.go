//go:build unix && !linux

package main

import (
	"context"
	"fmt"
	"runtime"
)

func errLinuxAlone(what string) error {
	return fmt.Errorf("`wg0 %s` does not run on %s, only on Linux; use WG_QUICK_USERSPACE_IMPLEMENTATION=wg0 wg-quick %s", what, runtime.GOOS, what)
}

// A tunnelFile stands in for the type of this name in the build for Linux. Only Linux has `wg0 up` and `wg0 down`: here, readTarget
// always fails, so no tunnelFile is ever made.
type tunnelFile struct{}

func readTarget(string) (*tunnelFile, error) { return nil, errLinuxAlone("up") }

func (*tunnelFile) name() string                          { return "" }
func (*tunnelFile) prepare(context.Context) error         { return nil }
func (*tunnelFile) up(context.Context, *daemon) error     { return nil }
func (*tunnelFile) follow(context.Context)                {}
func (*tunnelFile) reload(context.Context, *daemon) error { return nil }
func (*tunnelFile) preDown(*daemon)                       {}
func (*tunnelFile) cleanUp(context.Context)               {}
func (*tunnelFile) postDown()                             {}
func (*tunnelFile) undo(*daemon)                          {}
func takeDown(string) error                               { return errLinuxAlone("down") }
