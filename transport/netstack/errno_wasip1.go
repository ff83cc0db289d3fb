package netstack

import "syscall"

// errnoHostDown takes the place of EHOSTDOWN, which WASI does not have.
const errnoHostDown = syscall.EHOSTUNREACH
