package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
)

const chunk = 128 << 10 // bytes per Write and per Read of a bulk transfer

// A stacks is a pair of in-process TCP/IP stacks that are connected with each other.
type stacks struct {
	dial     func(context.Context) (net.Conn, error) // opens a connection from one stack to the other
	listener net.Listener                            // accepts the connections on the other stack
}

func netstackMeasures() []measure {
	over := func(f func(*stage, *stacks) (sample, error), join func(*stage) (*stacks, error)) func(*stage) (sample, error) {
		return func(st *stage) (sample, error) {
			s, err := join(st)
			if err != nil {
				return sample{}, err
			}
			return f(st, s)
		}
	}
	m := func(name, unit string, lower bool, f func(*stage, *stacks) (sample, error)) measure {
		return measure{
			name: "netstack/" + name, unit: unit, lower: lower,
			run:       over(f, joinByTunnel),
			bound:     over(f, joinByNothing),
			boundName: "gVisor alone",
		}
	}
	return []measure{
		m("tcp1", "Gbit/s", false, func(st *stage, s *stacks) (sample, error) { return runBulk(st, s, 1) }),
		m("tcp4", "Gbit/s", false, func(st *stage, s *stacks) (sample, error) { return runBulk(st, s, 4) }),
		m("rtt", "µs", true, runEcho),
		m("connect", "connections/s", false, runConnect),
	}
}

// joinByTunnel connects two stacks with a tunnel of the measured library, over loopback sockets.
func joinByTunnel(st *stage) (*stacks, error) {
	ka, kb := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	a, from, err := st.lib.stack(st, ka, addrA, nil)
	if err != nil {
		return nil, err
	}
	b, to, err := st.lib.stack(st, kb, addrB, nil)
	if err != nil {
		return nil, err
	}
	if err := introduce(a, b, ka, kb); err != nil {
		return nil, err
	}
	return listen(st, from, to)
}

// listen makes a listener on one stack, to. The result's function dial connects to this listener from the other stack, from.
func listen(st *stage, from, to network) (*stacks, error) {
	const port = 80
	l, err := to.listen(port)
	if err != nil {
		return nil, err
	}
	st.atClose(func() { l.Close() })
	return &stacks{
		dial:     func(ctx context.Context) (net.Conn, error) { return from.dial(ctx, netip.AddrPortFrom(addrB, port)) },
		listener: l,
	}, nil
}

// serve runs f for each connection until the listener is closed.
func (s *stacks) serve(f func(net.Conn)) {
	go func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
}

// open opens a connection from one stack to the other. Its time limit is long enough for a WireGuard handshake and one retry.
func (s *stacks) open() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
	defer cancel()
	return s.dial(ctx)
}

// fill writes to c until a write fails, and returns the error.
func fill(c net.Conn) error {
	for b := make([]byte, chunk); ; {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

// drain reads from c until a read fails, and adds the number of bytes to total.
func drain(c net.Conn, total *atomic.Int64) {
	for b := make([]byte, chunk); ; {
		n, err := c.Read(b)
		total.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// drainOne opens a connection, reads from it, and measures its throughput.
func (s *stacks) drainOne(st *stage) (sample, error) {
	c, err := s.open()
	if err != nil {
		return sample{}, err
	}
	defer c.Close()
	var total atomic.Int64
	go drain(c, &total)
	n, err := count(&total, st.Warm, st.Span)
	return n.throughput(nil), err
}

// runBulk measures the throughput of several TCP connections together, all of which send in the same direction.
func runBulk(st *stage, s *stacks, streams int) (sample, error) {
	var total atomic.Int64
	s.serve(func(c net.Conn) { drain(c, &total) })
	var failed atomic.Pointer[error]
	for range streams {
		c, err := s.open()
		if err != nil {
			return sample{}, err
		}
		st.atClose(func() { c.Close() })
		go func() {
			err := fill(c)
			failed.Store(&err)
		}()
	}
	c, err := count(&total, st.Warm, st.Span)
	if err != nil {
		return sample{}, err
	}
	if err := failed.Load(); err != nil {
		return sample{}, *err
	}
	return c.throughput(st.calls()), nil
}

// echo sends each byte back.
func echo(c net.Conn) {
	var b [1]byte
	for {
		if _, err := c.Read(b[:]); err != nil {
			return
		}
		if _, err := c.Write(b[:]); err != nil {
			return
		}
	}
}

// ping sends one byte over c and waits until echo, at the other side, has sent the byte back.
func ping(c net.Conn) error {
	b := [1]byte{1}
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:])
	return err
}

// runEcho measures the median round trip of one byte.
func runEcho(st *stage, s *stacks) (sample, error) {
	s.serve(echo)
	c, err := s.open()
	if err != nil {
		return sample{}, err
	}
	st.atClose(func() { c.Close() })
	trips := make([]float64, st.Echoes)
	var c0 time.Duration
	for i := -st.Echoes / 5; i < st.Echoes; i++ { // the echoes with a negative i are not measured
		if i == 0 {
			c0 = cpuTime()
		}
		t := time.Now()
		if err := ping(c); err != nil {
			return sample{}, err
		}
		if i >= 0 {
			trips[i] = float64(time.Since(t)) / 1e3
		}
	}
	cpu := (cpuTime() - c0).Seconds() * 1e6 / float64(st.Echoes)
	slices.Sort(trips)
	return sample{trips[len(trips)/2], []aside{
		{Name: "99th percentile", Unit: "µs", Value: trips[len(trips)*99/100]},
		{Name: "cpu", Unit: "µs/echo", Value: cpu},
	}}, nil
}

var errNone = errors.New("no connection succeeded within the measured time")

// runConnect measures how many connections per second one client opens, one after another. Each connection carries a byte and its
// echo, which proves that both sides are connected.
func runConnect(st *stage, s *stacks) (sample, error) {
	s.serve(echo)
	one := func() error {
		c, err := s.open()
		if err != nil {
			return fmt.Errorf("dial: %w", err)
		}
		defer c.Close()
		return ping(c)
	}
	during := func(d time.Duration) (n int, took time.Duration, err error) {
		t := time.Now()
		for ; time.Since(t) < d; n++ {
			if err := one(); err != nil {
				return n, 0, err
			}
		}
		return n, time.Since(t), nil
	}
	if _, _, err := during(st.Warm); err != nil {
		return sample{}, err
	}
	c0 := cpuTime()
	n, took, err := during(st.Span)
	if err != nil {
		return sample{}, err
	}
	if n == 0 {
		return sample{}, errNone
	}
	return sample{float64(n) / took.Seconds(), []aside{
		{Name: "cpu", Unit: "µs/connection", Value: (cpuTime() - c0).Seconds() * 1e6 / float64(n)},
	}}, nil
}
