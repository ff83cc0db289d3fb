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

// Validate checks f as a whole. Its error joins an [Error] for each peer without a key, for each address that the interface has
// twice, and for each value that cannot be written. It does not look for unknown keys; see [File.Unknown]. [File.Warnings] lists
// what is valid but most often a mistake.
func (f *File) Validate() error {
	errs := append([]error{f.writable()}, f.addressesTwice()...)
	for i := range f.Peers {
		p := &f.Peers[i]
		if s := f.at(p.from); p.PublicKey.IsZero() && !s.has("publickey") {
			errs = append(errs, &Error{s.lineOf(""), "PublicKey", errors.New("this peer has no key; give the key that wg pubkey prints at the other end")})
		}
	}
	return errors.Join(errs...)
}

// addressesTwice returns an error for each address that the system would refuse to add to the interface a second time. It would
// refuse an IPv4 address that the interface already has with the same prefix length, and an IPv6 address that the interface
// already has with any prefix length.
func (f *File) addressesTwice() (errs []error) {
	as := f.Interface.Addresses
	lines := f.addressLines()
	first := make(map[netip.Prefix]int, len(as)) // for each address, the index of its first occurrence in as
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

// addressLines returns the line number of each address of the interface. If a program has changed the addresses, addressLines
// returns the number of the last Address line for all of them.
func (f *File) addressLines() (lines []int) {
	var read Interface
	for _, s := range f.interfaces() {
		for _, n := range s.indexes("address") {
			parseAddress(&read, s.lines[n].value())
			for len(lines) < len(read.Addresses) {
				lines = append(lines, s.line+1+n)
			}
		}
	}
	if !slices.Equal(read.Addresses, f.Interface.Addresses) {
		lines = slices.Repeat([]int{f.interfaceLine("address")}, len(f.Interface.Addresses))
	}
	return lines
}

// writable returns an error that joins one [Error] for each value of f that cannot be written. Every value that was read can be
// written.
func (f *File) writable() error {
	errs := check(&f.Interface, f.interfaceLine, interfaceFields)
	for i := range f.Peers {
		p := &f.Peers[i]
		errs = append(errs, check(p, f.at(p.from).lineOf, peerFields)...)
		if p.PersistentKeepalive%time.Second != 0 {
			errs = append(errs, &Error{f.at(p.from).lineOf("persistentkeepalive"), "PersistentKeepalive", errors.New("want whole seconds")})
		}
	}
	return errors.Join(errs...)
}

// check parses each value of v in the form in which it would be written. So values that a program sets follow the same rules as
// values that were read from a file.
func check[T any](v *T, lineOf func(key string) int, fields []field[T]) (errs []error) {
	for _, f := range fields {
		for _, value := range f.values(v) {
			if err := checkValue(&f, value); err != nil {
				errs = append(errs, &Error{lineOf(f.name), f.name, err})
			}
		}
	}
	return errs
}

// checkValue returns an error if the value, once written, would not be read back unchanged.
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

// Addrs returns the addresses of the interface without their prefix lengths, in the order of the file and without repeats. A
// network stack in the program needs these addresses; an interface of the kernel needs the prefixes in Interface.Addresses.
func (f *File) Addrs() (as []netip.Addr) {
	for _, p := range f.Interface.Addresses {
		if !slices.Contains(as, p.Addr()) {
			as = append(as, p.Addr())
		}
	}
	return as
}

// Config returns f as the configuration of a new device, without a Tunnel and a Bind. It refuses unknown keys and sections unless
// Syntax.AllowUnknown is set, and its error suggests similar known names. The names of endpoints must have been resolved; see
// [File.Resolve].
//
// As with wg(8), sections with the same PublicKey make one peer, an Incremental peer gets the prefixes that the file adds, and if
// two peers have the same prefix, the last one gets it. Config leaves out a peer with the interface's own key or the all-zero
// key, because such a peer could never have a session. See [File.Warnings]. The result shares slices with f.
func (f *File) Config() (wireguard.Config, error) {
	if err := f.checkDevice(); err != nil {
		return wireguard.Config{}, err
	}
	c := wireguard.Config{
		PrivateKey: f.Interface.PrivateKey, ListenPort: f.Interface.ListenPort, FirewallMark: f.Interface.FwMark,
	}
	for _, p := range f.joined() {
		c.Peers = append(c.Peers, p.config())
	}
	return c, nil
}

// usable returns the peers that can have a session: all except those with the interface's own key or the all-zero key.
func (f *File) usable() (peers []Peer) {
	own := f.Interface.PrivateKey.Public()
	for _, p := range f.Peers {
		if p.PublicKey != own && !p.PublicKey.IsZero() {
			peers = append(peers, p)
		}
	}
	return peers
}

// joined returns the usable peers, one for each PublicKey, in the order of their last sections. In this order, each peer gets the
// prefixes that wg setconf would give to it.
func (f *File) joined() (peers []Peer) {
	at := make(map[wireguard.PublicKey]int, len(f.Peers))
	gone := make([]bool, 0, len(f.Peers))
	for _, p := range f.usable() {
		if n, twice := at[p.PublicKey]; twice {
			gone[n] = true
			p = f.join(peers[n], p)
		}
		at[p.PublicKey] = len(peers)
		peers, gone = append(peers, p), append(gone, false)
	}
	kept := peers[:0]
	for n, p := range peers {
		if !gone[n] {
			kept = append(kept, p)
		}
	}
	return kept
}

// join returns the peer that results when a later section with the same PublicKey changes p.
func (f *File) join(p, later Peer) Peer {
	s := f.at(later.from)
	if later.PresharedKey.IsZero() && !s.has("presharedkey") {
		later.PresharedKey = p.PresharedKey
	}
	if later.PersistentKeepalive == 0 && !s.has("persistentkeepalive") {
		later.PersistentKeepalive = p.PersistentKeepalive
	}
	if len(later.Endpoints()) == 0 {
		later.Endpoint, later.MoreEndpoints = p.Endpoint, p.MoreEndpoints
	}
	if later.isIncremental() {
		add, remove := later.AllowedIPs, later.RemoveAllowedIPs
		later.AllowedIPs = append(without(p.AllowedIPs, remove), add...)
		later.RemoveAllowedIPs = append(without(p.RemoveAllowedIPs, add), remove...)
		if later.Incremental = p.isIncremental(); !later.Incremental {
			later.RemoveAllowedIPs = nil
		}
	}
	return later
}

// without returns a copy of ps without the prefixes of others.
func without(ps, others []netip.Prefix) (left []netip.Prefix) {
	drop := make(map[netip.Prefix]bool, len(others))
	for _, o := range others {
		drop[o.Masked()] = true
	}
	for _, p := range ps {
		if !drop[p.Masked()] {
			left = append(left, p)
		}
	}
	return left
}

func (p *Peer) config() wireguard.PeerConfig {
	c := wireguard.PeerConfig{
		PublicKey: p.PublicKey, PresharedKey: p.PresharedKey,
		AllowedIPs: p.AllowedIPs, PersistentKeepalive: p.PersistentKeepalive,
	}
	if a, ok := p.firstEndpoint(); ok {
		c.Endpoint = wireguard.EndpointOf(a)
	}
	return c
}

// Change returns the change that gives a device the configuration in f, as `wg syncconf` does. It removes peers that f does not
// name. The other peers keep their sessions. A peer for which f gives no endpoint keeps its present one. A peer loses a preshared
// key and a keepalive that f does not give (older versions of wg syncconf keep these). The device keeps its listen port if f
// gives none. The names of endpoints must have been resolved, and Change refuses what [File.Config] refuses. The result shares
// slices with f.
func (f *File) Change() (wireguard.Change, error) {
	if err := f.checkDevice(); err != nil {
		return wireguard.Change{}, err
	}
	i := &f.Interface
	c := wireguard.Change{PrivateKey: new(i.PrivateKey), FirewallMark: new(i.FwMark), ReplacePeers: true}
	if i.ListenPort != 0 || f.interfaceHas("listenport") {
		c.ListenPort = new(i.ListenPort)
	}
	for _, p := range f.joined() {
		c.Peers = append(c.Peers, p.change())
	}
	return c, nil
}

func (p *Peer) change() wireguard.PeerChange {
	config := p.config()
	c := config.Change()
	c.MTU, c.Timestamp, c.SentTimestamp = nil, nil, nil // a file has no keys for these
	c.ReplaceAllowedIPs, c.RemoveAllowedIPs = !p.isIncremental(), p.RemoveAllowedIPs
	return c
}

// Addition returns the change that adds f to a device, as `wg addconf` does. Values that the file does not set stay as they are.
// A key that the file sets to zero or off counts as set. The names of endpoints must have been resolved, and Addition refuses
// what [File.Config] refuses. The result shares slices with f.
func (f *File) Addition() (wireguard.Change, error) {
	if err := f.checkDevice(); err != nil {
		return wireguard.Change{}, err
	}
	var c wireguard.Change
	i := &f.Interface
	if !i.PrivateKey.IsZero() || f.interfaceHas("privatekey") {
		c.PrivateKey = new(i.PrivateKey)
	}
	if i.ListenPort != 0 || f.interfaceHas("listenport") {
		c.ListenPort = new(i.ListenPort)
	}
	if i.FwMark != 0 || f.interfaceHas("fwmark") {
		c.FirewallMark = new(i.FwMark)
	}
	for _, p := range f.usable() {
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

// checkDevice does what Validate does, and refuses unknown keys and sections unless AllowUnknown is set. It also refuses a peer
// that has endpoints, but none with an address.
func (f *File) checkDevice() error {
	errs := []error{f.Validate()}
	if !f.syntax.orZero().AllowUnknown {
		for _, e := range f.Unknown() {
			errs = append(errs, e)
		}
	}
	for i := range f.Peers {
		p := &f.Peers[i]
		if _, ok := p.firstEndpoint(); !ok && len(p.Endpoints()) > 0 {
			errs = append(errs, &Error{f.at(p.from).firstLineOf("endpoint"), "Endpoint", errors.New("this name was not resolved; call File.Resolve first")})
		}
	}
	return errors.Join(errs...)
}
