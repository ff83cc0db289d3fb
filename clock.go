package wireguard

import "time"

// A Clock tells a device the time. Its methods are called from many goroutines, also while the device holds locks, so
// they must not call the device.
type Clock interface {
	// Now returns the time since an arbitrary start. It never goes back, and it goes on while the machine sleeps:
	// otherwise keys would be used for too long after a sleep.
	Now() time.Duration
	// Wall returns the wall-clock time, which may jump. Initiations, events and PeerStatus contain it.
	Wall() time.Time
}
