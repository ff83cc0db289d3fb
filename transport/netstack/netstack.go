// Package netstack gives a program network connections through a [wireguard.Device], using gVisor's TCP, UDP and ICMP.
// It needs neither privileges nor an interface of the system.
//
//	n, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
//	d, err := wireguard.New(wireguard.Config{Tunnel: n, Bind: ..., ...})
//	err = d.Up()
//	c, err := n.Dial("tcp", "10.0.0.1:80")
//
// A [Net] has functions like those of package net. An http.Transport can use its DialContext, and an http.Server can
// serve a listener from its Listen.
//
// Tests run the same calls against package net and against a Net. A Net differs in these points:
//
//   - It has no file descriptors. File, SyscallConn and the Control functions are missing, and Endpoint takes their place.
//   - It has no loopback interface. Its own addresses reach the Net itself.
//   - It has one interface. Addresses need no zone, and ListenMulticastUDP takes no interface.
//   - It never shows an IPv4 address mapped into IPv6, as connections of package net do if they have both families.
//   - Its errors say more about what it refuses. The error of a dial that takes too long is also os.ErrDeadlineExceeded.
//
// An outbound packet passes conn.go, udp.go or message.go, gVisor, link.go (decides which goroutine sends) and split.go (fills the
// device's batch). An inbound packet passes receive.go (checks), coalesce.go (joins segments), gVisor and conn.go. The
// files dialer.go, dial.go, race.go, listen.go and keepalive.go do what package net does. resolve.go lists the files that look up
// names. group.go joins multicast groups. place.go and refuse.go hold what the Net refuses before it sends a packet. memory.go and
// growth.go decide how large the buffers of TCP are. held.go counts all other memory that peers can fill. arrivals.go,
// reassemble.go and waiting.go hold most of it.
package netstack

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// NICID is the number of a Net's only interface in its [Net.Stack]. The number is unusual so that a line of gVisor's log
// shows whether it is about a Net.
const NICID tcpip.NICID = 0x77670001

// A Config describes a Net. Addresses must be set. The zero value of any other field means its default. New copies what
// it needs.
type Config struct {
	// Addresses are the Net's own addresses: IPv4, IPv6 or both. The Net reaches all other addresses through the
	// tunnel.
	Addresses []netip.Addr

	// DNS lists the name servers, in order of preference. The Net asks them through the tunnel. If a server fails or
	// does not answer, the Net asks the next one, and avoids that server for a while. Without name servers, names do not
	// resolve.
	DNS []netip.Addr

	// Search lists the domains that complete a name, as "host" becomes "host.example.com". A name that ends in a dot is
	// complete. A domain that begins with "~" is for systemd-resolved and has no effect. If Search is empty, all names
	// are complete.
	Search []string

	// Ndots is how many dots a name must have to be tried first as it is, and then with the domains of Search. A name
	// with fewer dots is tried with these domains first. Zero means 1, as in resolv.conf. A negative number means that
	// each name is tried first as it is.
	Ndots int

	// DNSTimeout is how long the servers have to answer a question. Zero means 10 seconds. The Net asks the next server
	// when one has not answered for a second, or sooner if there would not be time for all of them.
	DNSTimeout time.Duration

	// MTU is the size of the largest packet, in bytes: 576 to 65535, and at least 1280 with an IPv6 address. Zero means 1420,
	// which leaves room for WireGuard's overhead in a packet of 1500 bytes over IPv4 and IPv6.
	MTU int

	// Memory is a budget, in bytes, for the memory that peers can fill: at least 1 MiB. Zero means 64 MiB. It counts what is held,
	// with the overhead of each object:
	//
	//   - Buffers of TCP connections. A single busy connection may use all of the budget, and many share it. Idle connections give
	//     up their buffers to connections that need them. Every connection has at least 29 KiB, even if that exceeds the budget.
	//   - Datagrams that nobody has read: at most a quarter. A UDPConn gets at most half of what others leave of that quarter, and
	//     at least 16 KiB.
	//   - Connections that wait for Accept: at most a quarter. A peer alone has half of that, and at least four connections.
	//   - Half-open connections: at most an eighth, which listeners reserve. The first listener takes half, the second a quarter,
	//     and so on; each takes at least 64 KiB, and at most 16 MiB.
	//   - Fragments: at most a sixteenth. A peer alone has half of that, and at least 64 KiB.
	//   - Packets that wait for Forward or in a UDPSource: at most a quarter, and never more than 16 MiB. A peer alone has half
	//     of that, and at least 64 KiB.
	//
	// While TCP connections have the whole budget, all other kinds together may take an eighth more, and each holder still gets the
	// least that this list gives it. SetReadBuffer and SetWriteBuffer are bound by the budget, too. The budget does not count the
	// endpoints themselves (about 7 KiB for each connection), the goroutines of flows without a decision, or the memory of
	// endpoints that a program makes on [Net.Stack].
	Memory int

	// Forward makes the Net take packets for addresses that are not its own, as a gateway does. The Net calls it, on a
	// new goroutine, for each TCP connection, UDP flow and ping that a peer begins to such an address. The function
	// decides by calling a method of the [Flow], and may go on to serve the connection. If it returns without a
	// decision, the Net discards the flow. Nil means that such packets are dropped. Packets that no router may forward
	// are dropped in any case: with a loopback, link-local, reserved or unspecified address, from one of the Net's
	// addresses, or to their own source. With Forward, New starts GOMAXPROCS more goroutines.
	Forward func(*Flow)

	// Forwarding has the bounds and timers of Forward.
	Forwarding Forwarding

	// Stack, if set, changes the options of the stack that has the Net's own addresses, before New makes it: for
	// example, RawFactory allows raw endpoints on [Net.Stack]. HandleLocal is true, which lets the Net dial itself and
	// makes promiscuous mode useless: gVisor then drops every packet, because its source could be the stack's own
	// address. Set it to false for promiscuous mode, or use Forward. gVisor promises no compatibility between its
	// versions, so this module promises none for Stack.
	Stack func(*stack.Options)
}

const (
	defaultMTU = 1420
	minMTU     = 576
	maxMTU     = 65535
)

func (c *Config) mtu() int {
	if c.MTU == 0 {
		return defaultMTU
	}
	return c.MTU
}

// check returns all errors in c, or nil.
func (c *Config) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf("netstack: "+format, args...)) }
	if len(c.Addresses) == 0 {
		wrong("Config.Addresses is empty: name the address that the peer routes to this end, as in 10.0.0.2")
	}
	if c.Forward == nil && c.Forwarding != (Forwarding{}) {
		wrong("Config.Forwarding is set without Config.Forward: set both or none")
	}
	errs = append(errs, c.Forwarding.check()...)
	has6 := false
	seen := make(map[netip.Addr]bool)
	for i, a := range c.Addresses {
		has6 = has6 || a.Is6() && !a.Is4In6()
		switch {
		case !a.IsValid():
			wrong("Config.Addresses[%d] is not set", i)
		case a.Is4In6():
			wrong("Config.Addresses[%d] is %v: write an IPv4 address as such, not mapped into IPv6", i, a)
		case a.Zone() != "":
			wrong("Config.Addresses[%d] is %v: remove the zone", i, a)
		case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
			wrong("Config.Addresses[%d] is %v: want the address of one host that can be reached from outside", i, a)
		case seen[a]:
			wrong("Config.Addresses[%d] repeats %v: name each address once", i, a)
		}
		seen[a] = true
	}
	for i, a := range c.DNS {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			wrong("Config.DNS[%d] is %v: want the address of one name server behind the tunnel, without a zone", i, a)
		}
	}
	for i, s := range c.Search {
		if d := searchDomain(s); d != "" && !validName(d) {
			wrong("Config.Search[%d] is %q: want a domain, as in example.com", i, s)
		}
	}
	if c.DNSTimeout < 0 {
		wrong("Config.DNSTimeout is %v: want a time, or 0 for %v", c.DNSTimeout, defaultDNSTimeout)
	}
	if m := c.memory(); m < minMemory {
		wrong("Config.Memory is %d bytes: want at least %d (1 MiB), or 0 for %d (64 MiB)", m, minMemory, defaultMemory)
	}
	switch mtu := c.mtu(); {
	case mtu < minMTU || mtu > maxMTU:
		wrong("Config.MTU is %d: want %d to %d, or 0 for %d", mtu, minMTU, maxMTU, defaultMTU)
	case has6 && mtu < header.IPv6MinimumMTU:
		wrong("Config.MTU is %d: an IPv6 address needs at least %d (RFC 8200, section 5)", mtu, header.IPv6MinimumMTU)
	}
	return errors.Join(errs...)
}

// A Net is a network stack inside the program, and the [wireguard.Tunnel] of the device that connects it to peers. New
// makes it. It is safe for concurrent use and must not be copied.
//
// A Net is a [wireguard.Attacher]: the device does not read it. It calls Device.Send from the goroutine that writes to
// a connection, from a goroutine of gVisor, or from one that the Net starts. It drops packets while no device is
// attached, and while its device is down.
type Net struct {
	stack    *stack.Stack
	link     *link
	mtu      int
	addrs    []netip.Addr
	has4     bool
	has6     bool
	resolver resolver
	pings    pings
	places   places
	budget   *budget

	life sync.RWMutex // read-held while an endpoint is made; write-held to close done
	done chan struct{}
	once sync.Once
}

// New makes a Net. The error lists everything that is wrong with c. New starts GOMAXPROCS goroutines for gVisor's TCP,
// and Close ends them.
func New(c Config) (*Net, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	options := stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		HandleLocal:        true,
	}
	if c.Stack != nil {
		c.Stack(&options)
	}
	n := &Net{
		stack: stack.New(options),
		mtu:   c.mtu(),
		addrs: append([]netip.Addr(nil), c.Addresses...),
		done:  make(chan struct{}),

		budget: newBudget(c.memory()),
	}
	n.resolver.init(n, &c)
	if err := n.setUp(&c); err != nil {
		_ = n.Close()
		return nil, err
	}
	return n, nil
}

// setUp makes the interface with its addresses and routes.
func (n *Net) setUp(c *Config) error {
	n.link = newLink(n.mtu, n)
	n.link.cookies = n.stack.Stats().TCP.ListenOverflowSynCookieRcvd
	if c.Forward != nil {
		var err error
		if n.link.forward, err = newForwarder(n, c); err != nil {
			return err
		}
	}
	if err := n.tune(n.stack); err != nil {
		return err
	}
	if err := n.stack.CreateNICWithOptions(NICID, n.link, stack.NICOptions{Name: "wg", QDisc: n.link}); err != nil {
		return fmt.Errorf("netstack: %w", systemError("create interface", err))
	}
	if err := n.link.own.init(n.stack); err != nil {
		return err
	}
	for _, a := range n.addrs {
		err := n.stack.AddProtocolAddress(NICID, tcpip.ProtocolAddress{
			Protocol:          protocolOf(a),
			AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{})
		if err != nil {
			return fmt.Errorf("netstack: %w", systemError("address "+a.String(), err))
		}
		n.has4 = n.has4 || a.Is4()
		n.has6 = n.has6 || a.Is6()
	}
	if n.has4 {
		n.stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: NICID})
	}
	if n.has6 {
		n.stack.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: NICID})
	}
	return nil
}

// minReadBuffer is the smallest size of a receive buffer, in bytes. gVisor announces half a buffer as the window, in units of
// at most 512 bytes; see maxWindow. A buffer that announced less than two units would stop its connection; see lowerSYN. So would a
// buffer that out-of-order segments fill, because the missing segment then finds no room. gVisor lets out-of-order segments take
// three quarters of the buffer, and the last of them may exceed that by its overhead. The remaining quarter also has to hold
// the bytes that gVisor may take for good; see earlyRecv.
const minReadBuffer = floorRecv

// tune changes defaults of gVisor that do not fit a tunnel. The figures were measured on two shared cores: bulk between
// two Nets in one process, and through a wire with a delay and random loss.
func (n *Net) tune(s *stack.Stack) error {
	var (
		// This is for short paths, and for peers without selective acknowledgements; see setReno. For such a peer behind 20 ms
		// and 0.01 % loss, CUBIC carries 370 Mbit/s and Reno 62.
		congestion = tcpip.CongestionControlOption("cubic")
		// gVisor derives the unit of windows from the largest receive buffer. Otherwise these sizes are for endpoints that
		// the user makes on Stack, and for the handshake of a dialed connection. See budget for all other connections.
		limit   = n.budget.windowLimit()
		receive = tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 64 << 10, Max: limit}
		send    = tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 64 << 10, Max: limit}
		// After this end closes a connection first, the stack keeps its state (7 KiB) for this long instead of a
		// minute. If no other port is free, it reuses the connection's port earlier. Otherwise several hundred
		// connections a second to one server would use up all ports.
		wait  = tcpip.TCPTimeWaitTimeoutOption(10 * time.Second)
		reuse = tcpip.TCPTimeWaitReuseGlobal
	)
	// RACK is off. After a timeout in the midst of a large flight, gVisor's RACK marks the whole flight as lost and enters
	// recovery, but the count of outstanding segments ignores these marks. So it sends nothing until the next timeout, and
	// then only two segments per timeout. Without RACK, recovery follows RFC 6675. SACK stays on. Its option costs 28 bytes
	// of each segment.
	recovery := tcpip.TCPRecovery(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&congestion, &receive, &send, &wait, &reuse, &recovery} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("netstack: %w", systemError(fmt.Sprintf("%T", o), err))
		}
	}
	s.SetICMPLimit(math.MaxFloat64) // no limit, because all peers would share it; see mayComplain
	return nil
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// Attach joins n to d. Only wireguard.New calls it.
func (n *Net) Attach(d *wireguard.Device) { n.link.attach(d) }

// MTU returns the size of the largest packet, in bytes.
func (n *Net) MTU() int { return n.mtu }

// Stack returns gVisor's stack, for features that a Net does not offer: raw endpoints, options, statistics. Its only
// interface is NICID. Close closes the endpoints that were made on it. gVisor promises no compatibility between its
// versions, so this module promises none for Stack and NICID.
//
// Code that handles packets in gVisor, such as a transport handler, must not assume that a packet is one piece of memory. The
// headers of a packet that arrived lie in one view and the payload in others, so header.UDP(p.Network().Payload()) panics on a
// datagram. Read the transport header with p.TransportHeader().Slice() and the payload with p.Data(). Copy what must outlive the
// call. Several segments of a TCP connection may arrive as one packet, larger than the MTU, whose TCP checksum is that of its first
// segment: the Net has checked the checksum of each segment.
//
// Do not remove or disable the interface, because the Net has no other. gVisor's log lines about packets of a Net are not
// written to standard error. A program that calls SetTarget of gVisor's package log gets all lines.
func (n *Net) Stack() *stack.Stack { return n.stack }

// Stats counts the packets that a Net dropped since New, and the memory of its connections. It is a comparable value.
// gVisor counts its own drops in Stack().Stats().
type Stats struct {
	Detached  uint64 // packets to send, dropped because no device was attached
	Full      uint64 // packets to send, dropped because the queue was full and their sender cannot wait
	Malformed uint64 // packets received and dropped: not a whole IP, TCP or UDP packet, or with an IPv4 loopback address
	Checksum  uint64 // packets received and dropped because of the checksum of IPv4, TCP or UDP
	// Errors counts received ICMP errors, and packets that may hide one, that were dropped because too many others waited. It also
	// counts ICMP errors that were not sent because their peer had caused more than 100 per second.
	Errors uint64

	// Forged counts ICMP errors received and dropped because they cannot be true: they do not come from the peer to which the
	// quoted packet was sent, they are about a TCP segment that is not in flight, or they say that a packet was too big, and it was
	// not.
	Forged uint64

	// Memory is how many bytes of Config.Memory are used now: what the buffers of TCP connections may fill, and what half-open
	// connections, connections that wait for Accept, datagrams that nobody has read, fragments and packets that wait for Forward
	// or in a UDPSource hold. It falls when connections close, and when idle connections give up their buffers.
	Memory uint64

	// DatagramsDropped counts datagrams received and dropped because the program does not read fast enough, or does not decide
	// fast enough about their flow.
	DatagramsDropped uint64
	// FragmentsDropped counts fragments received, and packets of which fragments had arrived, that were dropped: their peer had
	// too many others, or the rest did not arrive within 30 seconds.
	FragmentsDropped uint64
	// ConnectionsDropped counts SYNs to a listener of the Net that were dropped, and connections that were reset, because too
	// many connections of the same peer waited for Accept.
	ConnectionsDropped uint64

	// These are zero without Config.Forward.

	Martian      uint64 // packets received and dropped: no router may forward them, or their source is no peer's
	Hairpin      uint64 // packets received and dropped: their destination is in the AllowedIPs of the peer that sent them
	FlowsDropped uint64 // packets received and dropped: they would begin a flow beyond the bounds of Config.Forwarding
}

// Stats returns the counters. Each is exact, but they are not of one instant. It may be called after Close.
func (n *Net) Stats() Stats {
	d := &n.link.drops
	return Stats{
		Detached: d.detached.Load(), Full: d.full.Load(), Malformed: d.malformed.Load(),
		Checksum: d.checksum.Load(), Errors: d.errors.Load(), Memory: n.budget.used(),
		Martian: d.martian.Load(), Hairpin: d.hairpin.Load(), FlowsDropped: d.flows.Load(), DatagramsDropped: d.datagrams.Load(),
		FragmentsDropped: d.fragments.Load(), ConnectionsDropped: d.connections.Load(), Forged: d.forged.Load(),
	}
}

// Close resets all connections and ends all goroutines. All calls that wait then fail with an error that wraps net.ErrClosed.
// Closing again does nothing. Device.Close calls it.
func (n *Net) Close() error {
	n.once.Do(func() {
		n.life.Lock()
		close(n.done)
		n.life.Unlock()

		n.link.refuseData() // senders that wait for room hold locks that closeStack needs to abort endpoints
		if n.link.forward != nil {
			n.link.forward.close()
		}
		closeStack(n.stack)
		n.link.close()
		n.link.accepting.Wait()
		n.link.running.Wait()
	})
	return nil
}

// isClosed reports whether Close was called.
func (n *Net) isClosed() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}
