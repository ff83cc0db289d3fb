// Package pipe simulates an IP network in memory, for tests and examples. An [End] is a host in this network. It is a
// [wireguard.Bind], and exchanges datagrams with the other ends. The network can delay, drop, reorder and duplicate datagrams.
// It can limit the data rate and the packet size, and it can simulate NATs and broken connections. A test can watch, count,
// change and forge datagrams.
//
//	n := pipe.NewNetwork(pipe.Config{Seed: 1})
//	a, b := n.NewEnd(), n.NewEnd()            // use each as Config.Bind of a device
//	n.SetConditions(pipe.Conditions{Delay: 20 * time.Millisecond, Loss: 0.01})
//	...
//	if b.Sent().Responses != 1 { ... }
//
// All random numbers depend on one seed. With the same seed and the same order of sends, the same happens to the datagrams. The
// package uses no clock but package time, and its goroutines block durably in the sense of testing/synctest. So a network that is
// made inside a synctest bubble runs in virtual time.
//
// A datagram takes this path:
//
//	Socket.Send ─▶ source address ─▶ NAT ─▶ filters ─▶ conditions ─▶ under way ─▶ NAT ─▶ queue ─▶ Receiver.Receive
//	   end.go         end.go        nat.go   tap.go   conditions.go    wire.go    nat.go  queue.go      queue.go
//
// While a network has no conditions, cuts, filters, taps or NATs, Send copies whole trains directly into the queue of the
// receiving socket. This uses no goroutine, timer or allocation.
//
// A [Tunnel] is for Config.Tunnel of a device in a test. The test uses it to send packets into the device, and to receive the
// packets that the device has received from its peers.
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

// A Config configures a new network. The zero value of each field means its default.
type Config struct {
	// Seed is the seed of the random numbers. Zero is a valid seed.
	Seed uint64

	// Queue is the size of each socket's receive queue, in bytes. Datagrams that arrive while the queue is full are dropped and
	// counted. Queue is rounded up to a multiple of 64 KiB. Each 64 KiB of the queue hold at most 128 trains. Zero means 2 MiB,
	// or 256 KiB with Lossless.
	Queue int

	// Lossless makes Send wait while the receiver's queue is full, instead of dropping datagrams. It is meant for benchmarks of
	// the throughput between two devices. It breaks the rule that a Bind never waits, and two devices that send to each other
	// may both wait for ever. Closing the sending or the receiving socket ends a wait. Lossless has no effect while the network
	// has conditions, cuts, filters, taps or NATs. Datagrams for a full queue are then dropped.
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

// A Network connects any number of ends. NewNetwork makes it. It must not be copied. All methods are safe for concurrent use.
// Filters and taps may call them too. A Network has no goroutine, and need not be closed once its sockets are closed.
type Network struct {
	lossless bool
	limit    int // maximum number of chunks in the queue of a socket; a chunk is 64 KiB of memory for trains
	pool     pool

	sent       counters
	duplicated counter
	injected   counter
	fates      [fates]counter

	mu      sync.RWMutex // guards the fields below; not locked during a wait or a call of a filter or tap
	sockets map[place]*socket
	ends    []*End
	nats    map[netip.Addr]*NAT
	chosen  int // number of ends whose addresses choose has chosen
	random  *rand.Rand

	conditions Conditions
	paths      map[pair]*path
	cuts       map[pair]struct{}
	slow       bool // datagrams are sent one by one, because there may be filters, conditions, cuts, taps or NATs

	filters []*filter // changes replace the slice, so that it can be read without mu
	taps    []*tap    // changes replace the slice, so that it can be read without mu

	// Only one goroutine at a time processes datagrams in run. It sets turn meanwhile; this goroutine is said to have the turn.
	// It does not lock mu while it calls filters and taps, so that they may use the network. If another goroutine sends
	// datagrams while turn is set, it only appends them to inbox and returns.
	turn     bool
	inbox    []*flight
	held     []*flight // datagrams that a filter holds until Release
	underWay flights   // datagrams that have not arrived yet; a heap ordered by the time of arrival
	number   uint64    // number of the last flight that was put into underWay; keeps the order of flights with equal times
	flying   int       // number of flights that have no fate yet
	weight   int       // memory of the flights that have no fate yet, in bytes
	spare    []*flight
	timer    *time.Timer
}

// A place is a socket's address, together with the network in which it is valid: the public network, or the private network
// behind a NAT.
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

// NewEnd adds an end with the given IPv4 and IPv6 addresses. If none is given, the network chooses one IPv4 and one IPv6
// address that no other end has. Several ends may have the same address, as several programs on one machine do. Their ports
// must then differ. NewEnd panics if an address is invalid, unspecified, multicast or IPv4-mapped, or belongs to a NAT.
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

// choose returns the next IPv4 and IPv6 address from the ranges for benchmarks (RFC 2544, RFC 5180). Another end can have them
// only if the caller has given it addresses in these ranges.
func (n *Network) choose() []netip.Addr {
	n.chosen++
	var v4 [4]byte
	binary.BigEndian.PutUint32(v4[:], 198<<24|18<<16+uint32(n.chosen))
	v6 := [16]byte{0: 0x20, 1: 0x01, 3: 0x02}
	binary.BigEndian.PutUint32(v6[12:], uint32(n.chosen))
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// place gives e and its sockets these addresses, in the public network or behind a NAT. If it fails, it changes nothing. The
// caller holds n.mu.
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

// add enters s into the table of sockets with each address of its end, and remove removes it. The caller of either holds n.mu.
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

// plain reports whether Send may copy a train directly into the receiver's queue. While a goroutine has the turn (it processes
// datagrams in run), Send must not do so, because the train would overtake the datagrams in inbox. The caller holds n.mu, at
// least for reading.
func (n *Network) plain() bool { return !n.slow && !n.turn }

// settle recomputes slow after a change of the filters, taps, NATs, cuts or conditions. The caller holds n.mu.
func (n *Network) settle() {
	n.slow = len(n.filters) > 0 || len(n.taps) > 0 || len(n.nats) > 0 || len(n.cuts) > 0 || len(n.paths) > 0 ||
		n.conditions != Conditions{}
}
