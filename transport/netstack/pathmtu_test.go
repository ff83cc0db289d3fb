package netstack

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// icmpSumOf returns the ones' complement sum of the ICMP message that begins at p[at]. It is 0xffff if the checksum is right.
func icmpSumOf(p []byte, at int) uint16 {
	if p[0]>>4 == 4 {
		return packet.Sum(p[at:], 0)
	}
	pseudo := append(bytes.Clone(p[8:40]), 0, 0, 0, 0, 0, 0, 0, protoICMP6)
	binary.BigEndian.PutUint32(pseudo[32:], uint32(len(p)-at))
	return packet.Sum(append(pseudo, p[at:]...), 0)
}

// TestRaiseMTU passes "packet too big" errors with many MTUs to raiseMTU. It checks that raiseMTU raises only MTUs below the
// minimum, changes nothing else, and keeps the checksum right.
func TestRaiseMTU(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 5000 {
		f, least := handFlows["IPv4"], uint32(552)
		if i%2 == 1 {
			f, least = handFlows["IPv6"], 1280
		}
		mtu := r.Uint32N(1500)
		if i < 20 {
			mtu = uint32(i) / 2 * 200
		}
		s := segment{from: f[1], to: f[0], seq: r.Uint32(), ack: r.Uint32(), flags: flagACK, payload: make([]byte, r.IntN(30))}
		p := packet.TooBig(s.packet(), int(mtu))
		l3, _ := headerEnd(p)
		want := bytes.Clone(p)
		binary.BigEndian.PutUint32(want[l3+4:], max(mtu, least))
		if !raiseMTU(p) {
			t.Fatal("raiseMTU returned false, so the link would drop the ICMP error")
		}
		copy(want[l3+2:l3+4], p[l3+2:]) // the checksum
		if !bytes.Equal(p, want) || icmpSumOf(p, l3) != 0xffff {
			t.Fatalf("raiseMTU of an error with the MTU %d:\n%x, want\n%x", mtu, p, want)
		}
	}
}

// TestRaiseMTUHidden checks raiseMTU with errors behind extension headers and in fragments.
func TestRaiseMTUHidden(t *testing.T) {
	f := handFlows["IPv6"]
	p := packet.TooBig(segment{from: f[1], to: f[0], flags: flagACK}.packet(), 100)
	insert := func(next uint8, h ...byte) []byte {
		q := append(append(bytes.Clone(p[:40]), h...), p[40:]...)
		q[ip6Next] = next
		return q
	}
	f4 := handFlows["IPv4"]
	p4 := packet.TooBig(segment{from: f4[1], to: f4[0], flags: flagACK}.packet(), 100)
	later4 := bytes.Clone(p4)
	later4[7] = 3
	echo4 := bytes.Clone(p4)
	echo4[20] = 8
	for name, x := range map[string]struct {
		p      []byte
		at     int // offset of the ICMP header; 0 means that p must not change
		passes bool
	}{
		"hop-by-hop options":              {insert(ip6HopByHop, 58, 0, 1, 4, 0, 0, 0, 0), 48, true},
		"a long header":                   {insert(ip6Destination, append([]byte{58, 1}, make([]byte, 14)...)...), 56, true},
		"two headers":                     {insert(ip6Routing, append([]byte{60, 0, 0, 0, 0, 0, 0, 0, 58, 0}, make([]byte, 6)...)...), 56, true},
		"first fragment":                  {insert(ip6Fragments, 58, 0, 0, 1, 0, 0, 0, 9), 48, true},
		"later fragment":                  {insert(ip6Fragments, 58, 0, 0, 9, 0, 0, 0, 9), 0, true},
		"fragment without ICMP's header":  {insert(ip6Fragments, 58, 0, 0, 1, 0, 0, 0, 9)[:52], 0, false},
		"fragment without further header": {insert(ip6Fragments, 60, 0, 0, 1, 0, 0, 0, 9)[:52], 0, false},
		"header longer than the packet":   {insert(ip6HopByHop, 58, 200, 1, 4, 0, 0, 0, 0), 0, false},
		"cut header":                      {insert(ip6HopByHop, 58, 0, 1, 4, 0, 0, 0, 0)[:44], 0, false},
		"another protocol":                {insert(ip6HopByHop, 17, 0, 1, 4, 0, 0, 0, 0), 0, true},
		"IPv4":                            {p4, 20, true},
		"IPv4, first fragment":            {fragment(bytes.Clone(p4)), 20, true},
		"IPv4, first fragment of 4 bytes": {fragment(bytes.Clone(p4))[:24], 0, false},
		"IPv4, later fragment":            {later4, 0, true},
		"IPv4, echo request":              {echo4, 0, true},
	} {
		was := bytes.Clone(x.p)
		if ok := raiseMTU(x.p); ok != x.passes {
			t.Errorf("%s: raiseMTU returned %v, want the opposite", name, ok)
		} else if x.at == 0 && !bytes.Equal(was, x.p) {
			t.Errorf("%s: raiseMTU changed the packet", name)
		} else if x.at != 0 && (binary.BigEndian.Uint32(x.p[x.at+4:]) < 552 || icmpSumOf(x.p, x.at) != 0xffff) {
			t.Errorf("%s: after raiseMTU, the MTU is too small or the checksum is wrong: %x", name, x.p[x.at:])
		}
	}
}

func FuzzRaiseMTU(f *testing.F) {
	for _, x := range handFlows {
		f.Add(packet.TooBig(segment{from: x[1], to: x[0], flags: flagACK}.packet(), 100))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		l3, ok := headerEnd(append(bytes.Clone(p), 0))
		if !ok || len(p) < max(l3, packet.IP4Header) {
			return // receive drops such packets
		}
		was := bytes.Clone(p)
		raiseMTU(p)
		changed := 0
		for i := range p {
			if p[i] != was[i] {
				changed++
			}
		}
		if changed > 6 {
			t.Errorf("raiseMTU changed %d bytes, want at most the 6 of the MTU and the checksum", changed)
		}
	})
}

// TestTooBigAboutOthers lets a peer report tiny MTUs about the connections of another peer. It checks that the segments of these
// connections do not become too small to carry data.
func TestTooBigAboutOthers(t *testing.T) {
	h := newHostile(t)
	for _, mtu := range []int{0, 1, 68, 300} {
		for _, w := range h.witnesses {
			ours, theirs := w.RemoteAddr().(*net.TCPAddr).AddrPort(), w.LocalAddr().(*net.TCPAddr).AddrPort()
			p := packet.TooBig(segment{from: ours, to: theirs, seq: 12345, flags: flagACK}.packet(), mtu)
			mine := map[bool]netip.Addr{true: b4, false: b6}[ours.Addr().Is4()]
			if ours.Addr().Is6() {
				copy(p[ip6Addresses:], mine.AsSlice())
				p[42], p[43] = 0, 0
				binary.BigEndian.PutUint16(p[42:], ^icmpSumOf(p, 40))
			} else {
				copy(p[ip4Addresses:], mine.AsSlice())
				p[10], p[11] = 0, 0
				binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
			}
			const total = 256 << 10
			packets := h.bystander.stack.Stats().TCP.ValidSegmentsReceived
			before := packets.Value()
			h.write(t, p)
			time.Sleep(20 * time.Millisecond) // another goroutine delivers the ICMP error
			go func() { _, _ = w.Write(make([]byte, total)) }()
			_ = w.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.CopyN(io.Discard, w, total); err != nil {
				t.Fatalf("transfer after another peer reported an MTU of %d: %v", mtu, err)
			}
			if n := packets.Value() - before; n > total/400 {
				t.Errorf("after another peer reported an MTU of %d, %v sent %d segments for %d bytes, want at most one per 400 bytes", mtu, ours, n, total)
			}
		}
	}
}
