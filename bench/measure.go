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

// mtu is WireGuard's usual MTU. The tunnels of both libraries use it, unless a measure sends larger packets.
const mtu = 1420

// A measure is something that bench can measure. Each measure has a name, and one row of the table.
type measure struct {
	name, unit string
	lower      bool // a lower figure is better

	// run takes one sample. It is called at most once per process, because each sample has its own process.
	run func(*stage) (sample, error)

	// alike means that run uses neither library, so one sample per round counts for both sides.
	alike bool

	// alone means that run measures only this library, because wireguard-go has no equivalent.
	alone bool

	// bound takes one sample of a limit that holds for every library. The table shows it in a line below the row. Nil means that
	// the measure has no such limit.
	bound     func(*stage) (sample, error)
	boundName string

	// boundMissing returns why this host cannot measure the bound, or an empty string if it can. Nil means that every host can.
	boundMissing func() string

	// boundRoot means that bound runs in its own namespaces.
	boundRoot bool

	// daemons means that run starts the side's program as daemons and runs in its own namespaces.
	daemons bool

	// rounds is the largest number of rounds. It keeps the measure within the minute that each measure may take. Zero means no
	// limit.
	rounds int

	// goal is a figure that this library should reach. With -goals, bench fails if the result is not half as good; see
	// checkGoals. Zero means that the measure has no such figure: then -goals checks only the asides that must be 0.
	goal float64

	// quick means that -goals without -only runs this measure.
	quick bool

	// spans is the extra time of a sample, as a multiple of effort.Transfer. Zero means no extra time.
	spans int
}

// single reports whether the measure has only one side.
func (m *measure) single() bool { return m.alike || m.alone }

// better returns the word in the JSON output that says which figures are better: lower or higher.
func (m *measure) better() string {
	if m.lower {
		return "lower"
	}
	return "higher"
}

// A sample is the result of one call of measure.run or measure.bound.
type sample struct {
	Value float64
	Aside []aside // figures that explain Value; the table prints their medians over all rounds below the row
}

// An aside is a figure that explains a sample.
type aside struct {
	Name, Unit string
	Value      float64

	Wrong bool `json:",omitempty"` // Value must be zero and is not
	Apart bool `json:",omitempty"` // the table compares the two sides' Value in a separate line
}

// An effort says how much work a sample does.
type effort struct {
	Warm   time.Duration // traffic before the measured span
	Span   time.Duration // the measured span
	Settle time.Duration // how long an idle process waits before its memory is measured
	Echoes int
	Peers  int

	Transfer time.Duration // the measured span of the family wan
}

// fullEffort lets each measure finish within a minute with the default number of rounds.
var fullEffort = effort{
	Warm:   400 * time.Millisecond,
	Span:   1200 * time.Millisecond,
	Settle: 30 * time.Second,
	Echoes: 5000,
	Peers:  10000,

	Transfer: 20 * time.Second,
}

// A stage holds the parameters and the resources of one sample.
type stage struct {
	effort
	lib     library
	program string // path of the side's daemon, if the measure uses daemons
	round   int    // from 0

	// rest tells the runner that this sample needs no more processor time, so another sample may begin.
	rest func()

	cuts, closers []func()

	sockets []*udp.Socket // the sockets of this library's devices
}

// atClose makes close call f. A process that ends after its one sample does not call close.
func (st *stage) atClose(f func()) { st.closers = append(st.closers, f) }

// atCut makes close call f before all functions that atClose registers. Such an f unblocks goroutines that would otherwise wait
// for ever.
func (st *stage) atCut(f func()) { st.cuts = append(st.cuts, f) }

// close calls the functions that atCut registered, and then, in reverse order, those that atClose registered.
func (st *stage) close() {
	for _, f := range st.cuts {
		f()
	}
	for i := len(st.closers) - 1; i >= 0; i-- {
		st.closers[i]()
	}
	st.cuts, st.closers = nil, nil
}

// A span is what one sample counted: the growth of the counter (n), the time that this took, and the processor time of this
// process.
type span struct {
	n         float64
	took, cpu time.Duration
}

var errNothingHappens = errors.New("nothing arrived within ten seconds")

// count sleeps for the duration warm, and then measures how much n grows in the duration during. If n does not grow, count
// measures for longer, up to about ten seconds.
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

// throughput returns a sample in Gbit/s from a span that counted bytes. Its asides are the processor time per GB, and then the
// asides in others.
func (s span) throughput(others []aside) sample {
	gigabytes := s.n / 1e9
	cpu := aside{Name: "cpu", Unit: "s/GB", Value: s.cpu.Seconds() / gigabytes}
	return sample{8 * gigabytes / s.took.Seconds(), append([]aside{cpu}, others...)}
}

// A library makes devices of one WireGuard implementation for the measures. The code for traffic, wire and timing is the same for
// both libraries.
type library interface {
	// landings is the number of receive buffers, called landings, that each end of a wire provides. See the type wire.
	landings() int

	// used is the number of peers to which memory/peer sends packets.
	used(st *stage) int

	// node brings up a device without peers.
	node(st *stage, c nodeConfig) (node, error)

	// stack brings up a device without peers over bind. A nil bind means loopback sockets. An in-process TCP/IP stack with the
	// address addr sends and receives the device's packets.
	stack(st *stage, key wireguard.PrivateKey, addr netip.Addr, bind wireguard.Bind) (node, network, error)

	// gateway brings up a device without peers over loopback sockets. The device forwards each TCP connection to a socket of the
	// host at target. A peer dials the address that gateway returns.
	gateway(st *stage, key wireguard.PrivateKey, target netip.AddrPort) (node, netip.AddrPort, error)
}

// A nodeConfig describes a device to make.
type nodeConfig struct {
	key   wireguard.PrivateKey
	plain *plain // source and sink of the device's plaintext packets
	end   *end   // carries the device's datagrams; nil means loopback sockets
	relay bool   // the node forwards received packets and does not use plain

	receivers int // sockets per address family, if the library can choose; 0 means the library's default

	byHand bool // only node.wipe advances the device's clock, if the library lets the bench replace the clock
}

// A node is a device that is up.
type node interface {
	// port returns the UDP port on which the device listens.
	port() uint16
	// plan returns a function that adds all peers in one call. plan prepares the call's input beforehand.
	plan(peers ...peer) func() error
	// become changes the private key of the device.
	become(key wireguard.PrivateKey) error
	// routes checks that the device routes the prefix of each peer to that peer.
	routes(peers []peer) error
	// wipe erases the session state of all peers, as the device does for a peer 540 seconds after the peer's last session began.
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
	// ping sends an ICMP echo request and returns the time until the reply arrives.
	ping(ctx context.Context, to netip.Addr) (time.Duration, error)
}
