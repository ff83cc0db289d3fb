package wireguard_test

import (
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// TestClockSetBack checks that if a device's wall clock is set back, its peer still accepts the device's initiations, because
// each timestamp is larger than the one before: "TAI64N … max(now, last + 1)" (row 12 of the list decisions in coverage_test.go).
func TestClockSetBack(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		for _, step := range []time.Duration{0, -time.Hour, 0, 2 * time.Hour, -24 * time.Hour} {
			a.clock.stepWall(step)
			w.connect(a, b)
			a.Down()
			if err := a.Up(); err != nil {
				w.Fatal(err)
			}
			w.advance(time.Second)
		}
		b.wantDrops(wireguard.DropOldTimestamp, 0, "each timestamp is greater than the last")
	})
}

// When the wall clock is changed, no timer moves: the ages of sessions, the keepalives and the retries depend only on the
// monotonic clock.
func TestClockStepLeavesTimersAlone(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.clock.stepWall(-time.Hour)
		b.clock.stepWall(time.Hour)
		a.wantSession(b, true, "the age of the session has not changed")
		a.send(b, "x")
		w.want("a data", "a still has the session")
		w.wantAt(10*time.Second, "b keepalive", "b sends the passive keepalive after exactly 10 s")
		if age := a.status(b).SessionAge; age != 10*time.Second {
			w.Fatalf("the session's age is %v, want 10 s", age)
		}
	})
}

// Two devices whose wall clocks are an hour apart can make sessions, because a device compares a timestamp only with earlier
// timestamps of the same peer.
func TestCalendarsApart(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.clock.stepWall(-time.Hour)
		w.connect(a, b)
		w.advance(10 * time.Second)
		w.connectAgain(b, a)
		w.advance(10 * time.Second)
		w.connectAgain(a, b)
	})
}
