package netstack

import "syscall"

// errnoHostDown is the nearest that WASI has.
const errnoHostDown = syscall.EHOSTUNREACH
