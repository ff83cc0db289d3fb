package wireguard

import "time"

// A Clock tells a device the time. It is called from many goroutines, also while the device holds locks: it must not
// call the device.
type Clock interface {
	// Now is the time since an arbitrary start. It never goes back, and it goes on while the machine is asleep:
	// an old key must not get younger by a nap.
	Now() time.Duration
	// Wall is the calendar's time, which may jump. It is sent in initiations and shown as the last handshake.
	Wall() time.Time
}
