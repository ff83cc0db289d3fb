package wireguard

import "time"

// A Clock tells a device the time. The device calls the methods from many goroutines, also while it holds locks, so the methods
// must not call the device.
type Clock interface {
	// Now returns the time since an arbitrary start. This time never goes back. It must also advance while the machine sleeps,
	// because otherwise keys would be used for too long after a sleep.
	Now() time.Duration
	// Wall returns the wall-clock time, which may jump. Initiations, events and PeerStatus contain it.
	Wall() time.Time
}
