package netstack

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

var hostiles = flag.Int("hostiles", 40, "how many scripts TestHostilePeer runs")

func (h *hostile) byte() byte     { return h.script.byte() }
func (h *hostile) uint16() uint16 { return uint16(h.byte())<<8 | uint16(h.byte()) }
func (h *hostile) uint32() uint32 { return uint32(h.uint16())<<16 | uint32(h.uint16()) }

// near returns a difference between sequence numbers: 0, less than 256 or 65,536 in either direction, or any number.
func (h *hostile) near() uint32 {
	switch k := h.byte(); k % 8 {
	case 0, 1, 2:
		return 0
	case 3:
		return uint32(h.byte())
	case 4:
		return -uint32(h.byte())
	case 5:
		return uint32(h.uint16())
	case 6:
		return -uint32(h.uint16())
	default:
		return h.uint32()
	}
}

// step reads one byte of the script, and does what the byte says.
func (h *hostile) step() {
	switch h.byte() % 12 {
	case 0:
		h.open()
	case 1, 2, 3, 4:
		h.speak()
	case 5, 6:
		h.repeat()
	case 7:
		h.split()
	case 8:
		h.complain()
	case 9:
		h.datagram()
	case 10:
		h.raw()
	case 11:
		h.flood()
	}
}

// put sends p, and remembers it for repeat and split.
func (h *hostile) put(p []byte) {
	h.write(h.t, slices.Clone(p))
	if h.last = append(h.last, p); len(h.last) > 8 {
		h.last = h.last[1:]
	}
}

// addrs returns a source address that belongs to the hostile peer, and a destination address that is usually the Net's.
func (h *hostile) addrs() (from, to netip.Addr) {
	k := h.byte()
	v6 := k&1 != 0
	from, to = b4, a4
	if v6 {
		from, to = b6, a6
	}
	if k&2 != 0 {
		b := hostilePrefix[v6].AsSlice()
		b[len(b)-1], b[len(b)-2] = h.byte(), h.byte()
		from, _ = netip.AddrFromSlice(b)
	}
	if k&12 == 12 {
		others := []string{"10.8.0.3", "10.255.255.255", "255.255.255.255", "224.0.0.1", "0.0.0.0", "127.0.0.1"}
		if v6 {
			others = []string{"fd08::3", "ff02::1", "ff02::1:ff00:1", "::", "::1", "fe80::1"}
		}
		to = netip.MustParseAddr(others[int(h.byte())%len(others)])
	}
	return from, to
}

// open makes a connection like an honest peer. If the Net does not answer the SYN, for example because the port is in use, open
// makes no connection.
func (h *hostile) open() {
	if len(h.conns) == 4 {
		h.conns = h.conns[1:]
	}
	from, to := b4, a4
	if h.byte()&1 != 0 {
		from, to = b6, a6
	}
	own := netip.AddrPortFrom(from, 1024+h.uint16()%60000)
	if c, ok := h.tryConnect(h.t, own, netip.AddrPortFrom(to, 7), 30*time.Millisecond); ok {
		h.conns = append(h.conns, c)
	}
}

// speak sends a segment on one of the connections, or a SYN for a new one.
func (h *hostile) speak() {
	var s segment
	var c *handConn
	if k := int(h.byte()); len(h.conns) > 0 && k%8 != 7 {
		c = h.conns[k%len(h.conns)]
		s = c.segment(flagACK, nil)
	} else {
		from, to := h.addrs()
		s = segment{from: netip.AddrPortFrom(from, 1024+h.uint16()%60000), to: netip.AddrPortFrom(to, []uint16{7, 7, 7, 9}[k/8%4]), flags: flagSYN, seq: h.uint32()}
	}
	s.seq += h.near()
	s.ack += h.near()
	s.payload = make([]byte, []int{0, 0, 1, 1, 100, 1000, 1400, 9000}[h.byte()%8])
	for i := range s.payload {
		s.payload[i] = byte(i)
	}
	if k := h.byte(); k&3 == 0 {
		s.flags ^= h.byte()
	} else if k&3 == 1 {
		s.flags |= flagPSH
	}
	if k := h.byte(); k&1 != 0 {
		s.window = h.uint16() >> (k >> 4)
	}
	s.options = h.options()
	if c != nil && s.seq == c.next && s.flags&(flagSYN|flagRST) == 0 {
		c.next += uint32(len(s.payload))
	}
	if c != nil && h.byte()&3 == 0 {
		h.readAck(c)
	}
	h.put(s.packet())
}

// readAck sets the acknowledgement number of c to the end of the latest segment that the Net sent on c.
func (h *hostile) readAck(c *handConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.sent {
		if s, ok := parseSegment(p); ok && c.mine(s) && s.flags&(flagSYN|flagRST) == 0 {
			c.ack = s.seq + uint32(len(s.payload))
		}
	}
}

// options returns either TCP options like those of a real stack, or arbitrary bytes.
func (h *hostile) options() (o []byte) {
	k := h.byte()
	switch k % 8 {
	case 0, 1, 2, 3:
		return nil
	case 4: // a timestamp
		o = append([]byte{1, 1, 8, 10}, make([]byte, 8)...)
		binary.BigEndian.PutUint32(o[4:], h.uint32())
		binary.BigEndian.PutUint32(o[8:], h.uint32())
	case 5: // selective acknowledgements
		o = []byte{1, 1, 5, 2}
		for range 1 + k/8%4 {
			at := h.uint32()
			if len(h.conns) > 0 {
				at = h.conns[0].ack + h.near()
			}
			o = binary.BigEndian.AppendUint32(o, at)
			o = binary.BigEndian.AppendUint32(o, at+h.near())
			o[3] += 8
		}
	case 6: // the options of a SYN
		o = []byte{2, 4, h.byte(), h.byte(), 4, 2, 1, 3, 3, h.byte(), 0, 0}
	case 7:
		for range int(k/8) % 10 * 4 {
			o = append(o, h.byte())
		}
	}
	return o
}

// repeat sends an earlier packet again, after it has cut the packet or changed bytes in it.
func (h *hostile) repeat() {
	if len(h.last) == 0 {
		return
	}
	p := slices.Clone(h.last[int(h.byte())%len(h.last)])
	k := h.byte()
	if k&1 != 0 {
		p = p[:max(1, len(p)-int(h.uint16())%len(p))]
	}
	for range k >> 1 & 3 {
		at := int(h.byte())
		if h.byte()&1 != 0 {
			at = at % 80
		}
		p[at%len(p)] = h.byte()
	}
	h.mend(p, k>>3&1 != 0)
	h.put(p)
}

// mend corrects the lengths in p and the IPv4 checksum. It replaces the source address of p if the device would drop p because
// of that address. If sums is set, mend also corrects TCP's checksum.
func (h *hostile) mend(p []byte, sums bool) {
	l3, ok := headerEnd(p)
	if !ok {
		return
	}
	if p[0]>>4 == 4 {
		binary.BigEndian.PutUint16(p[ip4Length:], uint16(len(p)))
		if p[ip4Addresses] != 10 || p[ip4Addresses+1] != 99 {
			copy(p[ip4Addresses:], b4.AsSlice())
		}
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p[:l3]))
	} else {
		binary.BigEndian.PutUint16(p[ip6Length:], uint16(len(p)-l3))
		if p[ip6Addresses] != 0xfd || p[ip6Addresses+1] != 0x99 {
			copy(p[ip6Addresses:], b6.AsSlice())
		}
	}
	if _, _, tcp := tcpHeaders(p); tcp && sums {
		mendSums(p, l3)
	}
}

// split sends an earlier packet in fragments, which may overlap, have gaps between them, or arrive in any order.
func (h *hostile) split() {
	if len(h.last) == 0 {
		return
	}
	p := h.last[int(h.byte())%len(h.last)]
	l3, ok := headerEnd(p)
	if !ok || len(p) <= l3 {
		return
	}
	id, body := h.uint16(), p[l3:]
	for i := range int(1 + h.byte()%6) {
		from := int(h.uint16()) % len(body) &^ 7
		end := min(len(body), from+int(h.uint16())%1400)
		if i == 0 {
			from = 0
		}
		offset, more := uint16(from/8), end < len(body)
		if h.byte()&15 == 0 {
			offset, more = h.uint16()&0x1fff, h.byte()&1 != 0
		}
		f := slices.Clone(p[:l3])
		if p[0]>>4 == 4 {
			binary.BigEndian.PutUint16(f[4:], id)
			if f[6], f[7] = uint8(offset>>8), uint8(offset); more {
				f[6] |= 0x20
			}
		} else {
			f[ip6Next] = ip6Fragments
			tail := offset << 3
			if more {
				tail |= 1
			}
			f = binary.BigEndian.AppendUint32(append(f, p[ip6Next], 0, uint8(tail>>8), uint8(tail)), uint32(id))
		}
		f = append(f, body[from:max(from, end)]...)
		h.mend(f, false)
		h.write(h.t, f)
	}
}

// complain sends an ICMP error about a connection of the hostile peer or of the bystander. The hostile peer knows all addresses
// and ports.
func (h *hostile) complain() {
	k := h.byte()
	var s segment
	if len(h.conns) > 0 && k&1 != 0 {
		c := h.conns[int(k/2)%len(h.conns)]
		s = segment{from: c.net, to: c.own, seq: c.ack + h.near(), flags: flagACK}
	} else {
		w := h.witnesses[int(k/2)%len(h.witnesses)]
		s = segment{from: w.RemoteAddr().(*net.TCPAddr).AddrPort(), to: w.LocalAddr().(*net.TCPAddr).AddrPort(), seq: h.uint32(), flags: flagACK}
	}
	about := s.packet()
	from := b4
	if s.from.Addr().Is6() {
		from = b6
	}
	l3, proto := packet.IP4Header, uint8(packet.ICMP)
	if from.Is6() {
		l3, proto = packet.IP6Header, packet.ICMP6
	}
	quoted := about[:min(len(about), l3+8+int(h.byte())%60)]
	p := make([]byte, l3+8+len(quoted))
	packet.PutIP(p, len(p), from, s.from.Addr(), proto, 0)
	icmp := p[l3:]
	icmp[0], icmp[1] = []byte{3, 3, 3, 3, 11, 5, 4, 12}[h.byte()%8], h.byte()%17
	if from.Is6() {
		icmp[0], icmp[1] = []byte{1, 1, 2, 2, 3, 4, 137, 100}[icmp[1]%8], icmp[1]%8
	}
	binary.BigEndian.PutUint16(icmp[4:], h.uint16())
	binary.BigEndian.PutUint16(icmp[6:], h.uint16()>>(h.byte()&15)) // the MTU of the next hop
	copy(icmp[8:], quoted)
	sum := uint16(0)
	if from.Is6() {
		sum = packet.PseudoSum(p, len(icmp))
	}
	binary.BigEndian.PutUint16(icmp[2:], ^packet.Sum(icmp, sum))
	h.put(p)
}

// datagram sends a UDP packet or an echo request.
func (h *hostile) datagram() {
	from, to := h.addrs()
	n := int(h.uint16()) % 1400
	ping := h.byte()&1 != 0
	proto := uint8(packet.UDP)
	if ping && from.Is4() {
		proto = packet.ICMP
	} else if ping {
		proto = packet.ICMP6
	}
	p := make([]byte, 40+8+n)
	l3 := packet.PutIP(p, len(p), from, to, proto, h.byte())
	p = p[:l3+8+n]
	h.mend(p, false)
	b := p[l3:]
	at := 6 // offset of the checksum
	if ping {
		at = 2
		if b[0] = 8; from.Is6() {
			b[0] = 128
		}
		binary.BigEndian.PutUint32(b[4:], h.uint32())
	} else {
		binary.BigEndian.PutUint16(b, h.uint16())
		binary.BigEndian.PutUint16(b[2:], []uint16{7, 9, 53, h.uint16()}[h.byte()%4])
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	}
	sum := uint16(0)
	if !ping || from.Is6() {
		sum = packet.PseudoSum(p, len(b))
	}
	binary.BigEndian.PutUint16(b[at:], ^packet.Sum(b, sum))
	h.put(p)
}

// raw sends a packet of an arbitrary protocol with arbitrary bytes. The packet may have extension headers.
func (h *hostile) raw() {
	from, to := h.addrs()
	n := int(h.byte())
	p := make([]byte, 40+n)
	l3 := packet.PutIP(p, len(p), from, to, []uint8{0, 1, 2, 6, 17, 43, 44, 50, 58, 59, 60, h.byte()}[h.byte()%12], 0)
	p = p[:l3+n]
	for i := range min(n, 64) {
		p[l3+i] = h.byte()
	}
	h.mend(p, true)
	h.put(p)
}

// flood sends 200 SYNs, fragments or other segments from different ports.
func (h *hostile) flood() {
	from, to := h.addrs()
	kind, port := h.byte()%3, h.uint16()
	for i := range uint16(200) {
		s := segment{from: netip.AddrPortFrom(from, port+i), to: netip.AddrPortFrom(to, 7), seq: uint32(i) << 16, flags: flagSYN, window: 1000}
		switch kind {
		case 0:
			h.write(h.t, s.packet())
		case 1:
			s.flags, s.payload = flagACK, make([]byte, 1000)
			p := s.packet()
			if from.Is4() {
				p = fragment(p)
				binary.BigEndian.PutUint16(p[4:], port+i)
			} else {
				p[ip6Next] = ip6Fragments
				binary.BigEndian.PutUint32(p[packet.IP6Header:], uint32(packet.TCP)<<24|1)
				binary.BigEndian.PutUint16(p[packet.IP6Header+6:], port+i)
			}
			h.mend(p, false)
			h.write(h.t, p)
		case 2:
			s.flags = uint8(port)
			h.write(h.t, s.packet())
		}
	}
}

// hostileHeap is the limit, in bytes, for the growth of the heap, whatever the peer does. That is enough for half of each kind of
// memory that Config.Memory bounds besides TCP's buffers, and for the buffers of the open connections.
const hostileHeap = 48 << 20

// heap returns the size of the heap in bytes after a garbage collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// plays runs the script b. Then it checks that the bystander's connections still carry data, and that the heap has not grown
// much.
func plays(t *testing.T, b []byte) {
	before := heap() // more than 0, because a fuzzing process itself uses 100 MiB
	h := newHostile(t)
	for h.script.b = b; len(h.script.b) > 0; {
		h.step()
	}
	h.bears(t)
	if grown := heap() - before; grown > hostileHeap {
		t.Errorf("the heap grew by %d MiB, want at most %d", grown>>20, hostileHeap>>20)
	}
}

// TestHostilePeer runs random scripts. One of them is long.
func TestHostilePeer(t *testing.T) {
	n := *hostiles
	if testkit.Race {
		n = min(n, 10) // each script takes six times as long
	}
	for seed := range n {
		size := 1000
		if seed == 0 && !testing.Short() {
			size = 100_000
		}
		b := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
		if t.Run(fmt.Sprint(seed), func(t *testing.T) { plays(t, b) }); t.Failed() {
			return
		}
	}
}

// FuzzHostilePeer runs a script of what an authenticated peer sends. It checks that nothing panics, that memory stays bounded,
// and that the connections of another peer still work.
func FuzzHostilePeer(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for n := range 12 {
		b := make([]byte, 200*n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { plays(t, b[:min(len(b), 2000)]) })
}
