package follow

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestMerge checks that merge reports one change for a burst of signals, and one change every 5 s for signals that never stop.
func TestMerge(t *testing.T) {
	const ms = time.Millisecond
	every := func(gap, until time.Duration) (at []time.Duration) {
		for when := time.Duration(0); when < until; when += gap {
			at = append(at, when)
		}
		return at
	}
	for _, c := range []struct {
		name          string
		signals, want []time.Duration
	}{
		{"one", every(ms, ms), []time.Duration{500 * ms}},
		{"a burst of 20", every(50*ms, 1000*ms), []time.Duration{1450 * ms}},
		{"two", []time.Duration{0, 600 * ms}, []time.Duration{500 * ms, 1100 * ms}},
		{"without an end", every(400*ms, 12000*ms), []time.Duration{5000 * ms, 10200 * ms, 12100 * ms}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				signals, start := make(chan struct{}), time.Now()
				var got []time.Duration
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					merge(ctx, signals, func() { got = append(got, time.Since(start)) })
				}()
				for _, at := range c.signals {
					time.Sleep(at - time.Since(start))
					signals <- struct{}{}
				}
				time.Sleep(time.Minute)
				cancel()
				<-ended
				if !slices.Equal(got, c.want) {
					t.Errorf("merge reported changes at %v, want %v", got, c.want)
				}
			})
		})
	}
}

// TestMergeEnds checks that merge reports no change when the context ends, even during a burst.
func TestMergeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		signals, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			merge(ctx, signals, func() { t.Error("merge reported a change after its context had ended") })
		}()
		signals <- struct{}{}
		cancel()
		<-ended
	})
}
