package udp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A variant is a Bind that selects one of this package's implementations. A test runs with all variants, unless it tests the
// system calls of a single variant. Each variant has one receiver per family, whatever the number of cores.
type variant struct {
	name string
	bind Bind
	bare bool // without control messages, as on systems that do not have them
}

var variants = []variant{
	{"offload", Bind{Receivers: 1}, false},
	{"no-offload", Bind{NoOffload: true, Receivers: 1}, false},
	{"portable", Bind{Portable: true, Receivers: 1}, false},
	{"bare", Bind{Portable: true, Receivers: 1}, true},
}

// control reports whether a variant sends and receives datagrams with control messages, which hold the source and the type of
// service.
func (v variant) control() bool { return hasControl && !v.bare }

// with returns a copy of v whose Bind the function change has changed.
func (v variant) with(change func(b *Bind)) variant {
	change(&v.bind)
	return v
}

// both runs a test with every variant and with every family that the host has.
func both(t *testing.T, test func(t *testing.T, v variant, f family)) {
	for _, v := range variants {
		for f := range families {
			t.Run(v.name+"/"+f.String(), func(t *testing.T) {
				if !has(f) {
					t.Skipf("needs an %v loopback address", f)
				}
				test(t, v, f)
			})
		}
	}
}

func has(f family) bool {
	s, err := (&Bind{Address: loopback(f)}).Listen(0)
	if err == nil {
		s.Close()
	}
	return err == nil
}

func loopback(f family) netip.Addr {
	if f == ipv4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// An end is a socket under test.
type end struct {
	*Socket
	t testing.TB
}

// listen opens a socket that is closed at the end of the test.
func (v variant) listen(t testing.TB) *end {
	t.Helper()
	s, err := v.bind.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	e := &end{s.(*Socket), t}
	for _, p := range e.paths {
		if p, ok := p.(*portable); ok && v.bare {
			p.control = false
		}
	}
	return e
}

// pair returns two sockets on the loopback address of one family.
func (v variant) pair(t testing.TB, f family) (x, y *end) {
	t.Helper()
	v.bind.Address = loopback(f)
	return v.listen(t), v.listen(t)
}

// at returns the endpoint of e on the loopback address.
func (e *end) at(f family) wireguard.Endpoint {
	return wireguard.EndpointOf(netip.AddrPortFrom(loopback(f), e.Port()))
}

func (e *end) receiver(f family) wireguard.Receiver {
	e.t.Helper()
	if e.paths[f] == nil {
		e.t.Fatalf("the socket has no path for %v", f)
	}
	return e.paths[f]
}

// send sends trains that must all succeed.
func (e *end) send(ts ...wireguard.Train) {
	e.t.Helper()
	e.Send(ts)
	for i := range ts {
		if ts[i].Err != nil {
			e.t.Fatalf("train %d to %v: %v", i, ts[i].Endpoint, ts[i].Err)
		}
	}
}

// A datagram is a copy of a received datagram.
type datagram struct {
	data []byte
	from wireguard.Endpoint
	tos  uint8
}

// receive waits for n datagrams, and fails the test if they do not arrive.
func (e *end) receive(f family, n int) []datagram {
	e.t.Helper()
	var got []datagram
	for len(got) < n {
		for _, t := range e.trains(f) {
			got = append(got, split(t)...)
		}
	}
	if len(got) > n {
		e.t.Fatalf("received %d datagrams, want %d", len(got), n)
	}
	return got
}

// trains calls Receive once. If Receive has not returned after 20 s, trains closes the socket, so that the test fails.
func (e *end) trains(f family) []wireguard.Train {
	e.t.Helper()
	late := time.AfterFunc(20*time.Second, func() { e.Close() })
	defer late.Stop()
	ts, err := e.receiver(f).Receive()
	if err != nil {
		e.t.Fatalf("Receive: %v", err)
	}
	if len(ts) == 0 {
		e.t.Fatal("Receive returned no train and no error")
	}
	return ts
}

func split(t wireguard.Train) []datagram {
	var ds []datagram
	for rest := t.Data; len(rest) > 0; {
		n := min(t.Size, len(rest))
		ds = append(ds, datagram{bytes.Clone(rest[:n]), t.Endpoint, t.TOS})
		rest = rest[n:]
	}
	return ds
}

// numbered returns n bytes. Each group of 4 bytes contains the seed and the position of the group.
func numbered(seed, n int) []byte {
	b := make([]byte, n+4)
	for i := 0; i < n; i += 4 {
		binary.BigEndian.PutUint32(b[i:], uint32(seed)<<16|uint32(i/4))
	}
	return b[:n]
}

// trainOf returns a train of n bytes, in datagrams of size bytes.
func trainOf(seed, n, size int, to wireguard.Endpoint) wireguard.Train {
	return wireguard.Train{Data: numbered(seed, n), Size: size, Endpoint: to}
}

// wantTrain checks that got contains the datagrams of the train want, in order.
func wantTrain(t testing.TB, got []datagram, want wireguard.Train) {
	t.Helper()
	sent := split(want)
	if len(got) != len(sent) {
		t.Fatalf("got %d datagrams, want %d", len(got), len(sent))
	}
	for i := range got {
		if !bytes.Equal(got[i].data, sent[i].data) {
			t.Fatalf("datagram %d of %d: the %d received bytes differ from the %d bytes sent", i, len(sent), len(got[i].data), len(sent[i].data))
		}
	}
}
