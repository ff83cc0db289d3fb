// Package conf reads and writes the configuration files of wg(8) and wg-quick(8).
//
// [ReadFile] and [Parse] return a [File] of typed values. For a new device, [File.Config] makes a [wireguard.Config] from the
// File. For a running device, [File.Change] makes a [wireguard.Change]. If endpoints have names, call [File.Resolve] first: no
// other method resolves names. [File.Text] returns the text of the file with the values that a program has changed. Comments,
// order, spelling and keys that this package does not know stay as they were.
//
//	f, err := conf.ReadFile("office.conf")
//	...
//	err = f.Resolve(ctx, conf.Resolution{})
//	...
//	stack, err := netstack.New(netstack.Config{
//		Addresses: f.Addrs(), DNS: f.Interface.DNS, Search: f.Interface.Search, MTU: f.Interface.MTU,
//	})
//	...
//	config, err := f.Config()
//	config.Tunnel, config.Bind = stack, &udp.Bind{}
//	device, err := wireguard.New(config)
//
// # The format
//
// Keys and names of sections may be in upper or lower case, and white space in them or around them is ignored. Only the character
// "#" begins a comment; a semicolon is part of the value. Repeated lines of Address, DNS, AllowedIPs and the four hooks (PreUp,
// PostUp, PreDown, PostDown) add up. If any other key except Endpoint is repeated, its last line counts. Several [Interface]
// sections count as one. Several [Peer] sections with the same PublicKey describe one peer, and apply in order. A later section
// replaces the AllowedIPs of an earlier section, unless a prefix in the later section has a plus or minus sign. Other values that
// the later section does not set keep their earlier values. The value of a hook is the text between the = and a comment, exactly as
// written except for white space at its ends. An empty value is valid only for AllowedIPs and for the keys that only wg-quick(8)
// knows, except SaveConfig. An empty value of MTU or Table restores the default, even after a line with a value, as in wg-quick(8).
// Other empty values set nothing.
//
// One extension goes beyond wg(8): a peer may have several Endpoint lines. The first line gives the peer's initial endpoint. The
// others give endpoints to try when the peer does not answer. wg(8) uses only the last line.
//
// Some rules are stricter than in wg(8). An Endpoint needs a port from 1 to 65535, written as a number, and its address must be
// neither unspecified nor multicast. An IPv4 address has four decimal numbers, so 127.1 is an error, and 0x7f000001 is a host
// name. ListenPort is a decimal number up to 65535. Only comments may contain NUL bytes. wg(8) ignores white space within keys and
// headers; this package also ignores it in the keys of wg-quick(8), which wg-quick(8) itself would not recognise.
//
// Unknown keys are most often misspelt. [File.Config], [File.Change] and [File.Addition] refuse them, and [File.Unknown] lists
// them. A program that keeps its own sections and keys in the file declares them in a [Syntax].
//
// # Secrets
//
// A File holds private and preshared keys. If a program prints the File, these keys are left out; only File.Text writes them. No
// error quotes a key, or a text that could be a part of a key, such as a line that lost its beginning. The error gives the number
// of the line instead.
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

// A File is a configuration: one [Interface] and any number of [Peer] sections. The zero value is an empty file. Only one
// goroutine at a time may use a File. A copy of a File shares its slices with the original.
type File struct {
	Interface Interface // the [Interface] section
	Peers     []Peer    // the [Peer] sections, in the order of the file

	sections []*section // the sections as they were read, in order; the first one holds the lines above all headers
	first    place      // the number of sections[0]
	syntax   *Syntax    // the Syntax that the parser used; nil means the zero Syntax
}

// A place is the number of a section among all sections that this process has read. 0 means no section. An Interface or a Peer
// has a place, and not a pointer to its section, because package fmt would follow the pointer and print the keys in the section's
// text.
type place uint64

var places atomic.Uint64 // the last number that settle assigned

// at returns the section of f whose number is p, or nil if f has no such section.
func (f *File) at(p place) *section {
	if n := uint64(len(f.sections)); p == 0 || p < f.first || uint64(p-f.first) >= n {
		return nil
	}
	return f.sections[p-f.first]
}

// An Interface is the [Interface] section. The zero value of a field means that the file does not set it. wg(8) knows the
// keys PrivateKey, ListenPort and FwMark, and wg-quick(8) knows the others.
//
// A copy of an Interface describes the same section of the file.
type Interface struct {
	PrivateKey wireguard.PrivateKey // the identity of the device
	ListenPort uint16               // the UDP port; 0 lets the Bind choose
	FwMark     uint32               // the firewall mark of the packets that the sockets send; 0 means no mark

	Addresses  []netip.Prefix // the key Address; an address without a prefix length gets the full length; see File.Addrs
	DNS        []netip.Addr   // the name servers of the key DNS
	Search     []string       // the search domains of the key DNS
	MTU        int            // in bytes; 0 leaves the choice to the program
	Table      string         // TableAuto, TableOff, or a routing table's number or name; empty means TableAuto
	PreUp      []string       // shell commands to run before the interface goes up, in order; see ExpandHook
	PostUp     []string       // shell commands to run after the interface went up
	PreDown    []string       // shell commands to run before the interface goes down
	PostDown   []string       // shell commands to run after the interface went down
	SaveConfig bool           // whether wg-quick down saves the running configuration in the file

	from place
}

// Values of Interface.Table that do not name a routing table.
const (
	TableAuto = "auto" // wg-quick(8) chooses the routing table
	TableOff  = "off"  // no routes are added
)

// A Peer is a [Peer] section. The zero value of a field means that the file does not set it.
//
// A copy of a Peer describes the same section of the file. If two Peers of one File describe the same section, Text writes the
// first Peer there, and the other one as a new section.
type Peer struct {
	PublicKey           wireguard.PublicKey    // the peer's identity
	PresharedKey        wireguard.PresharedKey // zero means none
	Endpoint            Endpoint               // the initial endpoint; zero means that the peer must contact this device first
	MoreEndpoints       []Endpoint             // from further Endpoint lines, to try when the peer does not answer; nil means none
	PersistentKeepalive time.Duration          // in whole seconds; 0 means off

	// AllowedIPs are the peer's prefixes as written: bits after the prefix length are not cleared. RemoveAllowedIPs are the
	// prefixes that have a minus sign before them in the file. A plus or minus sign before any prefix sets Incremental: wg
	// addconf and wg syncconf then add and remove these prefixes, and the peer keeps its other prefixes.
	AllowedIPs       []netip.Prefix
	RemoveAllowedIPs []netip.Prefix
	Incremental      bool

	from place
}

// An Error describes one fault in a file. It is not changed after it is made.
type Error struct {
	Line int    // the line number, from 1; 0 if the fault is in no line, as for a peer that the program added
	Key  string // a known key in its documented spelling, an unknown key as written, a section's name in brackets, or empty
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

// Errors returns the Errors that err joins or wraps, in their order. It returns nil if err contains no Error.
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

// A section holds the lines of one section of the file, or the lines above all sections.
type section struct {
	name  string // "Interface", "Peer" or a name that the Syntax declares; "" above all sections, or if the name is unknown
	label string // the name of an unknown section as written, without brackets; empty if it may be a part of a secret
	line  int    // the line number of the header, from 1
	above []line // comments directly above the header
	head  line   // the header; empty for the lines above all sections
	lines []line
}

// A line is one line of the file, including its line ending if it has one.
type line struct {
	text string
	key  string // the key in lower case; empty for a comment or a blank line
}

// Parse parses the text of a file. If the text has faults, the File is nil, and the error joins one [Error], with its line number,
// for each fault. Unknown keys and sections are not faults here; see [File.Unknown]. [File.Validate] checks the file as a whole.
// Parse knows the keys of wg(8) and wg-quick(8); [Syntax.Parse] also knows the keys that a Syntax declares.
func Parse(text []byte) (*File, error) { return Syntax{}.Parse(text) }

// Parse does what the function [Parse] does, and also knows the sections and keys that x declares.
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

// ReadFile reads and parses the file with that name. If the text has faults, the error begins with the file's name and wraps the
// error of [Parse].
func ReadFile(name string) (*File, error) { return Syntax{}.ReadFile(name) }

// ReadFile does what the function [ReadFile] does, and also knows the sections and keys that x declares.
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

// settle numbers the sections of f. Before settle, the field "from" of an Interface or a Peer is an index of f.sections;
// afterwards it is the section's number.
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

// splitLines splits s into lines and keeps the line endings.
func splitLines(s string) []string {
	lines := strings.SplitAfter(s, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

type parser struct {
	file    *File
	section *section // the section to which the next line belongs
	errs    []error
}

func (p *parser) wrong(n int, key string, format string, args ...any) {
	p.errs = append(p.errs, &Error{n, key, fmt.Errorf(format, args...)})
}

func (p *parser) line(n int, text string) {
	content, _, _ := strings.Cut(text, "#")
	if n == 1 {
		content = strings.TrimPrefix(content, "\ufeff") // some editors write this byte order mark; wg(8) refuses a file with it
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

// takeComments removes the comment lines at the end of s, directly above the next header, and returns them, because they belong
// to the next section.
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
	case !ok || key == "":
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

// each returns the errors that err joins, or err alone.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

const (
	sectionInterface = "Interface"
	sectionPeer      = "Peer"

	space = " \t\n\v\f\r" // the characters that isspace(3) accepts in the C locale
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

// quote returns the value s for use in an error, in quotes and cut to a bounded length. If s could contain a part of a secret,
// quote returns "the value" instead. Use quote only for keys whose values are not secret.
func quote(s string) string {
	switch {
	case secretive(s):
		return "the value"
	case len(s) > 64:
		return fmt.Sprintf("%q...", strings.ToValidUTF8(s[:60], ""))
	}
	return fmt.Sprintf("%q", s)
}

// secretive reports whether s contains text that could be a part of a secret: eight base64 characters in a row, not counting
// white space between them. A number is not secret, nor is a text that as a whole looks like a host name or an address.
func secretive(s string) bool {
	s = squeeze(s)
	host := hostLike.MatchString(s)
	return slices.ContainsFunc(base64Run.FindAllString(s, -1), func(run string) bool {
		return !numeral.MatchString(run) && !(host && hostRun.MatchString(run))
	})
}

// cut splits content, which is a line without its comment, into key and value.
func cut(content string) (key, value string, ok bool) {
	key, value, ok = strings.Cut(content, "=")
	return squeeze(key), strings.Trim(value, space), ok
}

// Clone returns a copy of f. Changes of the copy do not change f.
func (f *File) Clone() *File {
	g := *f
	i := &g.Interface
	i.Addresses, i.DNS, i.Search = slices.Clone(i.Addresses), slices.Clone(i.DNS), slices.Clone(i.Search)
	i.PreUp, i.PostUp = slices.Clone(i.PreUp), slices.Clone(i.PostUp)
	i.PreDown, i.PostDown = slices.Clone(i.PreDown), slices.Clone(i.PostDown)
	g.Peers = slices.Clone(f.Peers)
	for n := range g.Peers {
		p := &g.Peers[n]
		p.MoreEndpoints = slices.Clone(p.MoreEndpoints)
		p.AllowedIPs, p.RemoveAllowedIPs = slices.Clone(p.AllowedIPs), slices.Clone(p.RemoveAllowedIPs)
	}
	return &g
}

// String returns how many peers the file has, and no secret.
func (f *File) String() string { return fmt.Sprintf("(configuration of %d peers)", len(f.Peers)) }

// Format prints the result of String for every verb, so that no verb prints a key.
func (f *File) Format(s fmt.State, _ rune) { io.WriteString(s, f.String()) }

// LogValue returns String.
func (f *File) LogValue() slog.Value { return slog.StringValue(f.String()) }

// ExpandHook returns a hook with %i replaced by the interface's name, as wg-quick(8) passes it to a shell.
func ExpandHook(hook, iface string) string { return strings.ReplaceAll(hook, "%i", iface) }

// Strip returns f without the keys that only wg-quick(8) knows, as `wg-quick strip` prints it for `wg setconf`. It also leaves
// out the sections and keys that only f's [Syntax] declares. Of each peer's endpoints it keeps only the first, because wg(8)
// would use the last one. Unknown keys stay. Strip fails if f has a value that cannot be written.
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
