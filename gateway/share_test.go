package gateway

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestShare checks how TCP and UDP of one peer share a rate. Bulk TCP must cause no loss of datagrams as long as UDP stays
// below its share of the rate. A flood of datagrams must get at most this share, or the whole rate while TCP has nothing
// to send. TCP and UDP together must not exceed the rate.
func TestShare(t *testing.T) {
	const (
		rate   = 1_000_000 // bytes per second
		bulk   = 64 << 10  // bytes per read of TCP
		played = 20 * time.Second
	)
	all := rate * played.Seconds()
	for _, c := range []struct {
		name        string
		conns       int           // TCP connections that always have something to send
		size        int           // bytes of a datagram
		every       time.Duration // the time between two datagrams; 0 means no datagrams
		tcp, udp    [2]float64    // the least and the most that may pass, as fractions of the rate
		nothingLost bool
	}{
		{"TCP alone", 8, 0, 0, [2]float64{0.97, 1.03}, [2]float64{}, false},
		{"calls beside TCP", 8, 200, 5 * time.Millisecond, [2]float64{0.93, 1}, [2]float64{0.039, 0.041}, true},
		{"video beside TCP", 1, 1200, 3 * time.Millisecond, [2]float64{0.57, 0.66}, [2]float64{0.39, 0.41}, true},
		{"flood beside TCP", 8, 1200, 500 * time.Microsecond, [2]float64{0.45, 0.55}, [2]float64{0.45, 0.55}, false},
		{"flood alone", 0, 1200, 500 * time.Microsecond, [2]float64{}, [2]float64{0.97, 1.03}, false},
		{"large datagrams alone", 0, 60_000, time.Millisecond, [2]float64{}, [2]float64{0.97, 1.1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := new(account)
				a.limits.Store(&Limits{ToPeer: rate})
				ctx, cancel := context.WithTimeout(t.Context(), played)
				defer cancel()
				var tcp [8]int
				for i := range c.conns {
					go func() {
						for a.pass(ctx, &a.toPeer, bulk) == nil {
							tcp[i] += bulk
						}
					}()
				}
				udp, lost := 0, 0
				for end := time.Now().Add(played); c.every > 0 && time.Now().Before(end); time.Sleep(c.every) {
					if a.admit(&a.toPeer, c.size) {
						udp += c.size
					} else {
						lost++
					}
				}
				<-ctx.Done()
				synctest.Wait()
				sum := 0
				for i, n := range tcp[:c.conns] {
					if sum += n; n < tcp[0]*8/10 {
						t.Errorf("connection %d sent %d bytes, want at least 4/5 of the %d of the first", i, n, tcp[0])
					}
				}
				for name, part := range map[string]struct {
					bytes int
					want  [2]float64
				}{"TCP": {sum, c.tcp}, "UDP": {udp, c.udp}, "both": {sum + udp, [2]float64{0.93, 1.1}}} {
					if got := float64(part.bytes) / all; got < part.want[0] || got > part.want[1] {
						t.Errorf("%s got the fraction %.3f of the rate, want one in %v", name, got, part.want)
					}
				}
				if c.nothingLost && lost > 0 {
					t.Errorf("%d datagrams were dropped, although UDP stayed below its share", lost)
				}
			})
		})
	}
}
