package conf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	wireguard "github.com/seed-86b749af/wireguard"
)

// Validate checks f as a whole. Its error joins an [Error] for each peer without a key, with another peer's key or with the
// interface's own, for each address that the interface has twice, and for each value that cannot be written. It does not look
// for unknown keys; see [File.Unknown].
func (f *File) Validate() error {
	errs := append([]error{f.writable()}, f.addressesTwice()...)
	own := f.Interface.PrivateKey.Public()
	first := make(map[wireguard.PublicKey]int, len(f.Peers))
	for i := range f.Peers {
		p := &f.Peers[i]
		line := f.at(p.from).lineOf("publickey")
		wrong := func(format string, args ...any) {
			errs = append(errs, &Error{line, "PublicKey", fmt.Errorf(format, args...)})
		}
		before, twice := first[p.PublicKey]
		switch {
		case p.PublicKey.IsZero():
			line = f.at(p.from).lineOf("")
			wrong("this peer has no key; give the key that wg pubkey prints at the other end")
			continue
		case twice && before != 0:
			wrong("the peer of line %d has the same key; join the two sections", before)
		case twice:
			wrong("another peer has the same key; join the two sections")
		case p.PublicKey == own:
			wrong("this is the interface's own key; write the other end's")
		}
		if !twice {
			first[p.PublicKey] = line
		}
	}
	return errors.Join(errs...)
}

// addressesTwice returns an error for each address that the system would refuse to add to the interface a second time.
// For IPv4 that is an address with the same length, and for IPv6 an address with any length.
func (f *File) addressesTwice() (errs []error) {
	as := f.Interface.Addresses
	lines := f.addressLines()
	first := make(map[netip.Prefix]int, len(as)) // maps to an index of as
	for n, p := range as {
		a := p.Addr()
		if a.Is6() {
			p = netip.PrefixFrom(a, a.BitLen())
		}
		before, twice := first[p]
		switch {
		case !twice:
			first[p] = n
		case lines[before] != lines[n]:
			errs = append(errs, &Error{lines[n], "Address", fmt.Errorf("line %d has %v already; remove one of the two", lines[before], a)})
		default:
			errs = append(errs, &Error{lines[n], "Address", fmt.Errorf("%v appears twice; remove one of the two", a)})
		}
	}
	return errs
}

// addressLines returns the line of each address of the interface. If a program has changed the addresses, it returns
// the line of the last ones.
func (f *File) addressLines() (lines []int) {
	s := f.at(f.Interface.from)
	var read Interface
	if s != nil {
		for _, n := range s.indexes("address") {
			parseAddress(&read, s.lines[n].value())
			for len(lines) < len(read.Addresses) {
				lines = append(lines, s.line+1+n)
			}
		}
	}
	if !slices.Equal(read.Addresses, f.Interface.Addresses) {
		lines = slices.Repeat([]int{s.lineOf("address")}, len(f.Interface.Addresses))
	}
	return lines
}

// writable returns an error for each value of f that cannot be written. Every value that was read can be written.
func (f *File) writable() error {
	errs := check(&f.Interface, f.at(f.Interface.from), interfaceFields)
	for i := range f.Peers {
		p := &f.Peers[i]
		errs = append(errs, check(p, f.at(p.from), peerFields)...)
		if p.PersistentKeepalive%time.Second != 0 {
			errs = append(errs, &Error{f.at(p.from).lineOf("persistentkeepalive"), "PersistentKeepalive", errors.New("want whole seconds")})
		}
	}
	return errors.Join(errs...)
}

// check parses what would be written, so that a program's values follow the same rules as a file's.
func check[T any](v *T, s *section, fields []field[T]) (errs []error) {
	for _, f := range fields {
		for _, value := range f.values(v) {
			if err := checkValue(&f, value); err != nil {
				errs = append(errs, &Error{s.lineOf(f.name), f.name, err})
			}
		}
	}
	return errs
}

// checkValue returns an error unless value would be read again unchanged.
func checkValue[T any](f *field[T], value string) error {
	var scratch T
	if err := f.parse(&scratch, value); err != nil {
		return err
	}
	if back := f.values(&scratch); len(back) != 1 || back[0] != value || strings.Trim(value, space) != value || strings.ContainsAny(value, "#\n\x00") {
		return errors.New("this value would be read differently; write it without a #, an end of line, or white space at either end")
	}
	return nil
}

// Addrs returns the addresses of the interface without their prefix lengths, in the order of the file and without repeats. A network
// stack in the program takes them; a kernel's interface takes Interface.Addresses.
func (f *File) Addrs() (as []netip.Addr) {
	for _, p := range f.Interface.Addresses {
		if !slices.Contains(as, p.Addr()) {
			as = append(as, p.Addr())
		}
	}
	return as
}

// Config returns f as the configuration of a new device, without a Tunnel and a Bind. Names of endpoints must have been
// resolved. An Incremental peer gets the prefixes that are added. The result shares slices with f.
func (f *File) Config() (wireguard.Config, error) {
	if err := f.checkDevice(); err != nil {
		return wireguard.Config{}, err
	}
	c := wireguard.Config{
		PrivateKey: f.Interface.PrivateKey, ListenPort: f.Interface.ListenPort, FirewallMark: f.Interface.FwMark,
	}
	for i := range f.Peers {
		c.Peers = append(c.Peers, f.Peers[i].config())
	}
	return c, nil
}

func (p *Peer) config() wireguard.PeerConfig {
	c := wireguard.PeerConfig{
		PublicKey: p.PublicKey, PresharedKey: p.PresharedKey,
		AllowedIPs: p.AllowedIPs, PersistentKeepalive: p.PersistentKeepalive,
	}
	if a, ok := p.Endpoint.AddrPort(); ok {
		c.Endpoint = wireguard.EndpointOf(a)
	}
	return c
}

// Change returns the change that makes a device what f says, as `wg syncconf` does. It removes peers that f does not name. The
// others keep their sessions, and keep the endpoint that they were heard from if f gives none. They lose a preshared key
// and a keepalive that f does not give (older versions of wg syncconf keep these). The device keeps its listen port if f
// gives none. Names of endpoints must have been resolved. The result shares slices with f.
func (f *File) Change() (wireguard.Change, error) {
	if err := f.checkDevice(); err != nil {
		return wireguard.Change{}, err
	}
	i := &f.Interface
	c := wireguard.Change{PrivateKey: new(i.PrivateKey), FirewallMark: new(i.FwMark), ReplacePeers: true}
	if i.ListenPort != 0 || f.at(i.from).has("listenport") {
		c.ListenPort = new(i.ListenPort)
	}
	for i := range f.Peers {
		c.Peers = append(c.Peers, f.Peers[i].change())
	}
	return c, nil
}

func (p *Peer) change() wireguard.PeerChange {
	config := p.config()
	c := config.Change()
	c.MTU, c.Timestamp, c.SentTimestamp = nil, nil, nil // a file has none
	c.ReplaceAllowedIPs, c.RemoveAllowedIPs = !p.isIncremental(), p.RemoveAllowedIPs
	return c
}

// Addition returns the change that adds f to a device, as `wg addconf` does. What the file does not set stays as it is. A key
// with an empty value, such as off, is set. Names of endpoints must have been resolved. The result shares slices with f.
func (f *File) Addition() (wireguard.Change, error) {
	if err := f.checkDevice(); err != nil {
		return wireguard.Change{}, err
	}
	var c wireguard.Change
	i := &f.Interface
	if !i.PrivateKey.IsZero() || f.at(i.from).has("privatekey") {
		c.PrivateKey = new(i.PrivateKey)
	}
	if i.ListenPort != 0 || f.at(i.from).has("listenport") {
		c.ListenPort = new(i.ListenPort)
	}
	if i.FwMark != 0 || f.at(i.from).has("fwmark") {
		c.FirewallMark = new(i.FwMark)
	}
	for i := range f.Peers {
		p := &f.Peers[i]
		change := p.change()
		if p.PresharedKey.IsZero() && !f.at(p.from).has("presharedkey") {
			change.PresharedKey = nil
		}
		if p.PersistentKeepalive == 0 && !f.at(p.from).has("persistentkeepalive") {
			change.PersistentKeepalive = nil
		}
		c.Peers = append(c.Peers, change)
	}
	return c, nil
}

// checkDevice does what Validate does, and checks that each name has an address.
func (f *File) checkDevice() error {
	errs := []error{f.Validate()}
	for i := range f.Peers {
		p := &f.Peers[i]
		if _, ok := p.Endpoint.AddrPort(); !ok && !p.Endpoint.IsZero() {
			errs = append(errs, &Error{f.at(p.from).lineOf("endpoint"), "Endpoint", errors.New("this name was not resolved; call File.Resolve first")})
		}
	}
	return errors.Join(errs...)
}
