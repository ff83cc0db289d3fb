// Package stackroom makes the stack of a goroutine large in one step.
package stackroom

// Take makes room on the stack of the calling goroutine for the way through gVisor and a device, which needs more than 8 KiB. A
// new goroutine usually has 2 KiB, and would outgrow its stack three times on that way. Each time, the runtime copies all frames
// and adjusts the pointers in them, which takes longer the deeper the goroutine is. So call Take early. The garbage collector
// takes the room back from a goroutine that does not use it. If there is room already, Take only clears 8 KiB.
//
//go:noinline
func Take() byte {
	var room [8 << 10]byte
	return room[place]
}

// place is a variable, so that the compiler does not leave room out.
var place int
