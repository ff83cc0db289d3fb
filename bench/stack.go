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
	stackConns = 2000 // connections at once
	stackDials = 32   // dials at the same time
)

// stackMeasures are the names with many connections between two stacks.
func stackMeasures() []measure {
	return []measure{
		{name: "stack/2000", unit: "Gbit/s", run: runCrowd},
		{name: "stack/2000-memory", unit: "MiB resident", lower: true, run: runCrowdMemory, rounds: 2},
		{name: "stack/idle", unit: "bytes", lower: true, run: runIdleMemory},
	}
}

// conns is the number of connections of the family stack.
func (e *effort) conns() int { return min(stackConns, e.Peers) }

// openMany opens n connections, some at the same time.
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

// A crowdRun is a bulk transfer over many connections that has begun.
type crowdRun struct {
	total  atomic.Int64 // bytes that the readers got
	failed atomic.Pointer[error]
	first  float64 // bytes in the first second after the writers began
}

// Write counts what a reader copies to it. A run has no ReadFrom, so io.Copy uses a WriteTo of the connection, or a buffer.
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
	b := make([]byte, chunk) // shared, because nobody changes it
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

// runCrowd measures how much many connections carry together in one direction.
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
	gigabytes := c.n / 1e9
	return sample{8 * gigabytes / c.took.Seconds(), append([]aside{
		{Name: "in the first second", Unit: "Gbit", Value: 8 * r.first / 1e9},
		{Name: "cpu", Unit: "s/GB", Value: c.cpu.Seconds() / gigabytes},
	}, st.calls()...)}, nil
}

// runCrowdMemory measures the resident memory of the whole process, with both ends in it, while all connections carry data.
// Before that it lets their buffers fill, which takes about ten seconds.
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

// runIdleMemory measures the bytes of heap and stack per connection at one end, for connections that have carried a byte in each
// direction and that nobody reads or writes.
func runIdleMemory(st *stage) (sample, error) {
	s, err := joinByTunnel(st)
	if err != nil {
		return sample{}, err
	}
	n := st.conns()
	kept := s.keep(n)
	if _, err := s.openMany(st, 1); err != nil { // the tunnel's session
		return sample{}, err
	}
	before, err := weigh()
	if err != nil {
		return sample{}, err
	}
	conns, err := s.openMany(st, n-1)
	if err != nil {
		return sample{}, err
	}
	for _, c := range conns {
		if err := ping(c); err != nil {
			return sample{}, err
		}
	}
	for range conns {
		select {
		case c := <-kept:
			st.atClose(func() { c.Close() })
		case <-time.After(patience):
			return sample{}, errNotAccepted
		}
	}
	after, err := weigh()
	if err != nil {
		return sample{}, err
	}
	ends := float64(2 * len(conns))
	return sample{(after.heap + after.stack - before.heap - before.stack) / ends, []aside{
		{Name: "resident growth", Unit: "bytes", Value: (after.resident - before.resident) / ends},
		{Name: "goroutines", Value: float64(after.goroutines-before.goroutines) / ends},
	}}, nil
}

// keep sends back one byte on each of at most n connections, and then leaves them in the channel, without a goroutine.
func (s *stacks) keep(n int) <-chan net.Conn {
	kept := make(chan net.Conn, n)
	go func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			go func() { // ends, so that it costs nothing
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
