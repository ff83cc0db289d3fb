package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// An inbox receives the packets that a link delivers, in place of the stack.
type inbox struct {
	stack.NetworkEndpoint // makes an inbox a NetworkEndpoint; only HandlePacket is called

	delivered []delivery
	discard   bool
}

type delivery struct {
	packet  []byte
	checked bool
}

func (in *inbox) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, p *stack.PacketBuffer) {
	in.take(p, true)
}
func (in *inbox) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}
func (in *inbox) HandlePacket(p *stack.PacketBuffer)                                 { in.take(p, false) }

func (in *inbox) take(p *stack.PacketBuffer, checked bool) {
	if in.discard {
		return
	}
	v := p.ToView()
	in.delivered = append(in.delivered, delivery{v.ToSlice(), checked})
	v.Release()
}

// receiver returns a Net and an inbox that takes the place of the Net's stack and keeps the packets that arrive.
func receiver(t testing.TB) (*Net, *inbox) {
	n, err := New(Config{Addresses: []netip.Addr{a4, a6}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	in := new(inbox)
	n.link.Attach(in)
	n.link.own.endpoint4, n.link.own.endpoint6 = in, in
	return n, in
}

// A script makes packets from fuzzed bytes. Most of the packets are plausible, and some have one unusual property.
type script struct {
	b     []byte
	flows [12]scriptFlow
}

type scriptFlow struct {
	begun        bool
	l3, l4, size int
	p            []byte // the last packet
}

func (s *script) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	b := s.b[0]
	s.b = s.b[1:]
	return b
}

// next returns another packet, and the number of the flow that it belongs to.
func (s *script) next() (p []byte, flow int) {
	flow = int(s.byte()) % len(s.flows)
	f := &s.flows[flow]
	if !f.begun {
		f.begun = true
		f.size = 1 + int(s.byte())*11
		f.p, f.l3, f.l4 = tcpPacket(rand.New(rand.NewSource(int64(flow))), flow%2 == 1, flow%4, f.size)
		f.p[f.l3+13] = tcpACK
		mendSums(f.p, f.l3)
		return f.p, flow
	}
	l3, l4 := f.l3, f.l4
	n := f.size
	odd := s.byte()
	switch odd {
	case 1:
		n = int(s.byte()) * 12
	case 2:
		n = 0
	case 3:
		n = f.size / 2
	}
	p = append(bytes.Clone(f.p[:l4]), make([]byte, n)...)
	for i := l4; i < len(p); i++ {
		p[i] = byte(i) ^ s.byteAt(i)
	}
	if p[0]>>4 == 4 {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+1)
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	}
	seq := binary.BigEndian.Uint32(f.p[l3+4:]) + uint32(len(f.p)-l4)
	switch odd {
	case 4:
		seq += 1 + uint32(s.byte())
	case 5:
		seq -= 1 + uint32(s.byte())
	case 6, 7, 8, 9:
		p[l3+13] ^= 1 << (s.byte() % 8) // flip a flag
	case 10:
		p[l3+8+int(s.byte())%4]++ // change the acknowledgement number
	case 11:
		p[l3+14+int(s.byte())%2]++ // change the window
	case 12:
		if l4 > l3+20 {
			p[l3+20+int(s.byte())%(l4-l3-20)]++ // change an option
		}
	case 13:
		p[1] += s.byte() // change the type of service or traffic class
	case 14:
		if p[0]>>4 == 4 {
			p[8]++ // change the time to live
		} else {
			p[7]++
		}
	case 15:
		if p[0]>>4 == 4 {
			p[6] ^= 0x40 // flip "don't fragment"
		} else {
			p[3]++ // change the flow label
		}
	case 16:
		p[l3+13] |= packet.PSH
	case 17:
		if p[0]>>4 == 4 {
			p[7]++ // make the packet a fragment, which waits for other fragments
		}
	}
	binary.BigEndian.PutUint32(p[l3+4:], seq)
	mendSums(p, l3)
	f.p = bytes.Clone(p)
	f.p[l3+13] = f.p[l3+13]&^0x0f | tcpACK
	if p[0]>>4 == 4 {
		f.p[6], f.p[7] = f.p[6]&0x40, 0
	}
	switch odd {
	case 18:
		p[int(s.byte())%len(p)] ^= 1 << (s.byte() % 8) // damage a bit
	case 19:
		p = p[:int(s.byte())%len(p)] // cut the end off
	}
	return p, flow
}

func (s *script) byteAt(i int) byte {
	if len(s.b) == 0 {
		return 0
	}
	return s.b[i%len(s.b)]
}

// intact reports whether p is a packet that must be delivered, and whether it is a TCP packet. It uses simple, slow checks.
func intact(p []byte) (whole, tcp bool) {
	if len(p) < 20 {
		return false, false
	}
	l3, proto := 40, byte(0)
	switch {
	case p[0]>>4 == 4:
		l3 = int(p[0]&15) * 4
		if l3 < 20 || l3 > len(p) || int(binary.BigEndian.Uint16(p[2:])) != len(p) || checksum(p[:l3]) != 0 {
			return false, false
		}
		if p[6]&^0x40 != 0 || p[7] != 0 {
			return false, false
		}
		proto = p[9]
	case p[0]>>4 == 6 && len(p) >= 40 && int(binary.BigEndian.Uint16(p[4:])) == len(p)-40:
		if proto = p[6]; proto == ip6Fragments {
			return false, false
		}
	default:
		return false, false
	}
	if proto != 6 {
		return true, false
	}
	if len(p) < l3+20 {
		return false, true
	}
	l4 := l3 + int(p[l3+12]>>4)*4
	return l4 >= l3+20 && l4 <= len(p) && checksum(slowPseudo(p, l3, 6), p[l3:]) == 0, true
}

// mergeable reports whether the packets ps, which are intact and belong to one connection, may be delivered as one packet.
func mergeable(ps [][]byte) bool {
	l3 := 20
	if ps[0][0]>>4 == 6 {
		l3 = 40
	}
	if ps[0][0]>>4 == 4 && ps[0][0] != 0x45 {
		return false
	}
	l4 := l3 + int(ps[0][l3+12]>>4)*4
	blank := func(p []byte) []byte { // clears the fields that may differ
		h := bytes.Clone(p[:l4])
		if p[0]>>4 == 4 {
			clear(h[2:6])
			clear(h[10:12])
		} else {
			clear(h[4:6])
		}
		clear(h[l3+4 : l3+8])
		h[l3+13] &^= packet.PSH
		clear(h[l3+16 : l3+18])
		return h
	}
	total := len(ps[0])
	for i, p := range ps {
		switch {
		case len(p) <= l4, p[l3+13]&^packet.PSH != tcpACK:
			return false
		case i < len(ps)-1 && (p[l3+13]&packet.PSH != 0 || len(p) != len(ps[0])):
			return false
		case len(p) > len(ps[0]):
			return false
		}
		if i == 0 {
			continue
		}
		before := ps[i-1]
		if binary.BigEndian.Uint32(p[l3+4:]) != binary.BigEndian.Uint32(before[l3+4:])+uint32(len(before)-l4) ||
			!bytes.Equal(blank(p), blank(ps[0])) || !bytes.Equal(p[l3+18:l3+20], ps[0][l3+18:l3+20]) {
			return false
		}
		total += len(p) - l4
	}
	return total <= 65535
}

// merged returns one packet with the payloads of ps. Its TCP checksum is that of the first packet.
func merged(ps [][]byte) []byte {
	l3 := 20
	if ps[0][0]>>4 == 6 {
		l3 = 40
	}
	l4 := l3 + int(ps[0][l3+12]>>4)*4
	m := bytes.Clone(ps[0])
	for _, p := range ps[1:] {
		m = append(m, p[l4:]...)
		m[l3+13] |= p[l3+13] & packet.PSH
	}
	if m[0]>>4 == 4 {
		binary.BigEndian.PutUint16(m[2:], uint16(len(m)))
		m[10], m[11] = 0, 0
		binary.BigEndian.PutUint16(m[10:], checksum(m[:l3]))
	} else {
		binary.BigEndian.PutUint16(m[4:], uint16(len(m)-40))
	}
	return m
}

// account checks that got has, for each flow, exactly the flow's intact packets in order. Each packet may be merged with the
// packets that follow it.
func account(t *testing.T, sent [][][]byte, got []delivery) {
	t.Helper()
next:
	for i, d := range got {
		for flow, ps := range sent {
			if len(ps) > 0 && bytes.Equal(d.packet, ps[0]) {
				if _, tcp := intact(ps[0]); d.checked != tcp {
					t.Fatalf("packet %d: it was delivered with checksums marked as right: %v, want %v", i, d.checked, tcp)
				}
				sent[flow] = ps[1:]
				continue next
			}
			for k := 2; k <= len(ps) && len(merged(ps[:k-1])) < len(d.packet); k++ {
				if bytes.Equal(merged(ps[:k]), d.packet) {
					if !mergeable(ps[:k]) {
						t.Fatalf("packet %d: it merges %d packets that must not be merged", i, k)
					}
					sent[flow] = ps[k:]
					continue next
				}
			}
		}
		t.Fatalf("packet %d of %d bytes is not the next packet of any flow:\n%x", i, len(d.packet), d.packet[:min(100, len(d.packet))])
	}
	for flow, ps := range sent {
		if len(ps) > 0 {
			t.Fatalf("flow %d: %d packets were not delivered", flow, len(ps))
		}
	}
}

// FuzzCoalesce passes arbitrary sequences of packets to a Net. It checks that each flow's intact packets arrive in order and
// unchanged, and that only packets that may be merged are merged.
func FuzzCoalesce(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0, 100, 0, 0}, 60))
	f.Add(bytes.Repeat([]byte{1, 100, 1, 0, 2, 0}, 60))
	every := []byte{}
	for odd := range byte(20) {
		every = append(every, 3, 60, 3, 0, 3, odd, 7, 9, 3, 0, 2, 0)
	}
	f.Add(every)
	for seed := range int64(20) {
		b := make([]byte, 400)
		rand.New(rand.NewSource(seed)).Read(b)
		for i := range b {
			if b[i] > 60 {
				b[i] = 0
			}
		}
		f.Add(b)
	}
	f.Add([]byte("c0c\x12\x000c\t")) // a change of the traffic class must not split a flow in two
	n, in := receiver(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := script{b: b}
		var pkts [][]byte
		others := len(s.flows) // index for other protocols, whose packets overtake the segments that wait to be merged
		sent := make([][][]byte, others+1)
		for len(s.b) > 0 && len(pkts) < 300 {
			p, flow := s.next()
			pkts = append(pkts, p)
			if whole, tcp := intact(p); whole {
				if !tcp {
					flow = others
				}
				sent[flow] = append(sent[flow], bytes.Clone(p))
			}
		}
		in.delivered = nil
		if got, err := n.WritePackets(pkts); got != len(pkts) || err != nil {
			t.Fatalf("WritePackets took %d of %d packets and returned the error %v", got, len(pkts), err)
		}
		for _, p := range pkts { // the Net must not use them after WritePackets
			for i := range p {
				p[i] = 0xdb
			}
		}
		account(t, sent, in.delivered)
	})
}

// stream returns n consecutive segments of size bytes each.
func stream(v6 bool, flow, n, size int) (ps [][]byte) {
	first, l3, l4 := tcpPacket(rand.New(rand.NewSource(int64(flow))), v6, 3, size)
	for i := range n {
		p := bytes.Clone(first)
		p[l3+13] = tcpACK
		binary.BigEndian.PutUint32(p[l3+4:], uint32(i*size))
		p[l4] = byte(i)
		mendSums(p, l3)
		ps = append(ps, p)
	}
	return ps
}

// TestCoalesce checks that all packets that may be merged are merged.
func TestCoalesce(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		n, in := receiver(t)
		deliver := func(what string, ps [][]byte, want int) {
			t.Helper()
			in.delivered = nil
			_, _ = n.WritePackets(ps)
			if len(in.delivered) != want {
				t.Errorf("%s: %d packets were delivered, want %d", what, len(in.delivered), want)
			}
		}
		one := stream(v6, 1, 46, 1340)
		deliver("one train", one, 1)
		deliver("two trains", stream(v6, 1, 92, 1340), 2)

		var mixed [][]byte
		for i := range 10 {
			for flow := range packet.MaxRuns {
				mixed = append(mixed, stream(v6, flow, 10, 100)[i])
			}
		}
		deliver("interleaved packets of as many flows as there are runs", mixed, packet.MaxRuns)

		l3 := len(one[0]) - 1340 - 32
		one[20][l3+13] |= packet.PSH
		mendSums(one[20], l3)
		deliver("a segment with PSH in the middle", one, 2)
		ack := bytes.Clone(one[30][:l3+32])
		if v6 {
			binary.BigEndian.PutUint16(ack[4:], 32)
		} else {
			binary.BigEndian.PutUint16(ack[2:], uint16(len(ack)))
		}
		mendSums(ack, l3)
		deliver("an acknowledgement between segments", append(append(bytesClones(one[30:35]), ack), one[35:40]...), 3)

		if err := n.Stack().SetForwardingDefaultAndAllNICs(ipv4.ProtocolNumber, true); err != nil {
			t.Fatal(err)
		}
		if err := n.Stack().SetForwardingDefaultAndAllNICs(ipv6.ProtocolNumber, true); err != nil {
			t.Fatal(err)
		}
		deliver("a stack that forwards", one, len(one))
	}
}

func bytesClones(bs [][]byte) (c [][]byte) {
	for _, b := range bs {
		c = append(c, bytes.Clone(b))
	}
	return c
}

func TestReceiveAllocates(t *testing.T) {
	if testkit.Race {
		t.Skip("the race detector empties pools at random")
	}
	n, in := receiver(t)
	in.discard = true
	for _, v6 := range []bool{false, true} {
		ps := stream(v6, 1, 46, 1340)
		if n := testing.AllocsPerRun(100, func() { _, _ = n.WritePackets(ps) }); n != 0 {
			t.Errorf("receiving a train of 46 segments allocates %v times, want 0", n)
		}
	}
}

func BenchmarkReceive(b *testing.B) {
	n, in := receiver(b)
	in.discard = true
	ps := stream(false, 1, 46, 1340)
	b.SetBytes(46 * 1340)
	for b.Loop() {
		_, _ = n.WritePackets(ps)
	}
}
