// Package conf reads and writes the configuration files of wg(8) and wg-quick(8).
//
// [ReadFile] and [Parse] return a [File] of typed values. [File.Config] makes a [wireguard.Config] of it for a new device, and
// [File.Change] a [wireguard.Change] for a running one. [File.Resolve] resolves the names of endpoints first; nothing else
// does. A program that changes values writes the file with [File.Text]: comments, order, spelling and keys that this package
// does not know stay as they were.
//
//	f, err := conf.ReadFile("office.conf")
//	...
//	err = f.Resolve(ctx, conf.Resolution{})
//	...
//	stack, err := netstack.New(netstack.Config{Addresses: f.Addrs(), DNS: f.Interface.DNS, Search: f.Interface.Search, MTU: f.Interface.MTU})
//	...
//	config, err := f.Config()
//	config.Tunnel, config.Bind = stack, &udp.Bind{}
//	device, err := wireguard.New(config)
//
// # The format
//
// Keys and names of sections may be in upper or lower case, and white space in them or around them is ignored. Only #
// begins a comment; a ; belongs to the value. Repeated lines of Address, DNS, AllowedIPs and the four hooks add up. Of any
// other key except Endpoint, the last line counts. Several [Interface] sections count as one. Several [Peer] sections with
// one key change one peer in turn: a later section replaces the AllowedIPs of an earlier one, and keeps what it does not
// set. The value of a hook is its line, exactly as written. An empty value of a key that only wg-quick(8) knows, and of
// AllowedIPs, sets nothing.
//
// In one respect a file may say more than wg(8) understands: a peer may have several Endpoint lines. The first line
// says where the peer is at first, and the others say where to look for it when it does not answer. wg(8) uses only the
// last line.
//
// In another respect this package accepts less than wg(8): an Endpoint needs a port from 1 to 65535, written as a
// number, and its address must be that of one host.
//
// Unknown keys are most often misspelt. [File.Config], [File.Change] and [File.Addition] refuse them, and [File.Unknown] lists
// them. A program that keeps its own sections and keys in the file declares them in a [Syntax].
//
// # Secrets
//
// A File holds private and preshared keys. If a program prints the File, the keys are left out; only Text writes them. No
// error repeats a key, or a text that could be a key or a part of one, such as a line that lost its beginning. It gives the
// number of the line instead.
package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	wireguard "github.com/seed-86b749af/wireguard"
)

// A File is a configuration: one [Interface] and any number of [Peer] sections. The zero value is an empty file. A File is
// for one goroutine at a time. A copy shares its slices.
type File struct {
	Interface Interface // the [Interface] section
	Peers     []Peer    // the [Peer] sections, in the order of the file

	sections []*section // as read, in order; the first holds the lines above all sections
	first    place      // the place of the first section
	syntax   *Syntax    // with which the file was read; nil means the zero Syntax
}

// A place is the number of a section among all sections that this process has read. 0 means none. A place replaces a
// pointer, which package fmt would follow to the keys in the text.
type place uint64

var places atomic.Uint64 // the last place given out

// at returns the section of f at a place, or nil if f does not have it.
func (f *File) at(p place) *section {
	if n := uint64(len(f.sections)); p == 0 || p < f.first || uint64(p-f.first) >= n {
		return nil
	}
	return f.sections[p-f.first]
}

// An Interface is the [Interface] section. The zero value of a field means that the file does not set it. wg(8) knows the
// keys PrivateKey, ListenPort and FwMark, and wg-quick(8) knows the others.
//
// A copy of an Interface belongs to the same place in the file.
type Interface struct {
	PrivateKey wireguard.PrivateKey // the identity of the device
	ListenPort uint16               // the UDP port; 0 lets the Bind choose
	FwMark     uint32               // the mark of what the sockets send; 0 means none

	Addresses  []netip.Prefix // key Address; an address without a length is a prefix of one address; see File.Addrs
	DNS        []netip.Addr   // key DNS: its name servers
	Search     []string       // key DNS: its domains to search
	MTU        int            // in bytes; 0 leaves the choice to the program
	Table      string         // TableAuto, TableOff, or a routing table's number or name; empty means TableAuto
	PreUp      []string       // hooks for a shell before the interface goes up, in order; see ExpandHook
	PostUp     []string       // hooks after it went up
	PreDown    []string       // hooks before it goes down
	PostDown   []string       // hooks after it went down
	SaveConfig bool           // whether wg-quick down writes the file anew

	from place
}

// Values of Interface.Table that are not a table.
const (
	TableAuto = "auto" // routes go where wg-quick(8) puts them
	TableOff  = "off"  // no routes are added
)

// A Peer is a [Peer] section. The zero value of a field means that the file does not set it.
//
// A copy of a Peer belongs to the same place in the file. Of two Peers of one File that belong to one place, the first takes it,
// and Text writes the other as a new section.
type Peer struct {
	PublicKey           wireguard.PublicKey    // the peer's identity
	PresharedKey        wireguard.PresharedKey // zero means none
	Endpoint            Endpoint               // where the peer is at first; zero means that the peer makes contact
	MoreEndpoints       []Endpoint             // further lines of Endpoint: where else to look for the peer; nil means nowhere
	PersistentKeepalive time.Duration          // in whole seconds; 0 means off

	// AllowedIPs are the peer's prefixes as written, with the bits beyond their lengths. RemoveAllowedIPs are those that
	// the file has with a - before them. Any + or - makes the list Incremental: for wg addconf and syncconf it is then a
	// difference to the prefixes that the peer has, and not all of them.
	AllowedIPs       []netip.Prefix
	RemoveAllowedIPs []netip.Prefix
	Incremental      bool

	from place
}

// An Error is one thing that is wrong with a file. It is a value that nobody changes.
type Error struct {
	Line int    // from 1; 0 if no line is to blame, as for a peer that the program added
	Key  string // as the format's documentation spells it, an unknown key as written, a section's name in brackets, or empty
	Err  error  // what is wrong, and what to write instead
}

// Error returns one line such as "line 7: AllowedIPs: ...".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Line != 0 {
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	return b.String() + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Errors returns the Errors that err joins or wraps, in their order. It returns nil for an error that holds none.
func Errors(err error) (es []*Error) {
	switch e := err.(type) {
	case *Error:
		return []*Error{e}
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			es = append(es, Errors(err)...)
		}
	case interface{ Unwrap() error }:
		return Errors(e.Unwrap())
	}
	return es
}

// A section holds lines of the file.
type section struct {
	name  string // "Interface", "Peer", as a Syntax spells it, or "" above all sections and where the name is unknown
	label string // how an unknown section is spelt, without brackets; empty if that may be a secret
	line  int    // of the header, from 1
	above []line // comments directly above the header
	head  line   // the header; empty for the lines above all sections
	lines []line
}

// A line is a line of the file, with its end of line if it has one.
type line struct {
	text string
	key  string // in lower case; empty for a comment or a blank line
}

// Parse parses the text of a file. If anything is wrong, the file is nil, and the error joins one [Error] with its line for
// each thing. Unknown keys and sections are not errors here, see [File.Unknown]. [File.Validate] checks the file as a whole.
// Parse knows the keys of wg(8) and wg-quick(8); [Syntax.Parse] knows more.
func Parse(text []byte) (*File, error) { return Syntax{}.Parse(text) }

// Parse does what the function [Parse] does, and knows the sections and keys of x too.
func (x Syntax) Parse(text []byte) (*File, error) {
	p := parser{file: &File{syntax: &x}, section: new(section)}
	p.file.sections = []*section{p.section}
	for n, text := range splitLines(string(text)) {
		p.line(n+1, text)
	}
	if len(p.errs) != 0 {
		return nil, errors.Join(p.errs...)
	}
	p.file.settle()
	return p.file, nil
}

// ReadFile reads and parses the file with that name. An error of [Parse] then begins with the name.
func ReadFile(name string) (*File, error) { return Syntax{}.ReadFile(name) }

// ReadFile does what the function [ReadFile] does, and knows the sections and keys of x too.
func (x Syntax) ReadFile(name string) (*File, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err // the error names the file
	}
	f, err := x.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// settle gives the sections their places. Before settle, the field from of an Interface or a Peer is the index of its
// section.
func (f *File) settle() {
	n := uint64(len(f.sections))
	f.first = place(places.Add(n) - n + 1)
	if f.Interface.from != 0 {
		f.Interface.from += f.first
	}
	for i := range f.Peers {
		f.Peers[i].from += f.first
	}
}

// splitLines splits s into lines and keeps their ends.
func splitLines(s string) []string {
	lines := strings.SplitAfter(s, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

type parser struct {
	file    *File
	section *section // the last section
	errs    []error
}

func (p *parser) wrong(n int, key string, format string, args ...any) {
	p.errs = append(p.errs, &Error{n, key, fmt.Errorf(format, args...)})
}

func (p *parser) line(n int, text string) {
	content, _, _ := strings.Cut(text, "#")
	if n == 1 {
		content = strings.TrimPrefix(content, "\ufeff") // some editors begin a file with this mark; wg(8) refuses it
	}
	content = strings.Trim(content, space)
	switch {
	case strings.ContainsRune(content, 0):
		p.wrong(n, "", "the line has a NUL byte; this is not a text file")
	case content == "" || content[0] == ';' && p.file.syntax.Semicolons:
		p.section.lines = append(p.section.lines, line{text: text})
	case content[0] == '[':
		p.header(n, text, squeeze(content))
	default:
		p.keyValue(n, text, content)
	}
}

func (p *parser) header(n int, text, content string) {
	s := &section{line: n, head: line{text: text}}
	s.above = p.section.takeComments()
	from := place(len(p.file.sections))
	name, _ := strings.CutSuffix(strings.TrimPrefix(content, "["), "]")
	if content == "["+name+"]" {
		s.name = p.file.syntax.section(name)
	}
	switch s.name {
	case sectionInterface:
		if p.file.Interface.from == 0 {
			p.file.Interface.from = from
		}
	case sectionPeer:
		p.file.Peers = append(p.file.Peers, Peer{from: from})
	case "":
		if short.MatchString(name) || p.file.syntax.meantSection(name) != "" {
			s.label = name
		}
	}
	p.file.sections = append(p.file.sections, s)
	p.section = s
}

// takeComments takes the comments at the end of s, up to a blank line. They belong to the next section.
func (s *section) takeComments() []line {
	i := len(s.lines)
	for i > 0 && strings.HasPrefix(strings.TrimLeft(s.lines[i-1].text, space), "#") {
		i--
	}
	taken := s.lines[i:]
	s.lines = s.lines[:i:i]
	return taken
}

func (p *parser) keyValue(n int, text, content string) {
	key, value, ok := cut(content)
	s := p.section
	switch {
	case !ok:
		p.wrong(n, "", "neither a [section] nor a key = value; write # before a comment")
		return
	case len(p.file.sections) == 1 && !p.file.syntax.known("", key):
		p.wrong(n, p.file.syntax.printable(key, value), "this is above all sections; write [Interface] or [Peer] before it")
		return
	}
	s.lines = append(s.lines, line{text: text, key: strings.ToLower(key)})
	var err error
	switch s.name {
	case sectionInterface:
		if f := find(interfaceFields, key); f != nil {
			key, err = f.name, f.parse(&p.file.Interface, value)
		}
	case sectionPeer:
		if f := find(peerFields, key); f != nil {
			key, err = f.name, f.parse(&p.file.Peers[len(p.file.Peers)-1], value)
		}
	}
	if err != nil {
		for _, err := range each(err) {
			p.errs = append(p.errs, &Error{n, key, err})
		}
	}
}

// each returns the errors that err was joined from.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

const (
	sectionInterface = "Interface"
	sectionPeer      = "Peer"

	space = " \t\n\v\f\r" // isspace of the C locale
)

// squeeze removes all white space from s.
func squeeze(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(space, r) {
			return -1
		}
		return r
	}, s)
}

var (
	base64Run = regexp.MustCompile(`[A-Za-z0-9+/=]{8,}`)
	numeral   = regexp.MustCompile(`^([0-9]{1,20}|0x[0-9A-Fa-f]{1,16})$`)
	hostLike  = regexp.MustCompile(`^[][a-z0-9_~%/+-]*[.:][][a-z0-9._~:%/+-]*$`)
	hostRun   = regexp.MustCompile(`^[a-z0-9]{1,19}(/[0-9]{1,3})?$`)
)

// quote returns a value for an error, in quotes and of bounded length. It hides a value that could be a part of a
// secret. Use it only for keys whose values are not secret.
func quote(s string) string {
	switch {
	case secretive(s):
		return "the value"
	case len(s) > 64:
		return fmt.Sprintf("%q...", strings.ToValidUTF8(s[:60], ""))
	}
	return fmt.Sprintf("%q", s)
}

// secretive reports whether a part of s could be a part of a secret: eight characters of base64 in a row. White space
// between them does not count. A number is not secret, and neither is a text that as a whole looks like a host's name
// or an address.
func secretive(s string) bool {
	s = squeeze(s)
	host := hostLike.MatchString(s)
	return slices.ContainsFunc(base64Run.FindAllString(s, -1), func(run string) bool {
		return !numeral.MatchString(run) && !(host && hostRun.MatchString(run))
	})
}

// cut splits a line without its comment into key and value.
func cut(content string) (key, value string, ok bool) {
	key, value, ok = strings.Cut(content, "=")
	return squeeze(key), strings.Trim(value, space), ok
}

// String returns how many peers the file has, and no secret.
func (f *File) String() string { return fmt.Sprintf("(configuration of %d peers)", len(f.Peers)) }

// Format prints String for every verb, so that none prints a key.
func (f *File) Format(s fmt.State, _ rune) { io.WriteString(s, f.String()) }

// LogValue returns String.
func (f *File) LogValue() slog.Value { return slog.StringValue(f.String()) }

// ExpandHook returns a hook with %i replaced by the interface's name, as wg-quick(8) passes it to a shell.
func ExpandHook(hook, iface string) string { return strings.ReplaceAll(hook, "%i", iface) }

// Strip returns f without the keys that only wg-quick(8) knows, as `wg-quick strip` prints it for `wg setconf`. It also leaves out
// the sections and keys that only f's [Syntax] declares. Of each peer's endpoints it keeps only the first, because wg(8) would use
// the last one. Unknown keys stay. Strip fails as Text does.
func (f *File) Strip() (*File, error) {
	if err := f.writable(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, s := range f.written() {
		if f.syntax.declares(s.name) {
			continue
		}
		endpoints := 0
		s.write(&b, func(l line) bool {
			if s.name == sectionPeer && l.key == "endpoint" {
				if endpoints++; endpoints > 1 {
					return false
				}
			}
			field := find(interfaceFields, l.key)
			quick := s.name == sectionInterface && field != nil && field.quick
			return !quick && !f.syntax.adds(s.name, l.key)
		})
	}
	return f.syntax.orZero().Parse(b.Bytes())
}
