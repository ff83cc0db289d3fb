// Package stackroom makes the stack of a goroutine large in one step.
package stackroom

// Take enlarges the stack of the calling goroutine for the calls through gVisor and a device, which need more than 8 KiB. A new
// goroutine usually has a stack of 2 KiB, which would have to grow three times during these calls. Each time, the runtime copies
// all frames and adjusts the pointers in them. The more frames there are, the longer this copy takes, so call Take early. The
// garbage collector shrinks the stack of a goroutine that does not use it. If the stack is large enough already, Take only clears 8
// KiB.
//
//go:noinline
func Take() byte {
	var room [8 << 10]byte
	return room[place]
}

// place is a variable, so that the compiler does not remove the array of Take.
var place int
