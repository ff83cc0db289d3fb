// Package pipe is a wire in memory, for tests and examples. Any number of ends, each of them a [wireguard.Bind], exchange
// datagrams over it, with delay, loss, reordering, duplication, a rate, an MTU, NATs and cuts. A test can watch, count,
// change and forge datagrams.
//
//	n := pipe.NewNetwork(pipe.Config{Seed: 1})
//	a, b := n.NewEnd(), n.NewEnd()            // Config.Bind of two devices
//	n.SetConditions(pipe.Conditions{Delay: 20 * time.Millisecond, Loss: 0.01})
//	...
//	if b.Sent().Responses != 1 { ... }
//
// All randomness is drawn from one seed, so that the same order of sends has the same fate. The package uses only
// package time, and its goroutines block durably in the sense of testing/synctest. So a network made inside a synctest
// bubble runs in virtual time.
//
// A datagram takes this path:
//
//	Socket.Send ─▶ source address ─▶ NAT ─▶ filters ─▶ conditions ─▶ under way ─▶ NAT ─▶ queue ─▶ Receiver.Receive
//	   end.go         end.go        nat.go   tap.go   conditions.go    wire.go    nat.go  queue.go      queue.go
//
// While a network has no conditions, filters, taps and NATs, whole trains go from Send straight into the queue of the
// receiving socket, with one copy and without a goroutine, a timer or an allocation.
//
// A [Tunnel] is the other side of a device in a test: it sends packets into the device and receives those that arrived.
package pipe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// A Config says what a new network is. The zero value of each field means its default.
type Config struct {
	// Seed is what all randomness is drawn from. Zero is a seed like any other.
	Seed uint64

	// Queue is how many bytes wait at each socket for its receiver. Datagrams that find it full are dropped and counted.
	// It is rounded up to a multiple of 64 KiB, each of which holds at most 128 trains. Zero means 2 MiB, or 256 KiB
	// with Lossless.
	Queue int

	// Lossless makes Send wait while the receiver's queue is full, instead of dropping. It breaks the rule that a Bind never
	// waits, for benchmarks that count what a pipeline of two devices carries. Two devices that send to each other may wait
	// for each other. Closing either socket ends the wait. Lossless has no effect while there are conditions, filters, taps
	// or NATs: then a full queue drops.
	Lossless bool
}

const (
	defaultQueue         = 2 << 20
	defaultLosslessQueue = 256 << 10
)

func (c *Config) chunks() int {
	size := c.Queue
	switch {
	case size > 0:
	case c.Lossless:
		size = defaultLosslessQueue
	default:
		size = defaultQueue
	}
	return (size + chunkSize - 1) / chunkSize
}

// A Network is a wire between any number of ends. NewNetwork makes it. It must not be copied. All methods are safe for
// concurrent use, also from filters and taps. It has no goroutine, and needs no closing once its sockets are closed.
type Network struct {
	lossless bool
	limit    int // chunks per socket's queue
	pool     pool

	sent       counters
	duplicated counter
	injected   counter
	fates      [fates]counter

	mu      sync.RWMutex // guards the fields below; not held during a wait or a call of a filter or tap
	sockets map[place]*socket
	ends    []*End
	nats    map[netip.Addr]*NAT
	chosen  int // number of addresses that NewEnd chose
	random  *rand.Rand

	conditions Conditions
	paths      map[pair]*path
	cuts       map[pair]struct{}
	slow       bool // datagrams go one by one, through filters, conditions and taps

	filters []*filter // replaced, never changed
	taps    []*tap    // replaced, never changed

	// One goroutine at a time holds the turn and moves datagrams on. It holds no lock meanwhile, so that filters and
	// taps may use the network. A goroutine that finds the turn taken leaves its datagrams in the inbox and returns.
	turn     bool
	inbox    []*flight
	held     []*flight // by a filter, until Release
	underWay flights   // ordered by arrival
	number   uint64    // of the last flight; keeps the order of flights with equal times
	flying   int       // flights without a fate
	weight   int       // memory of these flights, in bytes
	spare    []*flight
	timer    *time.Timer
}

// A place is a socket's address. An address behind a NAT means nothing elsewhere.
type place struct {
	behind *NAT // nil means the public network
	at     netip.AddrPort
}

// NewNetwork makes a network without ends.
func NewNetwork(c Config) *Network {
	return &Network{
		lossless: c.Lossless,
		limit:    c.chunks(),
		sockets:  make(map[place]*socket),
		nats:     make(map[netip.Addr]*NAT),
		paths:    make(map[pair]*path),
		cuts:     make(map[pair]struct{}),
		random:   rand.New(rand.NewPCG(c.Seed, 0)),
	}
}

// NewEnd adds an end with the given addresses: IPv4, IPv6 or both. Without any, the network chooses one of each kind that
// no other end has. Several ends may share an address, as several programs on one machine do; then their ports must
// differ. NewEnd panics if an address is invalid, unspecified, multicast or IPv4-mapped, or belongs to
// a NAT.
func (n *Network) NewEnd(addrs ...netip.Addr) *End {
	return n.newEnd(nil, addrs)
}

func (n *Network) newEnd(behind *NAT, addrs []netip.Addr) *End {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(addrs) == 0 {
		addrs = n.choose()
	}
	e := &End{network: n, nextPort: firstPort}
	if err := n.place(e, behind, addrs); err != nil {
		panic(err)
	}
	n.ends = append(n.ends, e)
	return e
}

// choose picks addresses from the ranges for benchmarks (RFC 2544, RFC 5180). No other end has them unless the caller
// uses the same ranges, and then the ends may share an address.
func (n *Network) choose() []netip.Addr {
	n.chosen++
	var v4 [4]byte
	binary.BigEndian.PutUint32(v4[:], 198<<24|18<<16+uint32(n.chosen))
	v6 := [16]byte{0: 0x20, 1: 0x01, 3: 0x02}
	binary.BigEndian.PutUint32(v6[12:], uint32(n.chosen))
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// place gives e and its sockets these addresses, or changes nothing. n.mu is held.
func (n *Network) place(e *End, behind *NAT, addrs []netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			errs = append(errs, fmt.Errorf("pipe: address %v: want the IPv4 or IPv6 address of one host", a))
		}
		if behind == nil && n.nats[a] != nil {
			errs = append(errs, fmt.Errorf("pipe: address %v is a NAT's", a))
		}
		for _, s := range e.sockets {
			p := place{behind, netip.AddrPortFrom(a, s.port)}
			if other := n.sockets[p]; other != nil && other.end != e {
				errs = append(errs, fmt.Errorf("pipe: %v is taken by another end", p.at))
			}
		}
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	for _, s := range e.sockets {
		n.remove(s)
	}
	e.behind, e.addrs = behind, append([]netip.Addr(nil), addrs...)
	for _, s := range e.sockets {
		n.add(s)
	}
	return nil
}

// add makes s reachable at each address of its end, and remove undoes that. n.mu is held.
func (n *Network) add(s *socket) {
	for _, a := range s.end.addrs {
		n.sockets[place{s.end.behind, netip.AddrPortFrom(a, s.port)}] = s
	}
}

func (n *Network) remove(s *socket) {
	for _, a := range s.end.addrs {
		delete(n.sockets, place{s.end.behind, netip.AddrPortFrom(a, s.port)})
	}
}

// plain reports whether trains may go straight into their queue. n.mu is held, at least for reading. While another
// goroutine moves datagrams on, a train must queue behind those in the inbox.
func (n *Network) plain() bool { return !n.slow && !n.turn }

// settle recomputes slow after a change. n.mu is held.
func (n *Network) settle() {
	n.slow = len(n.filters) > 0 || len(n.taps) > 0 || len(n.nats) > 0 || len(n.cuts) > 0 || len(n.paths) > 0 ||
		n.conditions != Conditions{}
}
