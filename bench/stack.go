package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	stackConns = 2000 // connections that are open at the same time
	stackDials = 32   // dials that run at the same time
)

// stackMeasures returns the measures with many connections between two stacks.
func stackMeasures() []measure {
	return []measure{
		{name: "stack/2000", unit: "Gbit/s", run: runCrowd},
		{name: "stack/2000-memory", unit: "MiB resident", lower: true, run: runCrowdMemory, rounds: 2},
		{name: "stack/idle", unit: "bytes", lower: true, run: runIdleMemory},
	}
}

// conns is the number of connections of the family stack.
func (e *effort) conns() int { return min(stackConns, e.Peers) }

// openMany opens n connections, up to stackDials of them at the same time.
func (s *stacks) openMany(st *stage, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, n)
	errs := make([]error, n)
	var next atomic.Int64
	var done sync.WaitGroup
	for range min(stackDials, n) {
		done.Go(func() {
			for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
				conns[i], errs[i] = s.open()
			}
		})
	}
	done.Wait()
	for i, c := range conns {
		if c != nil {
			st.atClose(func() { c.Close() })
		} else if errs[i] != nil {
			errs[0] = fmt.Errorf("connection %d of %d: %w", i+1, n, errs[i])
		}
	}
	return conns, errs[0]
}

// A crowdRun is a bulk transfer over many connections that is in progress.
type crowdRun struct {
	total  atomic.Int64 // bytes that the readers have received
	failed atomic.Pointer[error]
	first  float64 // bytes in the first second after the writers began
}

// Write counts the bytes that io.Copy reads from a connection. A crowdRun has no ReadFrom, so io.Copy uses the connection's
// WriteTo if it exists, and otherwise a buffer.
func (r *crowdRun) Write(b []byte) (int, error) {
	r.total.Add(int64(len(b)))
	return len(b), nil
}

// startCrowd joins two stacks, opens all connections, and lets all writers begin at once. It returns after the first second.
func startCrowd(st *stage) (*crowdRun, error) {
	s, err := joinByTunnel(st)
	if err != nil {
		return nil, err
	}
	r := &crowdRun{}
	s.serve(func(c net.Conn) { _, _ = io.Copy(r, c) })
	conns, err := s.openMany(st, st.conns())
	if err != nil {
		return nil, err
	}
	b := make([]byte, chunk) // all writers can share b, because none changes it
	for _, c := range conns {
		go func() {
			for {
				if _, err := c.Write(b); err != nil {
					r.failed.Store(&err)
					return
				}
			}
		}()
	}
	time.Sleep(time.Second)
	r.first = float64(r.total.Load())
	return r, nil
}

// runCrowd measures the throughput of many connections together, all of which send in the same direction.
func runCrowd(st *stage) (sample, error) {
	r, err := startCrowd(st)
	if err != nil {
		return sample{}, err
	}
	c, err := count(&r.total, st.Warm, st.Span)
	if err != nil {
		return sample{}, err
	}
	if err := r.failed.Load(); err != nil {
		return sample{}, *err
	}
	first := aside{Name: "in the first second", Unit: "Gbit", Value: 8 * r.first / 1e9}
	return c.throughput(append([]aside{first}, st.calls()...)), nil
}

// runCrowdMemory measures the resident memory of this process, which contains both ends, while all connections carry data. It
// begins to measure after about ten seconds, when the connections' buffers have filled.
func runCrowdMemory(st *stage) (sample, error) {
	r, err := startCrowd(st)
	if err != nil {
		return sample{}, err
	}
	time.Sleep(st.Settle / 3)
	weighed := meanResident(st)
	c, err := count(&r.total, st.Warm, st.Span)
	if err != nil {
		return sample{}, err
	}
	w := <-weighed
	return sample{w.mean / (1 << 20), []aside{{Name: "meanwhile", Unit: "Gbit/s", Value: 8 * c.n / 1e9 / c.took.Seconds()}}}, w.err
}

var errNotAccepted = errors.New("the listener did not accept all connections")

// runIdleMemory measures the bytes of heap and stacks that one end of an idle connection uses. Each connection has carried one byte
// in each direction. During the measurement, no goroutine reads or writes these connections.
func runIdleMemory(st *stage) (sample, error) {
	s, err := joinByTunnel(st)
	if err != nil {
		return sample{}, err
	}
	before, after, n, err := s.weighIdle(st, st.conns())
	ends := 2 * n
	return sample{(after.heap + after.stack - before.heap - before.stack) / ends, []aside{
		{Name: "resident growth", Unit: "bytes", Value: (after.resident - before.resident) / ends},
		{Name: "goroutines", Value: float64(after.goroutines-before.goroutines) / ends},
	}}, err
}

// weighIdle opens conns connections. The result before is the footprint when only the first connection is open, whose dial has also
// established the tunnel's session. The result after is the footprint when all connections are open. The result n is the number of
// connections that weighIdle opened in between. Each of these has carried one byte in each direction, and no goroutine reads it.
func (s *stacks) weighIdle(st *stage, conns int) (before, after footprint, n float64, err error) {
	kept := s.keep(conns)
	if _, err := s.openMany(st, 1); err != nil {
		return before, after, 1, err
	}
	if before, err = weigh(); err != nil {
		return before, after, 1, err
	}
	opened, err := s.openMany(st, conns-1)
	if err != nil {
		return before, after, 1, err
	}
	for _, c := range opened {
		if err := ping(c); err != nil {
			return before, after, 1, err
		}
	}
	for range opened {
		select {
		case c := <-kept:
			st.atClose(func() { c.Close() })
		case <-time.After(patience):
			return before, after, 1, errNotAccepted
		}
	}
	after, err = weigh()
	return before, after, float64(len(opened)), err
}

// keep accepts connections. On each one, it sends the first byte back, and then puts the connection into the channel that keep
// returns, which has space for n connections. After that, no goroutine of keep uses the connection.
func (s *stacks) keep(n int) <-chan net.Conn {
	kept := make(chan net.Conn, n)
	go func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			go func() { // this goroutine ends before the measurement, so its stack is not measured
				var b [1]byte
				if _, err := c.Read(b[:]); err == nil {
					_, _ = c.Write(b[:])
				}
				kept <- c
			}()
		}
	}()
	return kept
}
