package conf

import (
	"bytes"
	"slices"
	"strings"
)

// Text returns the text of the file, including its secret keys. Values that the program did not change stay as they were read,
// and changed values replace the old ones on their lines. New keys follow the last key of their section, and new peers follow the
// last section. Text fails if a value cannot be written, and makes no other checks.
func (f *File) Text() ([]byte, error) {
	if err := f.writable(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, s := range f.written() {
		s.write(&b, func(line) bool { return true })
	}
	return b.Bytes(), nil
}

// written returns the sections as they are to be written, with the changes of the program.
func (f *File) written() (out []*section) {
	used := make(map[*section]*Peer, len(f.Peers))
	var added []*section
	for i := range f.Peers {
		p := &f.Peers[i]
		if s := f.at(p.from); s != nil && used[s] == nil {
			used[s] = p
		} else {
			added = append(added, edit(newSection(sectionPeer, f.eol()), new(Peer), p, peerFields))
		}
	}
	home := f.at(f.Interface.from)
	for i, s := range f.sections {
		switch {
		case s.name == sectionInterface && home != nil:
			out = append(out, f.editInterface(s, home))
		case s.name == sectionInterface:
		case used[s] != nil:
			old := reread(s, peerFields)
			out = append(out, edit(s, &old, used[s], peerFields))
		case s.name != sectionPeer:
			out = append(out, s)
		}
		if i == 0 {
			out = append(out, f.newInterface(home)...)
		}
	}
	if len(f.sections) == 0 {
		out = f.newInterface(nil)
	}
	for _, s := range added {
		if len(out) > 0 {
			s.above = []line{{text: f.eol()}}
		}
		out = append(out, s)
	}
	return out
}

// editInterface returns a copy of s, which is one of the Interface sections, with the changes of f.Interface. It writes a changed
// key into home, the first Interface section, and removes the key from the other Interface sections.
func (f *File) editInterface(s, home *section) *section {
	var old Interface
	for _, s := range f.interfaces() {
		for _, field := range interfaceFields {
			for _, n := range s.indexes(field.name) {
				field.parse(&old, s.lines[n].value())
			}
		}
	}
	own := reread(s, interfaceFields)
	e := s
	for _, this := range interfaceFields {
		if slices.Equal(this.values(&old), this.values(&f.Interface)) {
			continue
		}
		if s == home {
			e = edit(e, &own, &f.Interface, []field[Interface]{this})
		} else {
			without := *e
			without.lines = slices.Clone(e.lines)
			without.putSingle(this.name, nil)
			e = &without
		}
	}
	return e
}

// interfaces returns the sections from which f.Interface was read, or none if f.Interface was not read from this file.
func (f *File) interfaces() (sections []*section) {
	if f.at(f.Interface.from) == nil {
		return nil
	}
	for _, s := range f.sections {
		if s.name == sectionInterface {
			sections = append(sections, s)
		}
	}
	return sections
}

// interfaceLine returns the number of the last line that has key in an Interface section. If no line has the key, interfaceLine
// returns the line number of the first Interface header, or 0 if the file has no Interface section.
func (f *File) interfaceLine(key string) int {
	for _, s := range slices.Backward(f.interfaces()) {
		if s.has(key) {
			return s.lineOf(key)
		}
	}
	return f.at(f.Interface.from).lineOf("")
}

// interfaceHas reports whether an Interface section has key.
func (f *File) interfaceHas(key string) bool {
	return slices.ContainsFunc(f.interfaces(), func(s *section) bool { return s.has(key) })
}

// newInterface returns a new section for the interface if the file has none and needs one.
func (f *File) newInterface(home *section) []*section {
	s := edit(newSection(sectionInterface, f.eol()), new(Interface), &f.Interface, interfaceFields)
	if home != nil || len(s.lines) == 0 {
		return nil
	}
	if len(f.sections) > 1 {
		s.lines = append(s.lines, line{text: f.eol()})
	}
	return []*section{s}
}

func newSection(name, eol string) *section {
	return &section{name: name, head: line{text: "[" + name + "]" + eol}}
}

// eol returns the line ending that the file uses.
func (f *File) eol() string {
	for _, s := range f.sections {
		if strings.HasSuffix(s.head.text, "\r\n") {
			return "\r\n"
		}
	}
	return "\n"
}

// reread parses the lines of s again, and returns their values.
func reread[T any](s *section, fields []field[T]) (v T) {
	for _, l := range s.lines {
		if f := find(fields, l.key); f != nil && l.key != "" {
			f.parse(&v, l.value())
		}
	}
	return v
}

// edit returns a copy of s in which the values of v replace those of old. It does not change s.
func edit[T any](s *section, old, v *T, fields []field[T]) *section {
	e := *s
	for _, f := range fields {
		was, is := f.values(old), f.values(v)
		if slices.Equal(was, is) {
			continue
		}
		e.lines = slices.Clone(e.lines)
		switch f.kind {
		case single:
			e.putSingle(f.name, is)
		case lines:
			e.putLines(f.name, was, is)
		case list:
			e.putList(f.name, is, func(line string) []string {
				var v T
				f.parse(&v, line)
				return f.values(&v)
			})
		}
	}
	return &e
}

// putSingle writes the single value of key, or removes it. If several lines have the key, the last one counts, and
// putSingle changes that line.
func (s *section) putSingle(key string, values []string) {
	at := s.indexes(key)
	switch {
	case len(values) == 0:
		for _, n := range slices.Backward(at) {
			s.lines = slices.Delete(s.lines, n, n+1)
		}
	case len(at) > 0:
		s.lines[at[len(at)-1]].setValue(values[0])
	default:
		s.insert(s.end(), key, values[0])
	}
}

// putLines writes the values of key, one per line, in place of the lines with the old values. Unchanged values at the start and
// at the end keep their lines.
func (s *section) putLines(key string, old, values []string) {
	at := slices.DeleteFunc(s.indexes(key), func(n int) bool { return s.lines[n].value() == "" })
	for len(old) > 0 && len(values) > 0 && old[0] == values[0] {
		at, old, values = at[1:], old[1:], values[1:]
	}
	next := s.end() // the index at which to insert the next new line
	if all := s.indexes(key); len(all) > 0 {
		next = all[len(all)-1] + 1
	}
	for n := len(old) - 1; n >= 0 && len(values) > 0 && old[n] == values[len(values)-1]; n-- {
		next, at, old, values = at[n], at[:n], old[:n], values[:len(values)-1]
	}
	for len(at) > len(values) {
		n := at[len(at)-1]
		s.lines = slices.Delete(s.lines, n, n+1)
		at = at[:len(at)-1]
	}
	for i, v := range values {
		if i < len(at) {
			s.lines[at[i]].setValue(v)
		} else {
			s.insert(next, key, v)
			next++
		}
	}
}

// putList writes the values of key, separated by commas. A value stays on its line, with the line's comment, if the order of
// the values allows it. The other values go to the end of the last line that keeps a value, or to the first line if none does.
// putList removes a line that keeps no value. The function read returns the values of a line.
func (s *section) putList(key string, values []string, read func(line string) []string) {
	at := s.indexes(key)
	if len(at) == 0 || len(values) == 0 {
		s.putSingle(key, unless(len(values) == 0, func() string { return strings.Join(values, ", ") }))
		return
	}
	kept := make([][]string, len(at))
	rest, end := values, 0
	for i, n := range at {
		of := read(s.lines[n].value())
		for len(rest) > 0 && slices.Contains(of, rest[0]) {
			kept[i], rest, end = append(kept[i], rest[0]), rest[1:], i
		}
	}
	kept[end] = append(kept[end], rest...)
	for i, n := range slices.Backward(at) {
		if len(kept[i]) == 0 {
			s.lines = slices.Delete(s.lines, n, n+1)
		} else if l := &s.lines[n]; !slices.Equal(read(l.value()), kept[i]) {
			l.setValue(strings.Join(kept[i], ", "))
		}
	}
}

// indexes returns the indexes of the lines with key.
func (s *section) indexes(key string) (at []int) {
	for i, l := range s.lines {
		if strings.EqualFold(l.key, key) && l.key != "" {
			at = append(at, i)
		}
	}
	return at
}

// end returns the index after the last line with a key.
func (s *section) end() int {
	for i := len(s.lines); i > 0; i-- {
		if s.lines[i-1].key != "" {
			return i
		}
	}
	return 0
}

func (s *section) insert(at int, key, value string) {
	eol := "\n"
	if strings.HasSuffix(s.head.text, "\r\n") {
		eol = "\r\n"
	}
	s.lines = slices.Insert(s.lines, at, line{key: strings.ToLower(key), text: key + " = " + value + eol})
}

// value returns the text between the = and a comment.
func (l line) value() string {
	content, _, _ := strings.Cut(l.text, "#")
	_, v, _ := strings.Cut(content, "=")
	return strings.Trim(v, space)
}

// setValue changes the text between the = and a comment, and keeps the white space around it.
func (l *line) setValue(v string) {
	content, comment, hasComment := strings.Cut(l.text, "#")
	before, old, _ := strings.Cut(content, "=")
	leading := old[:len(old)-len(strings.TrimLeft(old, space))]
	trailing := old[len(strings.TrimRight(old, space)):]
	if strings.Trim(old, space) == "" {
		leading, trailing = " ", strings.TrimLeft(old, " \t")
	}
	l.text = before + "=" + leading + v + trailing
	if hasComment {
		l.text += "#" + comment
	}
}

// write writes s without the lines for which keep returns false. If a line has no line ending, write adds one before the next
// line.
func (s *section) write(b *bytes.Buffer, keep func(line) bool) {
	write := func(l line) {
		if n := b.Len(); n > 0 && b.Bytes()[n-1] != '\n' && l.text != "" {
			b.WriteByte('\n')
		}
		b.WriteString(l.text)
	}
	for _, l := range s.above {
		write(l)
	}
	write(s.head)
	for _, l := range s.lines {
		if keep(l) {
			write(l)
		}
	}
}

// has reports whether s has key. s may be nil.
func (s *section) has(key string) bool { return s != nil && len(s.indexes(key)) > 0 }

// lineOf returns the number of the last line of s that has key. If no line has the key, lineOf returns the line number of the
// header. It returns 0 if s is nil.
func (s *section) lineOf(key string) int {
	if s == nil {
		return 0
	}
	if at := s.indexes(key); len(at) > 0 {
		return s.line + 1 + at[len(at)-1]
	}
	return s.line
}

// firstLineOf is like lineOf, but returns the number of the first line that has key.
func (s *section) firstLineOf(key string) int {
	if s != nil {
		if at := s.indexes(key); len(at) > 0 {
			return s.line + 1 + at[0]
		}
	}
	return s.lineOf(key)
}
