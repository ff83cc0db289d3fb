package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// cutUp divides the packet p into fragments with the identification id. Each fragment except the last has size bytes of data. For
// IPv6, extra is how many extension headers of 8 bytes precede the fragment header.
func cutUp(p []byte, id uint32, size, extra int) (fs [][]byte) {
	if p[0]>>4 == 4 {
		data := p[20:]
		for at := 0; at < len(data); at += size {
			end := min(at+size, len(data))
			f := append(slices.Clone(p[:20]), data[at:end]...)
			binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
			binary.BigEndian.PutUint16(f[4:], uint16(id))
			flags := uint16(at / 8)
			if end < len(data) {
				flags |= 1 << 13
			}
			binary.BigEndian.PutUint16(f[6:], flags)
			f[10], f[11] = 0, 0
			binary.BigEndian.PutUint16(f[10:], checksum(f[:20]))
			fs = append(fs, f)
		}
		return fs
	}
	proto, data := p[6], p[40:]
	for at := 0; at < len(data); at += size {
		end := min(at+size, len(data))
		f := slices.Clone(p[:40])
		f[6] = ip6Fragments
		for i := range extra {
			next := ip6Fragments
			if i+1 < extra {
				next = ip6Destination
			}
			f[6] = ip6Destination
			f = append(f, next, 0, 1, 4, 0, 0, 0, 0) // padding
		}
		flags := uint16(at)
		if end < len(data) {
			flags |= 1
		}
		f = binary.BigEndian.AppendUint16(append(f, proto, 0), flags)
		f = append(binary.BigEndian.AppendUint32(f, id), data[at:end]...)
		binary.BigEndian.PutUint16(f[4:], uint16(len(f)-40))
		fs = append(fs, f)
	}
	return fs
}

// fragmentFlows contains, for each family, the address of a sender of fragments and the address to which it sends them.
var fragmentFlows = map[string][2]netip.AddrPort{
	"IPv4": {netip.AddrPortFrom(b4, 5), netip.AddrPortFrom(a4, 9)}, "IPv6": {netip.AddrPortFrom(b6, 5), netip.AddrPortFrom(a6, 9)},
}

// receivedDatagram reads one datagram. It returns false if none has arrived.
func receivedDatagram(t *testing.T, c *UDPConn) (string, bool) {
	t.Helper()
	wait := -time.Second
	if c.arrivals.isReadable() {
		wait = 10 * time.Second
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 65536)
	n, _, err := c.ReadFromUDPAddrPort(b)
	return string(b[:n]), err == nil
}

// TestReassemble delivers the fragments of datagrams in random order, and one fragment twice. It checks that each datagram
// arrives exactly once.
func TestReassemble(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for name, f := range fragmentFlows {
		n, h := byHand(t)
		c, err := n.ListenUDP(f[1])
		if err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			data := strings.Repeat("x", r.IntN(3000)) + fmt.Sprint(i)
			extra := 0
			if name == "IPv6" {
				extra = r.IntN(3)
			}
			parts := cutUp(udpPacket(f[0], f[1], data), uint32(i), 8*(1+r.IntN(200)), extra)
			r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			if len(parts) > 1 {
				parts = slices.Insert(parts, 1, parts[0]) // repeat a fragment before the packet is complete
			}
			h.write(t, parts...)
			if extra > 0 { // another goroutine delivers packets with extension headers
				waitFor(t, c.arrivals.isReadable)
			}
			if got, ok := receivedDatagram(t, c); !ok || got != data {
				t.Fatalf("%s: after %d fragments, the socket received %d bytes, want a datagram of %d", name, len(parts), len(got), len(data))
			}
			if _, ok := receivedDatagram(t, c); ok {
				t.Fatalf("%s: a datagram arrived twice", name)
			}
		}
		if s := n.Stats(); s.Memory != 0 || s.FragmentsDropped != 0 || s.Malformed != 0 {
			t.Errorf("%s: Stats are %+v, want no memory in use and no packets dropped", name, s)
		}
	}
}

// TestReassembleContradiction checks that the link drops a packet whose fragments overlap or disagree about the packet's end, and
// that later fragments do not complete the packet.
func TestReassembleContradiction(t *testing.T) {
	for name, f := range fragmentFlows {
		whole := udpPacket(f[0], f[1], strings.Repeat("x", 100))
		parts := cutUp(whole, 1, 48, 0) // fragments of 48, 48 and 12 bytes
		overlap := cutUp(whole, 1, 40, 0)[1]
		inside := cutUp(whole, 1, 16, 0)[1]
		short := cutUp(whole[:len(whole)-4], 1, 48, 0)[2]
		last := cutUp(whole[:len(whole)-12], 1, 48, 0)[1]
		for what, order := range map[string][][]byte{
			"overlap at the end":   {parts[0], overlap, parts[1], parts[2]},
			"overlap at the start": {parts[1], overlap, parts[0], parts[2]},
			"inside another":       {parts[0], inside, parts[1], parts[2]},
			"two ends":             {parts[0], parts[2], short, parts[1]},
			"data beyond the end":  {parts[2], last, parts[0], parts[1]},
		} {
			n, h := byHand(t)
			c, err := n.ListenUDP(f[1])
			if err != nil {
				t.Fatal(err)
			}
			h.write(t, order...)
			if _, ok := receivedDatagram(t, c); ok {
				t.Errorf("%s: %s: the datagram arrived, want it dropped", name, what)
			}
			if s := n.Stats(); s.Malformed == 0 {
				t.Errorf("%s: %s: Stats count no malformed packet", name, what)
			}
		}
	}
}

// TestReassembleMalformed checks that the link drops fragments that cannot belong to any packet, and that they take no memory.
func TestReassembleMalformed(t *testing.T) {
	n, h := byHand(t)
	for _, f := range fragmentFlows {
		whole := udpPacket(f[0], f[1], strings.Repeat("x", 100))
		odd := cutUp(whole, 1, 44, 0)[0]
		empty := cutUp(whole, 1, 48, 0)[0]
		empty = empty[:len(empty)-48]
		far := cutUp(whole, 1, 48, 0)[0]
		if whole[0]>>4 == 4 {
			binary.BigEndian.PutUint16(empty[2:], uint16(len(empty)))
			far[6], far[7] = 0x3f, 0xff
			for _, p := range [][]byte{empty, far} {
				p[10], p[11] = 0, 0
				binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
			}
		} else {
			binary.BigEndian.PutUint16(empty[4:], uint16(len(empty)-40))
			binary.BigEndian.PutUint16(far[42:], 0xfff9)
		}
		h.write(t, odd, empty, far)
	}
	nested := udpPacket(fragmentFlows["IPv6"][0], fragmentFlows["IPv6"][1], "x")
	nested = cutUp(cutUp(nested, 1, 2000, 0)[0], 2, 2000, 0)[0] // a fragment whose data is again a fragment
	h.write(t, nested)
	if s := n.Stats(); s.Malformed != 7 || s.Memory != 0 {
		t.Errorf("Stats count %d malformed packets, want 7, and %d bytes of memory, want 0", s.Malformed, s.Memory)
	}
}

// TestFragmentsBound lets one party send a flood of fragments without completing a packet. It checks that the
// fragments do not exceed their share of the Net's memory, that Stats count their memory, and that the packets of another party
// are still reassembled.
func TestFragmentsBound(t *testing.T) {
	const memory = 16 << 20
	for _, size := range []int{8, 1280} {
		for name, f := range fragmentFlows {
			n, h := smallNet(t, memory)
			c, err := n.ListenUDP(f[1])
			if err != nil {
				t.Fatal(err)
			}
			other := netip.AddrPortFrom(f[0].Addr().Next(), 5)
			parts := cutUp(udpPacket(other, f[1], strings.Repeat("y", 60000)), 1, 1280, 0)
			before := heapInUse()
			flood := udpPacket(f[0], f[1], strings.Repeat("x", 2000))
			for i := range 20_000 {
				h.write(t, cutUp(flood, uint32(i), size, 0)[i%2])
				if i%400 == 399 && i/400 < len(parts) {
					h.write(t, parts[i/400])
				}
			}
			s, grown := n.Stats(), heapInUse()-before
			t.Logf("%s, %d bytes each: Stats count %d KiB, the heap has %d KiB more", name, size, s.Memory>>10, grown>>10)
			if s.Memory < memory/64 || s.Memory > memory/16+leastFragments {
				t.Errorf("%s, %d bytes each: Stats.Memory is %d bytes, want at least 1/64 and at most about 1/16 of Config.Memory", name, size, s.Memory)
			}
			if grown > int64(s.Memory)+1<<20 && !testkit.Race {
				t.Errorf("%s, %d bytes each: the heap grew by %d bytes, want at most 1 MiB more than Stats.Memory, which is %d", name, size, grown, s.Memory)
			}
			if s.FragmentsDropped == 0 {
				t.Error("Stats count no dropped fragments")
			}
			if got, ok := receivedDatagram(t, c); !ok || got != strings.Repeat("y", 60000) {
				t.Errorf("%s, %d bytes each: another party's packet was lost", name, size)
			}
		}
	}
}

// TestReassemblyTimeout checks that the link drops an incomplete packet after some time, which is 30 seconds outside of this
// test. If the first fragment has arrived, the packet's sender gets an ICMP error.
func TestReassemblyTimeout(t *testing.T) {
	const patience = 200 * time.Millisecond
	for name, f := range fragmentFlows {
		n, h := byHand(t)
		if n.link.fragments.patience != 30*time.Second {
			t.Errorf("incomplete packets wait for %v, want 30 s", n.link.fragments.patience)
		}
		n.link.fragments.patience = patience
		parts := cutUp(udpPacket(f[0], f[1], strings.Repeat("x", 100)), 1, 48, 0)
		later := cutUp(udpPacket(f[0], f[1], strings.Repeat("x", 100)), 2, 48, 0)
		begun := time.Now()
		h.write(t, parts[0], later[1])
		if n.Stats().Memory == 0 {
			t.Errorf("%s: Stats.Memory is 0 although two packets are incomplete", name)
		}
		waitFor(t, func() bool { return n.Stats().Memory == 0 })
		if waited := time.Since(begun); waited < patience {
			t.Errorf("%s: the link dropped the fragments after %v, which is too early", name, waited)
		}
		if d := n.Stats().FragmentsDropped; d != 2 {
			t.Errorf("%s: Stats count %d drops, want 2", name, d)
		}
		var sent [][]byte
		waitFor(t, func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			sent = slices.Clone(h.sent)
			return len(sent) > 0
		})
		if want := packet.ReassemblyTimeout.About(parts[0]); len(sent) != 1 || !bytes.Equal(sent[0], want) {
			t.Errorf("%s: the Net sent %x, want one packet, %x", name, sent, want)
		}
	}
}
