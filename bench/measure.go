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

// mtu is the MTU of both libraries' tunnels, which is WireGuard's usual one. Only larger packets need a larger MTU.
const mtu = 1420

// A measure is one name of the table.
type measure struct {
	name, unit string
	lower      bool // lower is better

	// run takes one sample. Each process calls it once.
	run func(*stage) (sample, error)

	// alike means that run uses neither library, so that one sample per round serves both.
	alike bool

	// alone means that run measures only this library, because the other one has no equivalent.
	alone bool

	// bound measures the limit of every library, for the line below the row. Nil means that there is no such line.
	bound     func(*stage) (sample, error)
	boundName string

	// boundMissing returns why this host cannot measure the bound, or an empty string if it can. Nil means that every host can.
	boundMissing func() string

	// boundRoot means that bound runs in its own namespaces.
	boundRoot bool

	// daemons means that run starts the side's program as daemons and runs in its own namespaces.
	daemons bool

	// rounds is the most rounds that fit into the minute that each name may take. Zero means no limit.
	rounds int

	// goal is a figure that this library should reach. -goals wants half of it; see checkGoals. Zero means no such figure: then only
	// those that must be 0 count.
	goal float64

	// quick means that -goals measures the name unless -only names others.
	quick bool

	// spans is how many times effort.Transfer a sample takes, in addition to the time of a usual sample.
	spans int
}

// single reports whether the measure has only one side.
func (m *measure) single() bool { return m.alike || m.alone }

// better returns the word in the JSON output, lower or higher.
func (m *measure) better() string {
	if m.lower {
		return "lower"
	}
	return "higher"
}

// A sample is the result of one run.
type sample struct {
	Value float64
	Aside []aside // the medians over all rounds are printed below the row
}

// An aside is a figure that explains a sample.
type aside struct {
	Name, Unit string
	Value      float64

	Wrong bool `json:",omitempty"` // the figure must be zero and is not
	Apart bool `json:",omitempty"` // the two sides are compared in a separate line
}

// An effort says how much work a sample does.
type effort struct {
	Warm   time.Duration // traffic before the measured span
	Span   time.Duration // the measured span
	Settle time.Duration // the half minute of memory/after
	Echoes int
	Peers  int

	Transfer time.Duration // the measured span of the family wan
}

// fullEffort lets each name finish within a minute with the default rounds.
var fullEffort = effort{
	Warm:   400 * time.Millisecond,
	Span:   1200 * time.Millisecond,
	Settle: 30 * time.Second,
	Echoes: 5000,
	Peers:  10000,

	Transfer: 20 * time.Second,
}

// A stage holds the resources of a sample.
type stage struct {
	effort
	lib     library
	program string // path of the side's daemon, if the measure uses daemons
	round   int    // from 0

	// rest announces that the sample needs no more processor time, so that another sample may begin.
	rest func()

	cuts, closers []func()

	sockets []*udp.Socket // the sockets of this library's devices
}

// atClose makes close run f. A process that ends after its one sample does not call close.
func (st *stage) atClose(f func()) { st.closers = append(st.closers, f) }

// atCut makes close run f before everything else, to unblock goroutines that would wait for ever.
func (st *stage) atCut(f func()) { st.cuts = append(st.cuts, f) }

// close takes the stage down in reverse order.
func (st *stage) close() {
	for _, f := range st.cuts {
		f()
	}
	for i := len(st.closers) - 1; i >= 0; i-- {
		st.closers[i]()
	}
	st.cuts, st.closers = nil, nil
}

// A span is the progress within the measured time of a sample.
type span struct {
	n         float64
	took, cpu time.Duration
}

var errNothingHappens = errors.New("nothing came through in ten seconds")

// count warms up and then measures how much n grows. If n does not grow, count extends the time.
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

// throughput returns the Gbit/s of a span that counted bytes, and the processor time of each GB before the other asides.
func (s span) throughput(others []aside) sample {
	gigabytes := s.n / 1e9
	cpu := aside{Name: "cpu", Unit: "s/GB", Value: s.cpu.Seconds() / gigabytes}
	return sample{8 * gigabytes / s.took.Seconds(), append([]aside{cpu}, others...)}
}

// A library is what the measures need of a WireGuard implementation. Traffic, wire and timing are the same code for both
// libraries.
type library interface {
	// landings is the number of landings that each end of a wire provides.
	landings() int

	// used is the number of peers that memory/peer uses.
	used(st *stage) int

	// node brings up a device without peers.
	node(st *stage, c nodeConfig) (node, error)

	// stack brings up a device without peers over bind. Nil means loopback sockets. An in-process TCP/IP stack at addr sends and
	// receives its packets.
	stack(st *stage, key wireguard.PrivateKey, addr netip.Addr, bind wireguard.Bind) (node, network, error)

	// gateway brings up a device without peers over loopback sockets. It forwards each TCP connection to a socket of the host
	// at target. The address is where a peer dials.
	gateway(st *stage, key wireguard.PrivateKey, target netip.AddrPort) (node, netip.AddrPort, error)
}

// A nodeConfig describes a device to make.
type nodeConfig struct {
	key   wireguard.PrivateKey
	plain *plain // its packets
	end   *end   // its datagrams; nil means loopback sockets
	relay bool   // the node forwards received packets and does not use plain

	receivers int // sockets per family, if the library can choose; 0 means its default

	byHand bool // only wipe advances the node's clock, if the library allows that
}

// A node is a device that is up.
type node interface {
	// port returns the UDP port on which the device listens.
	port() uint16
	// plan prepares one call that adds all peers, and returns that call.
	plan(peers ...peer) func() error
	// become changes the private key of the device.
	become(key wireguard.PrivateKey) error
	// routes checks that the prefix of each peer leads to it.
	routes(peers []peer) error
	// wipe does what the device does to a peer 540 seconds after its last session, for all peers.
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
	// ping returns how long an echo request and its answer took.
	ping(ctx context.Context, to netip.Addr) (time.Duration, error)
}
