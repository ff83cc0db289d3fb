package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	mathrand "math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
	"golang.org/x/crypto/chacha20poly1305"
)

// A caller is a client that has lost its session. It sends an initiation every 5 s, plus a random delay of up to a third of a
// second, until the response to its newest initiation arrives. It computes the X25519 operations of its initiations beforehand,
// so that they do not take processor time from the gateway.
type caller struct {
	initiator
	public   wireguard.PublicKey
	source   netip.Addr
	message  []byte // the newest initiation
	cookie   []byte // the cookie that the gateway sent last; nil means none
	attempts int
	due      time.Time
	done     bool
}

// newCallers prepares n callers of the device whose public key is hub.
func newCallers(n int, hub wireguard.PublicKey) []*caller {
	all := make([]*caller, n)
	for i := range all {
		all[i] = &caller{
			initiator: initiator{remote: hub, private: wireguard.NewPrivateKey()},
			source:    netip.AddrFrom4([4]byte{127, 1 + byte(i>>16), byte(i >> 8), byte(i)}),
		}
	}
	each(all, func(c *caller) {
		var ephemeral [32]byte
		rand.Read(ephemeral[:])
		c.prepare(ephemeral)
		c.public = c.private.Public()
	})
	return all
}

// each calls the function do for all callers, on all cores.
func each(all []*caller, do func(*caller)) {
	var wg sync.WaitGroup
	part := len(all)/runtime.GOMAXPROCS(0) + 1
	for ; len(all) > 0; all = all[min(part, len(all)):] {
		some := all[:min(part, len(all))]
		wg.Go(func() {
			for _, c := range some {
				do(c)
			}
		})
	}
	wg.Wait()
}

// configs returns the configuration of the callers as peers.
func configs(all []*caller) (peers []wireguard.PeerConfig) {
	for i, c := range all {
		peers = append(peers, wireguard.PeerConfig{PublicKey: c.public, AllowedIPs: []netip.Prefix{netip.PrefixFrom(inner(i), 32)}})
	}
	return peers
}

// callerBits is the number of low bits of a sender index that hold the caller's number. The other bits hold the number of the
// attempt.
const callerBits = 20

// call makes the next initiation of the caller, whose number is i.
func (c *caller) call(i int) []byte {
	c.attempts++
	c.index = uint32(i) | uint32(c.attempts)<<callerBits
	c.message = c.stamped()
	if c.cookie != nil {
		mac2 := keyed(c.cookie, c.message[:initiationSize-16])
		copy(c.message[initiationSize-16:], mac2[:])
	}
	return c.message
}

// A storm is a group of callers that share one socket. Each caller sends from a different source address.
type storm struct {
	socket wireguard.Socket
	hub    wireguard.Endpoint

	mu      sync.Mutex // guards the fields below
	all     []*caller
	left    int // number of callers without a session
	cookies int
	forged  int // number of responses that are not authentic; only one caller in 100 checks its response
}

// begin opens the socket through which all callers reach the gateway n, and starts to receive. n must be up.
func (s *storm) begin(st *stage, n *ourNode, all []*caller) (err error) {
	if s.socket, err = new(udp.Bind).Listen(0); err != nil {
		return err
	}
	st.atCut(func() { s.socket.Close() })
	s.hub = wireguard.EndpointOf(netip.AddrPortFrom(loopback, n.port()))
	s.all, s.left = all, len(all)
	for _, r := range s.socket.Receivers() {
		go s.receive(r)
	}
	return nil
}

func (s *storm) receive(r wireguard.Receiver) {
	for {
		ts, err := r.Receive()
		if err != nil {
			return
		}
		s.mu.Lock()
		for i := range ts {
			for m := range ts[i].Datagrams() {
				s.take(m)
			}
		}
		s.mu.Unlock()
	}
}

// take processes one message from the gateway. Call it only while mu is locked.
func (s *storm) take(m []byte) {
	at := 8
	if m[0] == 3 {
		at = 4
	}
	if len(m) < at+4 {
		return
	}
	index := binary.LittleEndian.Uint32(m[at:])
	i := int(index & (1<<callerBits - 1))
	if i >= len(s.all) || s.all[i].index != index || s.all[i].done {
		return // the message answers an earlier attempt, or the caller already has a session
	}
	switch c := s.all[i]; {
	case m[0] == 2 && len(m) == responseSize:
		if i%100 == 0 && c.response(bytes.Clone(m)) != nil {
			s.forged++
			return
		}
		c.done = true
		s.left--
	case m[0] == 3 && len(m) == 64:
		key := sum([]byte("cookie--"), c.remote[:])
		a, err := chacha20poly1305.NewX(key[:])
		if err != nil {
			panic(err) // impossible: the key has a constant length
		}
		if cookie, err := a.Open(nil, m[8:32], m[32:], c.message[initiationSize-32:initiationSize-16]); err == nil {
			c.cookie = cookie
			s.cookies++
		}
	}
}

// send sends an initiation for each caller that has no session and whose next attempt is due. It returns how many callers have no
// session.
func (s *storm) send(now time.Time) (left int) {
	var ts []wireguard.Train
	flush := func() {
		if len(ts) > 0 {
			s.mu.Unlock()
			s.socket.Send(ts)
			s.mu.Lock()
			ts = ts[:0]
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.all {
		if c.done || now.Before(c.due) {
			continue
		}
		e := s.hub
		e.Source = c.source
		m := c.call(i)
		ts = append(ts, wireguard.Train{Data: bytes.Clone(m), Size: len(m), Endpoint: e})
		c.due = now.Add(5*time.Second + mathrand.N(time.Second/3))
		if len(ts) == 64 {
			flush()
		}
	}
	flush()
	return s.left
}

var errStorm = errors.New("after a minute, some callers still have no session")

// run sends initiations until all callers have a session or limit has passed, and returns the time that this took. About every 10
// ms it also calls the function beside.
func (s *storm) run(limit time.Duration, beside func()) time.Duration {
	for t := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		now := time.Now()
		if beside(); s.send(now) == 0 || now.Sub(t) > limit {
			return now.Sub(t)
		}
	}
}

// runStorm measures how long a gateway that lost its sessions takes until all its clients have a session again. There are 50,000
// clients, five times st.Peers. They send their first initiations at once, each from a different address. Without lookup, the
// gateway is configured with all clients. With lookup, it calls a Config.Lookup that takes 20 ms per client.
func runStorm(st *stage, lookup bool) (sample, error) {
	key := wireguard.NewPrivateKey()
	all := newCallers(5*st.Peers, key.Public())
	known := map[wireguard.PublicKey]wireguard.PeerConfig{}
	c := wireguard.Config{PrivateKey: key, Tunnel: new(loadTunnel), Bind: countedBind{st}, Peers: configs(all)}
	if lookup {
		for _, p := range c.Peers {
			known[p.PublicKey] = p
		}
		c.Peers, c.Lookup = nil, slowLookup(known, 20*time.Millisecond)
	}
	n := &ourNode{}
	if err := n.up(st, c); err != nil {
		return sample{}, err
	}
	s := new(storm)
	if err := s.begin(st, n, all); err != nil {
		return sample{}, err
	}
	c0 := cpuTime()
	took := s.run(time.Minute, func() {})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left > 0 {
		return sample{}, errStorm
	}
	attempts, drops := 0, n.dev.Status().Drops
	for _, c := range s.all {
		attempts += c.attempts
	}
	return sample{took.Seconds(), []aside{
		{Name: "initiations", Unit: "per client", Value: float64(attempts) / float64(len(all))},
		{Name: "cookies", Unit: "per client", Value: float64(s.cookies) / float64(len(all))},
		{Name: "cpu of both ends", Unit: "s", Value: (cpuTime() - c0).Seconds()},
		{Name: "waited for 5 s or more", Value: float64(drops[wireguard.DropSuperseded])},
		mustBeZero("queue full", int64(drops[wireguard.DropQueueFull])),
		mustBeZero("forged", int64(s.forged)),
	}}, nil
}

var errStranger = errors.New("the public key is not that of a client")

// slowLookup returns a Config.Lookup that knows the given peers, and refuses all others. Each call of the returned function lasts
// for the duration in the parameter takes.
func slowLookup(known map[wireguard.PublicKey]wireguard.PeerConfig, takes time.Duration) func(context.Context, wireguard.PublicKey) (wireguard.PeerConfig, error) {
	return func(_ context.Context, key wireguard.PublicKey) (wireguard.PeerConfig, error) {
		time.Sleep(takes)
		if c, ok := known[key]; ok {
			return c, nil
		}
		return wireguard.PeerConfig{}, errStranger
	}
}

// runStrangers measures how many of 40 clients get a session with their first or second initiation. The device finds its peers with
// a Config.Lookup that takes 200 ms. At the same time, strangers send 5,000 initiations per second, each from a different address.
// The strangers do not read the answers.
func runStrangers(st *stage) (sample, error) {
	const clients = 40
	key := wireguard.NewPrivateKey()
	all, strangers := newCallers(clients, key.Public()), newCallers(st.Peers/5, key.Public())
	known := map[wireguard.PublicKey]wireguard.PeerConfig{}
	for _, p := range configs(all) {
		known[p.PublicKey] = p
	}
	n := &ourNode{}
	if err := n.up(st, wireguard.Config{PrivateKey: key, Tunnel: new(loadTunnel), Bind: countedBind{st}, Lookup: slowLookup(known, 200*time.Millisecond)}); err != nil {
		return sample{}, err
	}
	s := new(storm)
	if err := s.begin(st, n, all); err != nil {
		return sample{}, err
	}
	deaf, err := new(udp.Bind).Listen(0)
	if err != nil {
		return sample{}, err
	}
	st.atCut(func() { deaf.Close() })
	begin, sent := time.Now(), 0
	shout := func() {
		var ts []wireguard.Train
		for due := int(time.Since(begin).Seconds() * 5000); sent < due; sent++ {
			e := s.hub
			e.Source = netip.AddrFrom4([4]byte{127, 64 + byte(sent>>16), byte(sent >> 8), byte(sent)})
			m := strangers[sent%len(strangers)].call(0)
			ts = append(ts, wireguard.Train{Data: m, Size: len(m), Endpoint: e})
		}
		deaf.Send(ts)
	}
	for time.Since(begin) < time.Second { // the strangers begin one second before the clients
		shout()
		time.Sleep(10 * time.Millisecond)
	}
	took := s.run(7*time.Second, shout)
	s.mu.Lock()
	defer s.mu.Unlock()
	soon := 0
	for _, c := range s.all {
		if c.done && c.attempts <= 2 {
			soon++
		}
	}
	drops := n.dev.Status().Drops
	return sample{float64(soon), []aside{
		{Name: "all after", Unit: "s", Value: took.Seconds()},
		{Name: "strangers", Value: float64(sent)},
		{Name: "asked for a cookie", Value: float64(drops[wireguard.DropCookieRequired])},
		{Name: "lookup full", Value: float64(drops[wireguard.DropLookupFull])},
		mustBeZero("without a session by the second attempt", int64(clients-soon)),
	}}, nil
}
