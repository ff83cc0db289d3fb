//go:build !wasip1

package netstack

import "syscall"

const errnoHostDown = syscall.EHOSTDOWN
