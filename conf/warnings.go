package conf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	wireguard "github.com/seed-86b749af/wireguard"
)

// Warnings returns an Error for each thing that this package accepts, but that is most often a mistake, or that wg(8) refuses or
// reads differently. The Errors are in the order of their lines.
func (f *File) Warnings() []*Error {
	es := f.repeatedKeys()
	es = append(es, f.repeatedPeers()...)
	es = append(es, f.sharedPrefixes()...)
	es = append(es, f.oddLines()...)
	slices.SortStableFunc(es, func(a, b *Error) int { return a.Line - b.Line })
	return es
}

// repeatedKeys warns of each line that replaces the value of an earlier line with the same key.
func (f *File) repeatedKeys() (es []*Error) {
	before := make(map[string]int) // for each key, the number of the last line so far that has it
	for _, s := range f.interfaces() {
		es = append(es, repeatedKeys(s, interfaceFields, before)...)
	}
	for i := range f.Peers {
		if s := f.at(f.Peers[i].from); s != nil {
			es = append(es, repeatedKeys(s, peerFields, make(map[string]int))...)
		}
	}
	return es
}

func repeatedKeys[T any](s *section, fields []field[T], before map[string]int) (es []*Error) {
	for n, l := range s.lines {
		f := find(fields, l.key)
		if f == nil || f.kind != single {
			continue
		}
		line := s.line + 1 + n
		if first, twice := before[f.name]; twice {
			es = append(es, &Error{line, f.name, fmt.Errorf("this replaces line %d; remove one of the two", first)})
		}
		before[f.name] = line
	}
	return es
}

// repeatedPeers warns of peers with the same PublicKey, and of peers that could never have a session.
func (f *File) repeatedPeers() (es []*Error) {
	own := f.Interface.PrivateKey.Public()
	first := make(map[wireguard.PublicKey]int, len(f.Peers))
	for i := range f.Peers {
		p := &f.Peers[i]
		s := f.at(p.from)
		line := s.lineOf("publickey")
		warn := func(format string, args ...any) {
			es = append(es, &Error{line, "PublicKey", fmt.Errorf(format, args...)})
		}
		before, twice := first[p.PublicKey]
		switch {
		case p.PublicKey.IsZero():
			if s.has("publickey") {
				warn("the key is all zero, so this peer never has a session; give the key that wg pubkey prints at the other end")
			}
			continue
		case p.PublicKey == own:
			warn("this is the interface's own key, so this peer is left out; write the other end's")
			continue
		case twice && before != 0:
			warn("the peer of line %d has the same key; this section's AllowedIPs replace those there; join the two sections", before)
		case twice:
			warn("another peer has the same key; the later one's AllowedIPs replace those of the other; join the two sections")
		}
		first[p.PublicKey] = line
	}
	return es
}

// sharedPrefixes warns of each prefix that two peers have: the later peer gets it.
func (f *File) sharedPrefixes() (es []*Error) {
	type owner struct {
		key  wireguard.PublicKey
		line int
	}
	owners := make(map[netip.Prefix]owner)
	for _, p := range f.usable() {
		line := f.at(p.from).lineOf("allowedips")
		for _, a := range p.AllowedIPs {
			a = a.Masked()
			if o, taken := owners[a]; taken && o.key != p.PublicKey {
				from := "another peer"
				if o.line != 0 {
					from = fmt.Sprintf("the peer of line %d", o.line)
				}
				es = append(es, &Error{line, "AllowedIPs", fmt.Errorf("this takes %v from %s; remove it from one of the two", a, from)})
			}
			owners[a] = owner{p.PublicKey, line}
		}
	}
	return es
}

// oddLines warns of lines that wg(8) reads differently, and of lines whose author probably meant something else.
func (f *File) oddLines() (es []*Error) {
	if len(f.sections) > 0 && f.startsWithMark() {
		es = append(es, &Error{Line: 1, Err: errors.New("wg(8) refuses the byte order mark before this line; save the file as UTF-8 without one")})
	}
	for i := range f.Peers {
		s := f.at(f.Peers[i].from)
		if s == nil {
			continue
		}
		endpoints := s.indexes("endpoint")
		for k, n := range endpoints {
			line, value := s.line+1+n, squeeze(s.lines[n].value())
			if e, err := ParseEndpoint(value); err == nil && strings.Contains(e.Host, ":") && value[0] != '[' {
				es = append(es, &Error{line, "Endpoint", fmt.Errorf("%d is taken as the port; write %v", e.Port, e)})
			}
			if k > 0 {
				es = append(es, &Error{line, "Endpoint", fmt.Errorf("wg(8) uses the last Endpoint alone; here line %d is tried first", s.line+1+endpoints[0])})
			}
		}
		for _, n := range s.indexes("allowedips") {
			es = append(es, oddPrefixes(s.line+1+n, s.lines[n].value())...)
		}
	}
	return es
}

// oddPrefixes warns of an AllowedIPs line without a value, and of prefixes with bits set after the prefix length.
func oddPrefixes(line int, value string) (es []*Error) {
	var p Peer
	parseAllowedIPs(&p, value)
	if value == "" {
		es = append(es, &Error{line, "AllowedIPs", errors.New("wg(8) refuses an empty value; remove the line")})
	}
	for _, a := range p.AllowedIPs {
		if a != a.Masked() {
			es = append(es, &Error{line, "AllowedIPs", fmt.Errorf("%v means %v; write that", a, a.Masked())})
		}
	}
	return es
}

// startsWithMark reports whether the file begins with a byte order mark.
func (f *File) startsWithMark() bool {
	first := f.sections[0].lines
	if len(first) == 0 && len(f.sections) > 1 {
		first = append(slices.Clone(f.sections[1].above), f.sections[1].head)
	}
	return len(first) > 0 && strings.HasPrefix(first[0].text, "\ufeff")
}
