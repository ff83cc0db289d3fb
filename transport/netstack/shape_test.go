package netstack

import (
	"net"
	"reflect"
	"strings"
	"testing"
)

// shapes lists types of package net, and the types of package netstack that correspond to them.
var shapes = []struct{ theirs, ours reflect.Type }{
	{reflect.TypeFor[net.TCPConn](), reflect.TypeFor[TCPConn]()},
	{reflect.TypeFor[net.UDPConn](), reflect.TypeFor[UDPConn]()},
	{reflect.TypeFor[net.TCPListener](), reflect.TypeFor[TCPListener]()},
	{reflect.TypeFor[net.Dialer](), reflect.TypeFor[Dialer]()},
	{reflect.TypeFor[net.ListenConfig](), reflect.TypeFor[ListenConfig]()},
}

const (
	noDescriptor = "a Net has no file descriptor; Endpoint takes its place"
	noMultipath  = "gVisor's TCP has a single path, and TCPConn.MultipathTCP says so"
)

// leftOut lists the methods and fields of package net's types that package netstack's types lack, with the reason.
var leftOut = map[string]string{
	"TCPConn.File":                 noDescriptor,
	"TCPConn.SyscallConn":          noDescriptor,
	"UDPConn.File":                 noDescriptor,
	"UDPConn.SyscallConn":          noDescriptor,
	"TCPListener.File":             noDescriptor,
	"TCPListener.SyscallConn":      noDescriptor,
	"Dialer.Control":               noDescriptor,
	"Dialer.ControlContext":        noDescriptor,
	"ListenConfig.Control":         noDescriptor,
	"Dialer.MultipathTCP":          noMultipath,
	"Dialer.SetMultipathTCP":       noMultipath,
	"ListenConfig.MultipathTCP":    noMultipath,
	"ListenConfig.SetMultipathTCP": noMultipath,
	"Dialer.DialIP":                "a Net has no raw IP connections; Net.Ping sends echo requests, and Net.Stack has raw endpoints",
	"Dialer.DialUnix":              "Unix sockets do not cross a tunnel",
	"Dialer.Resolver":              "the Net's own name servers resolve names",
	"Dialer.DualStack":             "deprecated, and without an effect in package net too",
	"Dialer.Cancel":                "deprecated; a context does its work",
}

// TestShape compares the methods and fields of package net's types with those of package netstack's types.
func TestShape(t *testing.T) {
	used := make(map[string]bool)
	for _, x := range shapes {
		theirs, ours := reflect.PointerTo(x.theirs), reflect.PointerTo(x.ours)
		for i := range theirs.NumMethod() {
			m := theirs.Method(i)
			name := x.theirs.Name() + "." + m.Name
			got, found := ours.MethodByName(m.Name)
			if lacks(t, name, found, used) {
				continue
			}
			if got, want := signature(got.Type), signature(m.Type); got != want {
				t.Errorf("the signature of %s is %s, want %s", name, got, want)
			}
		}
		for i := range x.theirs.NumField() {
			f := x.theirs.Field(i)
			name := x.theirs.Name() + "." + f.Name
			if !f.IsExported() {
				continue
			}
			got, found := x.ours.FieldByName(f.Name)
			if lacks(t, name, found, used) {
				continue
			}
			if got.Type != f.Type {
				t.Errorf("the type of %s is %v, want %v", name, got.Type, f.Type)
			}
		}
	}
	for name := range leftOut {
		if !used[name] {
			t.Errorf("leftOut lists %s, which package net does not have", name)
		}
	}
}

// lacks reports whether package netstack's type lacks the method or field name of package net's type. found says whether package
// netstack's type has it. lacks also returns true if leftOut lists name, and fails the test if found and leftOut contradict each
// other.
func lacks(t *testing.T, name string, found bool, used map[string]bool) bool {
	_, listed := leftOut[name]
	used[name] = true
	if found && listed {
		t.Errorf("%s exists, but leftOut says that it was left out", name)
	} else if !found && !listed {
		t.Errorf("%s is missing: add it, or say in leftOut why it was left out", name)
	}
	return !found || listed
}

// signature returns the type of a method without its receiver, with package net's types replaced by package netstack's types.
func signature(f reflect.Type) string {
	var in, out []string
	for i := 1; i < f.NumIn(); i++ {
		in = append(in, f.In(i).String())
	}
	for i := range f.NumOut() {
		out = append(out, f.Out(i).String())
	}
	s := "(" + strings.Join(in, ", ") + ") (" + strings.Join(out, ", ") + ")"
	for _, x := range shapes {
		s = strings.ReplaceAll(s, x.theirs.String(), x.ours.String())
	}
	return s
}
