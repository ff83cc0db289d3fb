package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// keptAlive is how often a peer of load/keepalives gets a keepalive.
const keptAlive = 25 * time.Second

// runKeepalives measures the processor time of a device that sends keepalives to 100,000 peers.
func runKeepalives(st *stage) (sample, error) {
	k, err := keepAlive(st)
	return sample{100 * k.cpu.Seconds() / k.took.Seconds(), k.asides()}, err
}

// runKeepaliveWakes measures how often that device wakes up to send: its system calls, of which each carries the keepalives that
// are due.
func runKeepaliveWakes(st *stage) (sample, error) {
	k, err := keepAlive(st)
	return sample{k.calls / k.took.Seconds(), k.asides()}, err
}

// A keptSpan is two intervals of a device with many persistent keepalives.
type keptSpan struct {
	span            // n counts keepalives
	calls   float64 // system calls that sent them
	waits   float64 // context switches of the process's threads, of which most are the runtime's monitor
	missing int64   // keepalives
}

func (k *keptSpan) asides() []aside {
	return []aside{
		{Name: "keepalives", Unit: "1/s", Value: k.n / k.took.Seconds()},
		{Name: "sent", Unit: "datagrams/call", Value: k.n / max(k.calls, 1)},
		{Name: "cpu", Unit: "µs/keepalive", Value: k.cpu.Seconds() * 1e6 / max(k.n, 1)},
		{Name: "context switches", Unit: "1/s", Value: k.waits / k.took.Seconds()},
		mustBeZero("missing", k.missing),
	}
}

// keepAlive lets 100,000 peers, ten times st.Peers, make a session with a device that keeps them alive. Each has an address of its
// own. Then nothing but the device's keepalives is sent, to a socket that nobody reads.
func keepAlive(st *stage) (k keptSpan, err error) {
	key := wireguard.NewPrivateKey()
	all := newCallers(10*st.Peers, key.Public())
	c := wireguard.Config{PrivateKey: key, Tunnel: new(loadTunnel), Bind: countedBind{st: st}, Peers: configs(all)}
	for i := range c.Peers {
		c.Peers[i].PersistentKeepalive = keptAlive
	}
	n := &ourNode{}
	if err := n.up(st, c); err != nil {
		return k, err
	}
	begun := time.Now()
	if err := meet(st, n, all); err != nil {
		return k, err
	}
	due := int64(2 * len(all))
	all, c = nil, wireguard.Config{}
	if _, err := weigh(); err != nil {
		return k, err
	}
	time.Sleep(time.Second)
	before, c0, w0, t0 := st.sockets[0].Stats(), cpuTime(), contextSwitches(), time.Now()
	time.Sleep(2 * keptAlive)
	after := st.sockets[0].Stats()
	k.took, k.cpu, k.waits = time.Since(t0), cpuTime()-c0, float64(contextSwitches()-w0)
	k.n, k.calls = float64(after.SentDatagrams-before.SentDatagrams), float64(after.SendCalls-before.SendCalls)
	k.missing = max(0, due*95/100-int64(k.n)) // some are due at the very end, or a little late
	if passed := time.Since(begun); passed > 3*time.Minute {
		return k, fmt.Errorf("it took %v, and a session lasts 180 s: the machine is too slow", passed)
	}
	return k, nil
}

// meet lets the callers make their sessions, a few at a time, so that the device asks for no cookies. It returns when all are
// confirmed.
func meet(st *stage, n *ourNode, all []*caller) error {
	const inFlight = 256
	s, err := new(udp.Bind).Listen(0)
	if err != nil {
		return err
	}
	st.atClose(func() { s.Close() })
	hub := wireguard.EndpointOf(netip.AddrPortFrom(loopback, n.port()))
	send := func(c *caller, m []byte) {
		e := hub
		e.Source = c.source
		s.Send([]wireguard.Train{{Data: m, Size: len(m), Endpoint: e}})
	}
	var met atomic.Int64
	tokens := make(chan struct{}, len(all)+inFlight) // one per caller that may begin
	for _, r := range s.Receivers() {
		go func() {
			for met.Load() < int64(len(all)) {
				ts, err := r.Receive()
				if err != nil {
					return
				}
				for i := range ts {
					for m := range ts[i].Datagrams() {
						if len(m) != responseSize {
							continue
						}
						c := all[binary.LittleEndian.Uint32(m[8:])&(1<<callerBits-1)]
						if c.done || c.response(bytes.Clone(m)) != nil {
							continue
						}
						c.done = true
						keepalive := make([]byte, 32)
						c.seal(keepalive)
						send(c, keepalive)
						met.Add(1)
						tokens <- struct{}{}
					}
				}
			}
		}()
	}
	for range inFlight {
		tokens <- struct{}{}
	}
	for i, c := range all {
		select {
		case <-tokens:
		case <-time.After(5 * time.Second): // for those that were lost
		}
		send(c, c.call(i))
	}
	for t := time.Now(); met.Load() < int64(len(all)); time.Sleep(10 * time.Millisecond) {
		if time.Since(t) > 10*time.Second {
			return fmt.Errorf("%d of %d callers have a session; drops %v", met.Load(), len(all), n.dev.Status().Drops)
		}
	}
	return nil
}
