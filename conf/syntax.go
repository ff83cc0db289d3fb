package conf

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Syntax declares sections and keys that a file may have in addition to those of wg(8) and wg-quick(8). With a Syntax, a program
// can keep its own settings in the same file. The zero value adds nothing. A Syntax may be copied. Concurrent use is safe as long
// as no goroutine changes it.
type Syntax struct {
	// Sections maps the name of each further section, such as "Socks5", to the names of its keys. The names "Interface" and
	// "Peer" add keys to these sections. The name "" declares keys above all sections. Upper and lower case do not matter. Nil
	// adds nothing.
	Sections map[string][]string

	// Semicolons makes each line that begins with a semicolon a comment, as in INI files. False means that such a line is an error
	// or, if it has a =, an unknown key. wg(8) refuses such a line in both cases.
	Semicolons bool

	// AllowUnknown lets File.Config, File.Change and File.Addition accept a file with unknown keys and sections. False makes
	// unknown keys and sections errors. File.Unknown lists them in both cases.
	AllowUnknown bool
}

// A Section is one section of a file, with the keys that a [Syntax] declares. Copies share Entries.
type Section struct {
	Name    string  // spelled as in Syntax.Sections
	Line    int     // the line number of its header, from 1; 0 for the lines above all sections
	Entries []Entry // in the order of the file; only keys that the Syntax declares
}

// An Entry is a line of a [Section]. The Value may be a password, and it is not hidden when a program prints the Entry.
type Entry struct {
	Key   string // spelled as in Syntax.Sections
	Value string // without the white space around it, and without a comment
	Line  int    // the line number, from 1
}

// Sections returns the sections that the file's [Syntax] declares, and those Interface and Peer sections that have declared keys,
// in the order of the file. It also returns declared keys above all sections. The result holds the values as they were read.
// Changing the result does not change the file.
func (f *File) Sections() (sections []Section) {
	for i, s := range f.sections {
		out := Section{Name: s.name, Line: s.line}
		for n, l := range s.lines {
			if key := f.syntax.key(s.name, l.key); key != "" {
				out.Entries = append(out.Entries, Entry{key, l.value(), s.line + 1 + n})
			}
		}
		if len(out.Entries) > 0 || i > 0 && f.syntax.declares(s.name) {
			sections = append(sections, out)
		}
	}
	return sections
}

// orZero returns x, or the zero Syntax if x is nil.
func (x *Syntax) orZero() Syntax {
	if x == nil {
		return Syntax{}
	}
	return *x
}

// section returns the documented or declared spelling of a known section's name, or an empty string if the section is unknown.
func (x *Syntax) section(name string) string {
	for _, known := range x.sections() {
		if strings.EqualFold(known, name) {
			return known
		}
	}
	return ""
}

// sections returns the names of all known sections: those of wg(8), and then the others in alphabetical order.
func (x *Syntax) sections() []string {
	names := []string{sectionInterface, sectionPeer}
	for name := range x.orZero().Sections {
		if name != "" && !strings.EqualFold(name, sectionInterface) && !strings.EqualFold(name, sectionPeer) {
			names = append(names, name)
		}
	}
	slices.Sort(names[2:])
	return names
}

// declares reports whether x declares a section that wg(8) does not know.
func (x *Syntax) declares(section string) bool {
	return section != "" && section != sectionInterface && section != sectionPeer && x.section(section) != ""
}

// key returns the name of a key that x declares in a section, as x spells it, or an empty string.
func (x *Syntax) key(section, key string) string {
	for name, keys := range x.orZero().Sections {
		if !strings.EqualFold(name, section) {
			continue
		}
		for _, k := range keys {
			if key != "" && strings.EqualFold(k, key) {
				return k
			}
		}
	}
	return ""
}

// adds reports whether x declares the key in a section.
func (x *Syntax) adds(section, key string) bool { return x.key(section, key) != "" }

// known reports whether wg(8), wg-quick(8) or x know the key in a section.
func (x *Syntax) known(section, key string) bool {
	return section == sectionInterface && find(interfaceFields, key) != nil || section == sectionPeer && find(peerFields, key) != nil ||
		x.adds(section, key)
}

// keys returns the names of a section's keys.
func (x *Syntax) keys(section string) (keys []string) {
	switch section {
	case sectionInterface:
		keys = names(interfaceFields)
	case sectionPeer:
		keys = names(peerFields)
	}
	for name, more := range x.orZero().Sections {
		if strings.EqualFold(name, section) {
			keys = append(keys, more...)
		}
	}
	return keys
}

// Unknown returns an Error for each key and each section that neither wg(8) nor wg-quick(8) nor the file's [Syntax] knows. The
// Error suggests a known name if one is similar. Text keeps unknown keys. [File.Config] refuses them unless Syntax.AllowUnknown
// is set.
func (f *File) Unknown() (es []*Error) {
	explained := false // whether an earlier Error has explained AmneziaWG
	for i, s := range f.sections {
		if i > 0 && s.name == "" {
			es = append(es, f.syntax.unknownSection(s))
			continue
		}
		for n, l := range s.lines {
			if l.key == "" || f.syntax.known(s.name, l.key) {
				continue
			}
			content, _, _ := strings.Cut(l.text, "#")
			name, value, _ := cut(content)
			why := f.syntax.guess(s.name, l.key)
			if amnezia.MatchString(l.key) {
				if explained {
					why = "another key of AmneziaWG"
				}
				explained = true
			}
			es = append(es, &Error{s.line + 1 + n, f.syntax.printable(name, value), errors.New(why)})
		}
	}
	return es
}

func (x *Syntax) unknownSection(s *section) *Error {
	e := &Error{Line: s.line}
	if s.label != "" {
		e.Key = "[" + s.label + "]"
	}
	if near := x.meantSection(s.label); near != "" {
		e.Err = fmt.Errorf("this section is unknown; write [%s] if that is meant", near)
		return e
	}
	all := x.sections()
	want := "[" + strings.Join(all[:len(all)-1], "], [") + "] or [" + all[len(all)-1] + "]"
	e.Err = fmt.Errorf("this section is unknown; want %s", want)
	return e
}

// guess returns the text of an error for an unknown key: why it is unknown, and which known key may be meant.
func (x *Syntax) guess(section, key string) string {
	what := fmt.Sprintf("not a key of [%s]", section)
	if said := foreign(key); said != "" {
		return what + said
	}
	for _, other := range x.sections() {
		if x.known(other, key) {
			return fmt.Sprintf("%s, but a key of [%s]; move it there", what, other)
		}
	}
	if n := x.meant(section, key); n != "" {
		return fmt.Sprintf("%s; write %s if that is meant", what, n)
	}
	return fmt.Sprintf("%s; the keys are %s", what, strings.Join(x.keys(section), ", "))
}

var amnezia = regexp.MustCompile(`^(jc|jmin|jmax|[sh][1-4]|[ij][1-5]|itime)$`)

// foreign says what a key of AmneziaWG or Cloudflare WARP means. For all other keys, it returns an empty string.
func foreign(key string) string {
	switch {
	case amnezia.MatchString(key):
		return ", but one of AmneziaWG, which disguises its packets; a server that needs it does not answer WireGuard: " +
			"ask its operator for a WireGuard file, or remove AmneziaWG's lines if the server answers without them too"
	case key == "reserved" || key == "clientid":
		return ", but the client identifier of Cloudflare WARP for the three reserved bytes of each message, which this package does not set; " +
			"remove the line if WARP answers without it, or set the bytes in a Bind that is a wireguard.Framer"
	}
	return ""
}

// meant returns the known key of a section that a misspelled key probably means, or an empty string.
func (x *Syntax) meant(section, key string) string { return nearest(x.keys(section), key) }

// meantSection returns the known section that a misspelled name probably means, or an empty string.
func (x *Syntax) meantSection(name string) string { return nearest(x.sections(), name) }

// nearest returns the name that is most similar to word. It returns an empty string if word is too different to be a
// misspelling of any name: if three or more letters differ, or at least half of the name's letters.
func nearest(names []string, word string) (name string) {
	least := 3
	for _, n := range names {
		if d := distance(strings.ToLower(n), strings.ToLower(word)); d < least && 2*d < len(n) {
			name, least = n, d
		}
	}
	return name
}

var short = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]{0,6}$`)

// printable returns the name of an unknown key for use in an error. It returns an empty string if the line could be the second
// half of a secret that was broken in two. Such a line consists of letters and a = with nothing after it. So a name is printable
// if it is known in some section. Otherwise the key must have a value, and the name must be a misspelling of a known name, a key
// of another program, or short (Jc, Jmin, S1).
func (x *Syntax) printable(name, value string) string {
	for _, section := range append(x.sections(), "") {
		if x.known(section, name) || value != "" && x.meant(section, name) != "" {
			return name
		}
	}
	if value != "" && (short.MatchString(name) || foreign(strings.ToLower(name)) != "") {
		return name
	}
	return ""
}
