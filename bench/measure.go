package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// mtu is that of the tunnels here, of both libraries: the usual one of WireGuard. Only larger packets need a larger one.
const mtu = 1420

// A measure is one name of the table.
type measure struct {
	name, unit string
	lower      bool // lower is better

	// run takes one sample. It is called once in a process.
	run func(*stage) (sample, error)

	// alike says that run does not touch a library: one sample a round serves for both.
	alike bool

	// alone says that run measures this library alone, since the other one has nothing like it.
	alone bool

	// bound takes a sample of what limits every library, for the line below the row. Nil: none.
	bound     func(*stage) (sample, error)
	boundName string

	// daemons says that run starts daemons, the side's program, and runs in namespaces of its own.
	daemons bool

	// rounds is the most rounds that fit the minute that each name may take. Zero: as many as asked for.
	rounds int
}

// single says that one side serves for both.
func (m *measure) single() bool { return m.alike || m.alone }

// better is the word of the JSON output.
func (m *measure) better() string {
	if m.lower {
		return "lower"
	}
	return "higher"
}

// A sample is the outcome of one run.
type sample struct {
	Value float64
	Aside []aside // printed below the row, as medians
}

// An aside is a figure that explains a sample.
type aside struct {
	Name, Unit string
	Value      float64

	Wrong bool `json:",omitempty"` // it must be zero, and is not
	Apart bool `json:",omitempty"` // it is compared in a line of its own
}

// An effort is how much work a sample is.
type effort struct {
	Warm   time.Duration // traffic before the measured span
	Span   time.Duration // the measured span
	Settle time.Duration // the half minute of memory/after
	Echoes int
	Peers  int
}

// fullEffort fits each name into a minute with the default rounds.
var fullEffort = effort{
	Warm:   400 * time.Millisecond,
	Span:   1200 * time.Millisecond,
	Settle: 30 * time.Second,
	Echoes: 5000,
	Peers:  10000,
}

// A stage is what a sample is taken on.
type stage struct {
	effort
	lib     library
	program string // the side's daemon, where the measure is about daemons

	// rest tells that the sample leaves the processor alone from now on, so that another may begin.
	rest func()

	cuts, closers []func()

	sockets []*udp.Socket // of this library's devices
}

// atClose runs f at close. A process that ends with its one sample skips that.
func (st *stage) atClose(f func()) { st.closers = append(st.closers, f) }

// atCut runs f at close before everything else: it unblocks what would wait for ever.
func (st *stage) atCut(f func()) { st.cuts = append(st.cuts, f) }

// close takes the stage down, the last built first.
func (st *stage) close() {
	for _, f := range st.cuts {
		f()
	}
	for i := len(st.closers) - 1; i >= 0; i-- {
		st.closers[i]()
	}
	st.cuts, st.closers = nil, nil
}

// A span is what happened in the measured time of a sample.
type span struct {
	n         float64
	took, cpu time.Duration
}

var errNothingHappens = errors.New("nothing came through in ten seconds")

// count warms up and then looks how far n comes in a time, which it draws out where nothing comes at all.
func count(n *atomic.Int64, warm, during time.Duration) (span, error) {
	time.Sleep(warm)
	n0, c0, t0 := n.Load(), cpuTime(), time.Now()
	for {
		time.Sleep(during)
		s := span{float64(n.Load() - n0), time.Since(t0), cpuTime() - c0}
		if s.n > 0 {
			return s, nil
		}
		if s.took > 10*time.Second {
			return s, errNothingHappens
		}
	}
}

// A library is an implementation of WireGuard, as far as the measures need it. Everything else, the traffic, the wire
// and the clockwork, is the same code for both.
type library interface {
	// landings is how many of its own an end of a wire has.
	landings() int

	// used is how many of its peers memory/peer brings into use.
	used(st *stage) int

	// node brings up a device without peers.
	node(st *stage, c nodeConfig) (node, error)

	// stack brings up a device without peers, over loopback sockets, whose packets are those of an in-process
	// TCP/IP stack at addr.
	stack(st *stage, key wireguard.PrivateKey, addr netip.Addr) (node, network, error)
}

// A nodeConfig says what device to make.
type nodeConfig struct {
	key    wireguard.PrivateKey
	plain  *plain // its packets
	end    *end   // its datagrams; nil: loopback sockets
	relay  bool   // it sends what arrives back out, and plain is not used
	byHand bool   // its clock moves in wipe alone, where the library lets one do that
}

// A node is a device that is up.
type node interface {
	// port is where it listens.
	port() uint16
	// plan prepares a call that adds peers, all in one, and returns that call.
	plan(peers ...peer) func() error
	// become gives the device another identity.
	become(key wireguard.PrivateKey) error
	// routes checks that the prefix of each peer leads to it.
	routes(peers []peer) error
	// wipe does to all peers what happens 540 seconds after their last session.
	wipe(peers []peer) error
}

// A peer is the other side of a tunnel.
type peer struct {
	key      wireguard.PublicKey
	endpoint netip.AddrPort
	prefix   netip.Prefix
}

// A network is an in-process TCP/IP stack.
type network interface {
	dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	listen(port uint16) (net.Listener, error)
}
