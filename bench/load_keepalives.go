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

// keptAlive is the interval at which the device of load/keepalives sends a keepalive to each peer.
const keptAlive = 25 * time.Second

// runKeepalives measures the processor time of a device that sends keepalives to 100,000 peers.
func runKeepalives(st *stage) (sample, error) {
	k, err := keepAlive(st)
	return sample{100 * k.cpu.Seconds() / k.took.Seconds(), k.asides()}, err
}

// runKeepaliveWakes measures how many system calls per second a device makes to send keepalives to 100,000 peers. One call sends
// all keepalives that are due.
func runKeepaliveWakes(st *stage) (sample, error) {
	k, err := keepAlive(st)
	return sample{k.calls / k.took.Seconds(), k.asides()}, err
}

// A keptSpan is what keepAlive measured during two keepalive intervals (2 × keptAlive).
type keptSpan struct {
	span            // n counts keepalives
	calls   float64 // number of system calls that sent the keepalives
	waits   float64 // number of voluntary context switches of the process; the Go runtime's monitor thread makes most of them
	missing int64   // number of keepalives that were due and were not sent
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

// keepAlive measures a device that sends persistent keepalives to 100,000 peers, ten times st.Peers. First, each peer makes a
// session with the device, from a different address. Then only the device sends: its keepalives arrive at a socket that nobody
// reads.
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
	k.missing = max(0, due*95/100-int64(k.n)) // 5 % may be missing: some are due at the very end, and some are sent a little late
	if passed := time.Since(begun); passed > 3*time.Minute {
		return k, fmt.Errorf("the sample took %v, but a session lasts only 180 s: the machine is too slow", passed)
	}
	return k, nil
}

// meet makes a session between each caller and the device of n. Only 256 handshakes are in flight at a time, so that the device
// does not answer with cookies. meet returns when all callers have confirmed their sessions with a keepalive.
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
	tokens := make(chan struct{}, len(all)+inFlight) // one token for each caller that may begin its handshake
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
		case <-time.After(5 * time.Second): // a message was lost; begin the next handshake anyway
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
