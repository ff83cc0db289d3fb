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
	defaultIdle = 30 * time.Second // as on Linux, for a flow without an answer
	maxMappings = 1 << 14
	natPort     = 20000 // the first port of a lease; more ports follow it than there can be leases
)

// A NATConfig says what a new NAT is. Addrs must be set; the zero value of any other field means its default.
type NATConfig struct {
	// Addrs are the addresses outside: one IPv4 address, one IPv6 address, or both. Datagrams of a family without an
	// address do not pass.
	Addrs []netip.Addr

	// Idle is how long a mapping lives without a datagram in either direction. Zero means 30 s. A negative value means for
	// ever.
	Idle time.Duration

	// Symmetric gives a socket behind the NAT a different outside port for each destination. Otherwise the socket has
	// one outside port for all destinations.
	Symmetric bool
}

// A NAT hides the ends behind it. Their datagrams come from an address of the NAT, at a port that belongs to a mapping,
// and only a place that was sent something through a mapping can answer through it. Ends behind one NAT reach each other
// directly. Their addresses mean nothing elsewhere, and may be in use there too. Network.NewNAT makes it. It must not be
// copied. All methods are safe for concurrent use.
type NAT struct {
	network *Network
	config  NATConfig // Addrs change with Rebind

	// network.mu guards the fields below.
	out    map[flow]*mapping // by inside and remote
	in     map[flow]*mapping // by outside and remote
	leases map[flow]*lease   // by inside, and by remote if the NAT is symmetric
	ports  map[uint16]*lease // by port outside
	port   uint16            // port of the newest lease
}

// A flow is a socket's address, inside or outside the NAT, and the address of its remote.
type flow struct{ local, remote netip.AddrPort }

// A mapping lets one flow through. A lease is the mapping's port outside. Several mappings share a lease unless the NAT
// is symmetric. Expired mappings and leases stay in their tables until the room is needed.
type mapping struct {
	*lease
	remote netip.AddrPort
	last   time.Time // when the mapping last let a datagram through
}

type lease struct {
	inside, outside netip.AddrPort
	last            time.Time // the latest time of its mappings
}

func (m *mapping) use(now time.Time) { m.last, m.lease.last = now, now }

// NewNAT adds a NAT without ends behind it. It panics if an address is not a host's, or is in use.
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

// Rebind forgets all mappings, as a NAT does when it restarts. No datagram gets in before one has got out, and outbound
// datagrams then have another port. If addresses are given, the NAT has these from then on. If one of them is in use,
// Rebind fails and changes nothing.
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

// Mappings returns how many mappings are alive.
func (nat *NAT) Mappings() int {
	nat.network.mu.Lock()
	defer nat.network.mu.Unlock()
	nat.expire(time.Now())
	return len(nat.out)
}

// move gives the NAT new addresses. network.mu is held.
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

// translate gives f the source that it has outside of its sender's NAT, and reports whether the NAT lets f out. n.mu is
// held.
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

// open returns the outside address of a flow's mapping. It makes the mapping or keeps it alive.
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

// mapping makes a mapping, or returns nil if there is no room or no address for it.
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

// choosePort goes through all ports in turn, so that a flow whose mapping expired gets another port.
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

// route returns the socket that f is for and the address of the socket. If the destination is a NAT, route goes through
// its mapping and keeps the mapping alive. blocked means that there is no mapping. n.mu is held.
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

// peek returns the end that f would reach now if every NAT let it through, or nil. n.mu is held.
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
