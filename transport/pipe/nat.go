package pipe

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

const (
	defaultIdle = 30 * time.Second // like Linux for a UDP flow without an answer
	maxMappings = 1 << 14
	natPort     = 20000 // the lowest port that a NAT assigns; from it to 65535 there are more than maxMappings ports
)

// A NATConfig configures a new NAT. Addrs must be set. The zero value of any other field means its default.
type NATConfig struct {
	// Addrs are the public addresses of the NAT: one IPv4 address, one IPv6 address, or both. Datagrams of a family for which
	// the NAT has no address do not pass.
	Addrs []netip.Addr

	// Idle is how long a mapping exists without a datagram in either direction. Zero means 30 s. A negative value means for
	// ever.
	Idle time.Duration

	// Symmetric gives a socket behind the NAT a different public port for each destination. Otherwise the socket has one public
	// port for all destinations.
	Symmetric bool
}

// A NAT translates the addresses of the ends behind it. For each destination to which a socket behind the NAT sends, the NAT
// makes a mapping. The datagrams then come from an address of the NAT, and from the port of the mapping. Only that destination
// can send datagrams through the mapping to the socket. Ends behind the same NAT reach each other directly. Their addresses are
// private, so other ends may have the same ones. Network.NewNAT makes a NAT. It must not be copied. All methods are safe for
// concurrent use.
type NAT struct {
	network *Network
	config  NATConfig // Rebind changes Addrs

	// network.mu guards the fields below.
	out    map[flow]*mapping // the mappings by private address and remote
	in     map[flow]*mapping // the mappings by public address and remote
	leases map[flow]*lease   // the leases by private address, and also by remote if the NAT is symmetric
	ports  map[uint16]*lease // the leases by public port
	port   uint16            // port of the newest lease
}

// A flow holds the address of a socket behind the NAT (the private one or its translation) and the address of the other socket,
// the remote.
type flow struct{ local, remote netip.AddrPort }

// A mapping permits the datagrams of one flow in both directions. Its lease holds the private address of the socket and the
// public address and port into which the NAT translates it. In a symmetric NAT each mapping has a separate lease. Otherwise all
// mappings of a socket have the same lease. Expired mappings and leases stay in the tables until expire is called.
type mapping struct {
	*lease
	remote netip.AddrPort
	last   time.Time // when the mapping last let a datagram through
}

// A lease translates the address inside of a socket behind the NAT to the public address outside. Both include the port.
type lease struct {
	inside, outside netip.AddrPort
	last            time.Time // the latest value of last in the mappings with this lease
}

func (m *mapping) use(now time.Time) { m.last, m.lease.last = now, now }

// NewNAT adds a NAT without ends behind it. It panics if an address is in use, or cannot be the address of one host.
func (n *Network) NewNAT(c NATConfig) *NAT {
	nat := &NAT{network: n, config: c, port: natPort - 1}
	nat.forget()
	nat.config.Addrs = nil
	if nat.config.Idle == 0 {
		nat.config.Idle = defaultIdle
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := nat.move(c.Addrs); err != nil {
		panic(err)
	}
	n.settle()
	return nat
}

// NewEnd adds an end behind the NAT; see Network.NewEnd.
func (nat *NAT) NewEnd(addrs ...netip.Addr) *End {
	return nat.network.newEnd(nat, addrs)
}

// Rebind deletes all mappings, as a NAT does when it restarts. A socket behind the NAT then receives nothing until it sends
// again, and its datagrams then have another public port. If addresses are given, they replace the NAT's addresses. If one of
// the given addresses is in use, Rebind fails and changes nothing.
func (nat *NAT) Rebind(addrs ...netip.Addr) error {
	nat.network.mu.Lock()
	defer nat.network.mu.Unlock()
	if len(addrs) > 0 {
		if err := nat.move(addrs); err != nil {
			return err
		}
	}
	nat.forget()
	return nil
}

func (nat *NAT) forget() {
	nat.out, nat.in = make(map[flow]*mapping), make(map[flow]*mapping)
	nat.leases, nat.ports = make(map[flow]*lease), make(map[uint16]*lease)
}

// Mappings returns how many mappings have not expired.
func (nat *NAT) Mappings() int {
	nat.network.mu.Lock()
	defer nat.network.mu.Unlock()
	nat.expire(time.Now())
	return len(nat.out)
}

// move gives the NAT new addresses. If it fails, it changes nothing. The caller holds network.mu.
func (nat *NAT) move(addrs []netip.Addr) error {
	n := nat.network
	var errs []error
	for _, a := range addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			errs = append(errs, fmt.Errorf("pipe: address %v of a NAT: want the IPv4 or IPv6 address of one host", a))
		}
		other := n.nats[a]
		if other != nil && other != nat || slices.ContainsFunc(n.ends, func(e *End) bool {
			return e.behind == nil && slices.Contains(e.addrs, a)
		}) {
			errs = append(errs, fmt.Errorf("pipe: address %v of a NAT is in use", a))
		}
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	for _, a := range nat.config.Addrs {
		delete(n.nats, a)
	}
	nat.config.Addrs = slices.Clone(addrs)
	for _, a := range addrs {
		n.nats[a] = nat
	}
	return nil
}

// translate replaces the source of f by its public address, unless the destination is behind the same NAT as the sender. It
// reports whether the sender's NAT permits f. behind is the sender's NAT, or nil if the sender is in the public network. The
// caller holds n.mu.
func (n *Network) translate(f *flight, behind *NAT, now time.Time) bool {
	if behind == nil {
		return true
	}
	if n.sockets[place{behind, f.To}] != nil {
		f.scope = behind
		return true
	}
	outside, ok := behind.open(f.From, f.To, now)
	if ok {
		f.From = outside
	}
	return ok
}

// open returns the public address of the mapping from inside to remote. It makes the mapping if necessary, and restarts its
// idle time.
func (nat *NAT) open(inside, remote netip.AddrPort, now time.Time) (outside netip.AddrPort, ok bool) {
	m := nat.out[flow{inside, remote}]
	if m == nil || nat.dead(m.last, now) {
		if m = nat.mapping(inside, remote, now); m == nil {
			return outside, false
		}
	}
	m.use(now)
	return m.outside, true
}

// mapping makes a mapping. It returns nil if there are too many mappings, or if the NAT has no address of the remote's family.
func (nat *NAT) mapping(inside, remote netip.AddrPort, now time.Time) *mapping {
	if len(nat.out) >= maxMappings {
		if nat.expire(now); len(nat.out) >= maxMappings {
			return nil
		}
	}
	of := flow{inside, remote}
	if !nat.config.Symmetric {
		of.remote = netip.AddrPort{}
	}
	l := nat.leases[of]
	if l == nil || nat.dead(l.last, now) {
		at := slices.IndexFunc(nat.config.Addrs, func(a netip.Addr) bool { return a.Is4() == remote.Addr().Is4() })
		if at < 0 {
			return nil
		}
		l = &lease{inside: inside, outside: netip.AddrPortFrom(nat.config.Addrs[at], nat.choosePort(now))}
		nat.leases[of], nat.ports[l.outside.Port()] = l, l
	}
	m := &mapping{lease: l, remote: remote}
	nat.out[flow{inside, remote}], nat.in[flow{l.outside, remote}] = m, m
	return m
}

// choosePort returns a free public port. It tries the ports in ascending order, beginning after the last one that it returned,
// so that a flow whose mapping has expired gets another port.
func (nat *NAT) choosePort(now time.Time) uint16 {
	for {
		if nat.port++; nat.port < natPort {
			nat.port = natPort
		}
		if l := nat.ports[nat.port]; l == nil || nat.dead(l.last, now) {
			return nat.port
		}
	}
}

func (nat *NAT) dead(last, now time.Time) bool {
	return nat.config.Idle > 0 && now.Sub(last) >= nat.config.Idle
}

func (nat *NAT) expire(now time.Time) {
	maps.DeleteFunc(nat.out, func(_ flow, m *mapping) bool { return nat.dead(m.last, now) })
	maps.DeleteFunc(nat.in, func(_ flow, m *mapping) bool { return nat.dead(m.last, now) })
	maps.DeleteFunc(nat.leases, func(_ flow, l *lease) bool { return nat.dead(l.last, now) })
	maps.DeleteFunc(nat.ports, func(_ uint16, l *lease) bool { return nat.dead(l.last, now) })
}

// route returns the socket that f must be delivered to, and the address of that socket. If the destination is an address of a
// NAT, route finds the socket with the help of the mapping, and restarts the mapping's idle time. blocked means that the NAT
// has no mapping for f. The caller holds n.mu.
func (n *Network) route(f *flight, now time.Time) (to *socket, at netip.AddrPort, blocked bool) {
	if to = n.sockets[place{f.scope, f.To}]; to != nil || f.scope != nil {
		return to, f.To, false
	}
	nat := n.nats[f.To.Addr()]
	if nat == nil {
		return nil, f.To, false
	}
	m := nat.in[flow{f.To, f.From}]
	if m == nil || nat.dead(m.last, now) {
		return nil, f.To, true
	}
	m.use(now)
	return n.sockets[place{nat, m.inside}], m.inside, false
}

// peek returns the end that f would reach now if every NAT permitted it, or nil if there is no such end. The caller holds n.mu.
func (n *Network) peek(f *flight) *End {
	if to := n.sockets[place{f.scope, f.To}]; to != nil {
		return to.end
	}
	if nat := n.nats[f.To.Addr()]; nat != nil && f.scope == nil {
		if l := nat.ports[f.To.Port()]; l != nil && l.outside == f.To {
			if to := n.sockets[place{nat, l.inside}]; to != nil {
				return to.end
			}
		}
	}
	return nil
}
