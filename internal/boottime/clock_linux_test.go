package boottime

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func bootTime(t *testing.T) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// TestClockIsBootTime reads CLOCK_BOOTTIME before and after Now, and checks that Now returns a time between the two. Now may lag
// by the time between askBootTime's reads of CLOCK_BOOTTIME and of the monotonic clock.
func TestClockIsBootTime(t *testing.T) {
	const lag = 10 * time.Millisecond
	for range 1000 {
		before := bootTime(t)
		now := Clock{}.Now()
		if after := bootTime(t); now < before-lag || now > after {
			t.Fatalf("Now returned %v, want a time between %v and %v", now, before, after)
		}
	}
}

// TestClockAfterResume checks when Now counts a sleep of an hour. If the wall clock has jumped, Now counts the sleep at once.
// Otherwise this takes up to a second.
func TestClockAfterResume(t *testing.T) {
	const nap = int64(time.Hour)
	for _, c := range []struct {
		name   string
		forget func()
	}{
		{"the calendar moved", func() { asleep.apart.Add(-nap) }},
		{"a second passed", func() { asleep.until.Store(0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := Clock{}.Now()
			asleep.offset.Add(-nap)
			c.forget()
			if after := (Clock{}).Now(); after < before || after > before+time.Minute {
				t.Errorf("Now returned %v, %v after the time before the sleep; want 0 to 1 min", after, after-before)
			}
		})
	}
}

func TestClockNeverGoesBack(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := time.Duration(0)
			for i := range 20000 {
				if i%100 == 0 {
					asleep.until.Store(0) // Now asks the kernel again
				}
				now := Clock{}.Now()
				if now < last {
					t.Errorf("the clock went back by %v", last-now)
					return
				}
				last = now
			}
		})
	}
	wg.Wait()
}

func BenchmarkClock(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Clock{}.Now()
	}
}
