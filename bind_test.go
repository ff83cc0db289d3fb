package wireguard

import (
	"bytes"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTrainLen(t *testing.T) {
	for _, c := range []struct{ data, size, want int }{
		{0, 1, 1}, {1, 1, 1}, {1, 2, 1}, {2, 1, 2}, {99, 100, 1}, {100, 100, 1}, {101, 100, 2}, {199, 100, 2}, {200, 100, 2}, {201, 100, 3},
	} {
		train := Train{Data: make([]byte, c.data), Size: c.size}
		if got := train.Len(); got != c.want {
			t.Errorf("%d bytes in datagrams of %d bytes are %d datagrams, want %d", c.data, c.size, got, c.want)
		}
	}
}

// TestTrainDatagrams checks that the datagrams of a train, joined again, are the train's data, and that there are as many as Len
// says. Appending to a datagram must not overwrite the next one.
func TestTrainDatagrams(t *testing.T) {
	data := []byte("abcdefgh")
	for _, size := range []int{-1, 0, 1, 3, 4, 8, 9} {
		for n := range len(data) + 1 {
			train := Train{Data: data[:n], Size: size}
			var all []byte
			count := 0
			for m := range train.Datagrams() {
				count++
				if cap(m) != len(m) || size > 0 && len(m) > size {
					t.Errorf("datagrams of %d bytes in a train of %d bytes: a datagram has length %d and capacity %d", size, n, len(m), cap(m))
				}
				all = append(all, m...)
			}
			if string(all) != string(data[:n]) || count != train.Len() {
				t.Errorf("datagrams of %d bytes in a train of %d bytes: got %d datagrams with the data %q, want %d datagrams", size, n, count, all, train.Len())
			}
			for range train.Datagrams() {
				break // does not panic
			}
		}
	}
}

// TestTrainHeadroom checks that the frames of a train, joined again, are the train's data, and that each datagram is a frame
// without its headroom.
func TestTrainHeadroom(t *testing.T) {
	for _, c := range []struct {
		data             string
		size, headroom   int
		frames, messages string
	}{
		{"--abc--def--g", 5, 2, "--abc --def --g", "abc def g"},
		{"--abc--def", 5, 2, "--abc --def", "abc def"},
		{"--abc--", 5, 2, "--abc --", "abc "},
		{"--abc-", 5, 2, "--abc -", "abc "},
		{"--abc", 0, 2, "--abc", "abc"},
		{"abcde", 2, 0, "ab cd e", "ab cd e"},
	} {
		train := Train{Data: []byte(c.data), Size: c.size, Headroom: c.headroom}
		join := func(seq iter.Seq[[]byte]) string {
			all := slices.Collect(seq)
			if len(all) != train.Len() {
				t.Errorf("%q: %d parts, want %d", c.data, len(all), train.Len())
			}
			return string(bytes.Join(all, []byte(" ")))
		}
		if f, m := join(train.Frames()), join(train.Datagrams()); f != c.frames || m != c.messages {
			t.Errorf("%q: frames %q, datagrams %q; want %q and %q", c.data, f, m, c.frames, c.messages)
		}
	}
}

func TestEndpointText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"192.0.2.1:51820", "192.0.2.1:51820"},
		{" 192.0.2.1:51820\n", "192.0.2.1:51820"},
		{"[2001:db8::1]:1", "[2001:db8::1]:1"},
		{"[fe80::1%eth0]:65535", "[fe80::1%eth0]:65535"},
		{"[::ffff:192.0.2.1]:5", "192.0.2.1:5"},
		{"", "none"},
		{"  ", "none"},
	} {
		e := EndpointOf(netip.MustParseAddrPort("198.51.100.1:1"))
		e.Source, e.Interface = netip.MustParseAddr("198.51.100.2"), 4
		if err := e.UnmarshalText([]byte(c.text)); err != nil || e.String() != c.want {
			t.Errorf("%q is parsed as %v (error %v), want %s", c.text, e, err, c.want)
		}
		if e.Source.IsValid() || e.Interface != 0 {
			t.Errorf("after %q was parsed, the endpoint still has a source or an interface", c.text)
		}
		if p, err := ParseEndpoint(c.text); (err != nil) != !e.IsValid() || p != e {
			t.Errorf("ParseEndpoint(%q) = %v, %v, want %v and an error if the text is empty", c.text, p, err, e)
		}
	}
	for _, text := range []string{
		"192.0.2.1", "192.0.2.1:", ":51820", "192.0.2.1:0", "[2001:db8::1]:0", "2001:db8::1:51820", "example.org:51820",
		"192.0.2.1:65536", "192.0.2.1:-1", "192.0.2.1:+1", "192.0.2.1:x", "192.0.2:1", "192.0.2.1:1 2", "[192.0.2.1]:1",
	} {
		e := EndpointOf(netip.MustParseAddrPort("198.51.100.1:1"))
		err := e.UnmarshalText([]byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), "wireguard: endpoint \""+text+"\": ") {
			t.Errorf("UnmarshalText(%q) returned the error %v, want one that quotes the text", text, err)
		}
		if e, err := ParseEndpoint(text); err == nil || e.IsValid() {
			t.Errorf("ParseEndpoint(%q) = %v, %v, want the zero endpoint and an error", text, e, err)
		}
		if e.String() != "198.51.100.1:1" {
			t.Errorf("UnmarshalText refused %q, but changed the endpoint to %v", text, e)
		}
	}
}

func TestEndpointTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "IPv4")))
		if rapid.Bool().Draw(t, "IPv6") {
			a = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "IPv6")))
		}
		e := EndpointOf(netip.AddrPortFrom(a, rapid.Uint16Range(1, 65535).Draw(t, "port")))
		text, err := e.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Endpoint
		if err := back.UnmarshalText(text); err != nil || back != e {
			t.Fatalf("%v became %v after the text form %q (error %v)", e, back, text, err)
		}
	})
}

func TestEndpointValue(t *testing.T) {
	var zero Endpoint
	if text, err := zero.MarshalText(); zero.IsValid() || zero.String() != "none" || len(text) != 0 || err != nil {
		t.Errorf("the zero endpoint is printed as %v and has the text form %q (error %v)", zero, text, err)
	}
	link := Endpoint{Link: testLink{"relay 7", 7}}
	if _, err := link.MarshalText(); !link.IsValid() || link.String() != "relay 7" || err == nil {
		t.Errorf("an endpoint with a Link is printed as %v, and MarshalText returned the error %v, want an error", link, err)
	}
	a := EndpointOf(netip.MustParseAddrPort("192.0.2.1:1"))
	if !a.IsValid() {
		t.Error("an endpoint with an address is not valid")
	}
	sticky := a
	sticky.Source, sticky.Interface = netip.MustParseAddr("192.0.2.9"), 1
	port := EndpointOf(netip.MustParseAddrPort("192.0.2.1:2"))
	linked := a
	linked.Link = testLink{"relay", 1}
	for _, c := range []struct {
		b    Endpoint
		same bool
		why  string
	}{
		{a, true, "itself"},
		{sticky, true, "SamePlace ignores the local address"},
		{port, false, "another port"},
		{linked, false, "another Link"},
	} {
		if a.SamePlace(c.b) != c.same || c.b.SamePlace(a) != c.same {
			t.Errorf("%v is the same place as %v: %v, want %v: %s", a, c.b, !c.same, c.same, c.why)
		}
	}
	if sticky.forgetSource(); sticky != a {
		t.Errorf("after forgetSource, the endpoint is %+v", sticky)
	}
	if m := map[Endpoint]int{a: 1, linked: 2}; m[a] != 1 || m[linked] != 2 {
		t.Error("a map with endpoints as keys returned wrong values")
	}
}
