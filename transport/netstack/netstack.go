// Package netstack gives a program network connections through a [wireguard.Device], using gVisor's TCP, UDP and ICMP. It needs
// neither privileges nor a network interface of the operating system.
//
//	n, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
//	d, err := wireguard.New(wireguard.Config{Tunnel: n, Bind: ..., ...})
//	err = d.Up()
//	c, err := n.Dial("tcp", "10.0.0.1:80")
//
// A [Net] has functions like those of package net. An http.Transport can use its DialContext, and an http.Server can
// serve a listener from its Listen.
//
// A Net behaves like package net. Tests check that by running the same calls against both. A Net differs in these points:
//
//   - It has no file descriptors. The methods File and SyscallConn and the Control functions are missing; use the method Endpoint
//     instead.
//   - It has no loopback interface. Packets to its own addresses reach the Net itself.
//   - It has one interface. Addresses need no zone, and ListenMulticastUDP takes no interface.
//   - It never returns an IPv4 address in its IPv6-mapped form. Connections of package net that serve both families do.
//   - Its errors explain more precisely why it refuses a call. The error of a dial that times out also matches
//     os.ErrDeadlineExceeded.
//
// An outbound packet passes conn.go, udp.go or message.go, gVisor, link.go (decides which goroutine sends) and split.go (fills
// the device's batch). An inbound packet passes receive.go (checks), coalesce.go (joins segments), gVisor and conn.go. The files
// dialer.go, dial.go, race.go, listen.go and keepalive.go do what package net does. A comment in resolve.go lists the files that
// look up names. group.go joins multicast groups. place.go and refuse.go contain the checks that refuse a call before the Net
// sends a packet. memory.go, portion.go and growth.go decide how large the buffers of TCP are. held.go counts all other memory
// that peers can fill; arrivals.go, reassemble.go and waiting.go allocate most of that memory.
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

// NICID is the number of a Net's only interface in its [Net.Stack]. The number is unusual, so a line of gVisor's log that
// contains the number is about a Net.
const NICID tcpip.NICID = 0x77670001

// A Config describes a Net. Addresses must be set. The zero value of any other field means its default. New copies the values
// that it needs.
type Config struct {
	// Addresses are the Net's own addresses: IPv4, IPv6 or both. The Net reaches all other addresses through the
	// tunnel.
	Addresses []netip.Addr

	// DNS lists the name servers, in order of preference. The Net sends its queries to them through the tunnel. If a server fails
	// or does not answer, the Net asks the next server, and avoids the failed server for a while. Without name servers, names do
	// not resolve.
	DNS []netip.Addr

	// Search lists the domains that the Net appends to a name: with the domain example.com, "host" becomes "host.example.com".
	// The Net appends nothing to a name that ends in a dot. A domain that begins with "~" is for systemd-resolved and has no
	// effect.
	Search []string

	// Ndots is how many dots a name must have for the Net to look it up first as it is, and then with the domains of Search. The
	// Net looks up a name with fewer dots first with these domains. Zero means 1, as in resolv.conf. With a negative number, the
	// Net looks up each name first as it is.
	Ndots int

	// DNSTimeout is how long all servers together have to answer a query. Zero means 10 seconds. If a server does not answer
	// within a second, the Net asks the next one. The Net waits for less than a second if the time would otherwise not suffice to
	// ask all servers.
	DNSTimeout time.Duration

	// MTU is the size of the largest packet, in bytes: 576 to 65535, and at least 1280 with an IPv6 address. Zero means 1420,
	// which leaves space for WireGuard's overhead in an outer packet of 1500 bytes, over IPv4 and IPv6.
	MTU int

	// Memory is a budget, in bytes, for the memory that peers can fill: at least 1 MiB. Zero means 64 MiB. The Net counts the
	// memory of each object including its overhead. These kinds of memory count:
	//
	//   - Buffers of TCP connections. A single busy connection may use all of the budget; several busy connections divide it. The
	//     Net moves memory from idle connections to connections that need it. Every connection has at least 29 KiB, even if that
	//     exceeds the budget.
	//   - Datagrams that the program has not read: at most a quarter. A UDPConn gets at most half of the part of that quarter
	//     that other UDPConns do not use, and at least 16 KiB.
	//   - Connections that wait for Accept: at most a quarter. A single peer may have half of that quarter, and at least four
	//     connections.
	//   - Half-open connections: at most an eighth, which listeners reserve. The first listener reserves half of that eighth, the
	//     second a quarter, and so on; each reserves at least 64 KiB, and at most 16 MiB.
	//   - Fragments: at most a sixteenth. A single peer may have half of that, and at least 64 KiB.
	//   - Packets that wait for Forward or in a UDPSource: at most a quarter, and never more than 16 MiB. A single peer may have
	//     half of that, and at least 64 KiB.
	//
	// If TCP connections use the whole budget, all other kinds together may use another eighth of it on top. Even then, each
	// UDPConn, peer and listener gets the minimum that this list gives. The budget also limits SetReadBuffer and SetWriteBuffer.
	// The budget does not count the endpoints themselves (about 7 KiB for each connection), the goroutines of flows about which
	// Forward has not yet decided, or the memory of endpoints that a program makes on [Net.Stack].
	Memory int

	// Forward makes the Net accept packets for addresses that are not its own, as a gateway does. The Net calls it, on a new
	// goroutine, for each TCP connection, UDP flow and ping that a peer begins to such an address. The function decides by
	// calling a method of the [Flow], and may go on to serve the connection. If it returns without a decision, the Net discards
	// the flow. Nil means that such packets are dropped. The Net always drops packets that no router may forward: packets with a
	// loopback, link-local, reserved or unspecified address, packets from one of the Net's addresses, and packets whose source is
	// also their destination. With Forward, New starts GOMAXPROCS more goroutines.
	Forward func(*Flow)

	// Forwarding sets the limits and timeouts of the flows that Forward serves.
	Forwarding Forwarding

	// Stack, if set, changes the options of the stack that has the Net's own addresses, before New makes that stack: for example,
	// RawFactory allows raw endpoints on [Net.Stack]. The option HandleLocal is true by default, so the Net can dial itself. But
	// with HandleLocal, a stack in promiscuous mode drops every packet, because the packet's source could be the stack's own
	// address. For promiscuous mode, set HandleLocal to false, or use Forward instead. gVisor promises no compatibility between its
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
// A Net is a [wireguard.Attacher]: the device does not read packets from the Net. Instead, the Net calls Device.Send, from the
// goroutine that writes to a connection, from a goroutine of gVisor, or from one that the Net starts. The Net drops packets while
// no device is attached, and while its device is down.
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

	life sync.RWMutex // read-locked while an endpoint is made; write-locked while Close closes done
	done chan struct{}
	once sync.Once
}

// New makes a Net. The error lists all faults of the Config c. New starts GOMAXPROCS goroutines for gVisor's TCP, and Close ends
// them.
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

// minReadBuffer is the smallest size of a receive buffer, in bytes. gVisor announces half of the buffer's size as the window, in
// units of at most 512 bytes; see maxWindow. If a window were less than two units, the connection would stop; see lowerSYN. The
// connection would also stop if out-of-order segments filled the buffer, because gVisor would then refuse the missing segment.
// gVisor lets out-of-order segments fill three quarters of the buffer, and the last of these segments may exceed that by its
// overhead. The remaining quarter must also suffice for the bytes that gVisor may count forever; see earlyRecv.
const minReadBuffer = floorRecv

// tune changes defaults of gVisor that do not fit a tunnel. The figures in the comments were measured on two shared cores, with
// bulk transfers between two Nets in one process, directly and through a simulated network with a delay and random loss.
func (n *Net) tune(s *stack.Stack) error {
	var (
		// CUBIC is for short paths, and for peers without selective acknowledgements; see setReno. For such a peer, with a round
		// trip of 20 ms and 0.01 % loss, CUBIC carries 370 Mbit/s and Reno 62 Mbit/s.
		congestion = tcpip.CongestionControlOption("cubic")
		// gVisor derives the unit of windows from the Max of receive buffers. Apart from that, these sizes apply only to endpoints
		// that the user makes on Stack, and to the handshake of a dialed connection. All other buffers get their sizes from the
		// budget.
		limit   = n.budget.windowLimit()
		receive = tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 64 << 10, Max: limit}
		send    = tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 64 << 10, Max: limit}
		// If this end closes a connection before the peer does, the stack keeps the connection's state (7 KiB) for 10 seconds
		// instead of a minute. If no other port is free, the stack reuses the connection's port earlier. Otherwise several
		// hundred connections a second to one server would use up all ports.
		wait  = tcpip.TCPTimeWaitTimeoutOption(10 * time.Second)
		reuse = tcpip.TCPTimeWaitReuseGlobal
	)
	// RACK is off. If a timeout occurs while many segments are in flight, gVisor's RACK marks all of them as lost and enters
	// recovery. But gVisor's count of outstanding segments ignores these marks, so gVisor sends nothing until the next timeout,
	// and then only two segments per timeout. Without RACK, recovery follows RFC 6675. Selective acknowledgements (SACK) stay on.
	// gVisor reserves 28 bytes of each segment for the SACK option.
	recovery := tcpip.TCPRecovery(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&congestion, &receive, &send, &wait, &reuse, &recovery} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("netstack: %w", systemError(fmt.Sprintf("%T", o), err))
		}
	}
	s.SetICMPLimit(math.MaxFloat64) // no limit, because it would count all peers together; see mayComplain
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

// Stack returns gVisor's stack, for features that a Net does not offer: raw endpoints, options, statistics. Its only interface
// has the number NICID. Close closes all endpoints that a program makes on the stack. gVisor promises no compatibility between
// its versions, so this module promises none for Stack and NICID.
//
// Code that handles packets in gVisor, such as a transport handler, must not assume that a packet lies in one slice of memory.
// The headers of a received packet are in one of gVisor's views, and the payload is in others, so
// header.UDP(p.Network().Payload()) panics on a datagram. Read the transport header with p.TransportHeader().Slice() and the
// payload with p.Data(). Copy the bytes that must outlive the call. The Net may join several segments of a TCP connection into
// one packet that is larger than the MTU. The TCP checksum of such a packet is that of its first segment; the Net has checked the
// checksum of each segment.
//
// Do not remove or disable the interface, because the Net has no other. The Net keeps gVisor's log lines about its packets off
// standard error. A program that calls SetTarget of gVisor's package log gets all lines.
func (n *Net) Stack() *stack.Stack { return n.stack }

// Stats counts the packets that a Net dropped since New, and the memory of its connections. It is a comparable value.
// gVisor counts its own drops in Stack().Stats().
type Stats struct {
	Detached  uint64 // outbound packets dropped because no device was attached
	Full      uint64 // outbound packets dropped because the queue was full and the sending goroutine must not wait
	Malformed uint64 // received packets dropped: not a whole IP, TCP or UDP packet, or with an IPv4 loopback address
	Checksum  uint64 // received packets dropped because the checksum of IPv4, TCP or UDP was wrong
	// Errors counts received ICMP errors, and received packets that may contain an ICMP error, that the Net dropped because too
	// many others were waiting. It also counts ICMP errors that the Net did not send because packets of the same peer had caused
	// more than 100 per second.
	Errors uint64

	// Forged counts ICMP errors received and dropped because they cannot be true: they do not come from the peer to which the
	// quoted packet was sent, they are about a TCP segment that is not in flight, or they say that a packet was too big although
	// it was not.
	Forged uint64

	// Memory is how many bytes of Config.Memory are used now: the sizes of the buffers of TCP connections, plus the memory of
	// half-open connections, connections that wait for Accept, datagrams that the program has not read, fragments, and packets
	// that wait for Forward or in a UDPSource. Memory falls when connections close, and when the Net shrinks the buffers of idle
	// connections.
	Memory uint64

	// DatagramsDropped counts received datagrams that the Net dropped because the program did not read fast enough, or did not
	// decide fast enough about their flow.
	DatagramsDropped uint64
	// FragmentsDropped counts received fragments, and partly received packets, that the Net dropped because their peer had too
	// many others waiting, or because the missing fragments did not arrive within 30 seconds.
	FragmentsDropped uint64
	// ConnectionsDropped counts SYNs to a listener that the Net dropped, and connections that it reset, because too many
	// connections of the same peer were waiting for Accept.
	ConnectionsDropped uint64

	// The following counters are zero without Config.Forward.

	Martian      uint64 // received packets dropped: no router may forward them, or their source is in no peer's AllowedIPs
	Hairpin      uint64 // received packets dropped: their destination is in the AllowedIPs of the peer that sent them
	FlowsDropped uint64 // received packets dropped: they would begin a flow beyond the limits of Config.Forwarding
}

// Stats returns the counters. Each counter is exact, but Stats does not read all of them at the same instant. Stats may be called
// after Close.
func (n *Net) Stats() Stats {
	d := &n.link.drops
	return Stats{
		Detached: d.detached.Load(), Full: d.full.Load(), Malformed: d.malformed.Load(),
		Checksum: d.checksum.Load(), Errors: d.errors.Load(), Memory: n.budget.used(),
		Martian: d.martian.Load(), Hairpin: d.hairpin.Load(), FlowsDropped: d.flows.Load(), DatagramsDropped: d.datagrams.Load(),
		FragmentsDropped: d.fragments.Load(), ConnectionsDropped: d.connections.Load(), Forged: d.forged.Load(),
	}
}

// Close resets all connections and ends all goroutines of the Net. All blocked calls then fail with an error that wraps
// net.ErrClosed. A second call of Close does nothing. Device.Close calls Net.Close.
func (n *Net) Close() error {
	n.once.Do(func() {
		n.life.Lock()
		close(n.done)
		n.life.Unlock()

		// closeStack needs the locks of endpoints. Senders that wait because the link's queue is full hold such locks; refuseData
		// wakes these senders.
		n.link.refuseData()
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
