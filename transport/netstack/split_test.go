package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"sync"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A collector is an outlet that keeps the packets that the link sends.
type collector struct {
	mu      sync.Mutex
	packets [][]byte
}

func (c *collector) NewBatch() *wireguard.Batch { return new(wireguard.Batch) }

func (c *collector) Send(b *wireguard.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range b.Len() {
		c.packets = append(c.packets, bytes.Clone(b.Packet(i)))
	}
	b.Reset()
	return nil
}

// checksum returns the Internet checksum over all slices bs together. It is 0 if bs already include their correct checksum.
func checksum(bs ...[]byte) uint16 { return ^packet.Sum(bytes.Join(bs, nil), 0) }

// slowPseudo returns the pseudo-header of the packet p for the transport protocol proto, whose header begins at l3.
func slowPseudo(p []byte, l3 int, proto byte) []byte {
	addresses := p[8:40]
	if p[0]>>4 == 4 {
		addresses = p[12:20]
	}
	n := binary.BigEndian.AppendUint32(nil, uint32(len(p)-l3))
	return append(append(bytes.Clone(addresses), n...), 0, 0, 0, proto)
}

// mendSums writes the checksums of the TCP packet p.
func mendSums(p []byte, l3 int) {
	if p[0]>>4 == 4 {
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p[:l3]))
	}
	tcp := p[l3:]
	tcp[16], tcp[17] = 0, 0
	binary.BigEndian.PutUint16(tcp[16:], checksum(slowPseudo(p, l3, 6), tcp))
}

// slowSplit returns the segments into which a network card would cut the TCP packet p.
func slowSplit(p []byte, l3, l4, mss int) (out [][]byte) {
	payload := p[l4:]
	for i := 0; i == 0 || len(payload) > 0; i++ {
		part := payload[:min(mss, len(payload))]
		payload = payload[len(part):]
		s := append(bytes.Clone(p[:l4]), part...)
		if s[0]>>4 == 4 {
			binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
			binary.BigEndian.PutUint16(s[4:], binary.BigEndian.Uint16(p[4:])+uint16(i))
		} else {
			binary.BigEndian.PutUint16(s[4:], uint16(len(s)-40))
		}
		binary.BigEndian.PutUint32(s[l3+4:], binary.BigEndian.Uint32(p[l3+4:])+uint32(i*mss))
		if len(payload) > 0 {
			s[l3+13] &^= 0x09 // only the last segment has FIN and PSH
		}
		if i > 0 {
			s[l3+13] &^= 0x80 // only the first segment has CWR
		}
		mendSums(s, l3)
		out = append(out, s)
	}
	return out
}

// gsoPacket returns the TCP packet p as gVisor passes it to a link that cuts packets into segments: the headers in one view, and
// the payload in views of viewSizes bytes each.
func gsoPacket(p []byte, l3, l4, mss, viewSizes int) *stack.PacketBuffer {
	var b buffer.Buffer
	for rest := p[l4:]; len(rest) > 0; {
		n := min(viewSizes, len(rest))
		v := buffer.NewView(n)
		_, _ = v.Write(rest[:n])
		if n > 3 {
			w := v.Clone() // the chunk of v is then shared, so that gVisor does not append the next view's bytes to it
			defer w.Release()
		}
		_ = b.Append(v)
		rest = rest[n:]
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: l4 + 16, Payload: b})
	copy(pkt.TransportHeader().Push(l4-l3), p[l3:l4])
	copy(pkt.NetworkHeader().Push(l3), p[:l3])
	pkt.NetworkProtocolNumber = networkOf(p)
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(mss)}
	return pkt
}

// tcpPacket returns a TCP packet with random fields from rnd, optionWords words of options of 4 bytes each, and n bytes of
// payload.
func tcpPacket(rnd *rand.Rand, v6 bool, optionWords, n int) (p []byte, l3, l4 int) {
	l3 = 20
	if v6 {
		l3 = 40
	}
	l4 = l3 + 20 + 4*optionWords
	p = make([]byte, l4+n)
	rnd.Read(p)
	if v6 {
		p[0] = 0x60 | p[0]&15
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		p[6] = 6
	} else {
		p[0] = 0x45
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[6], p[7] = 0x40, 0
		p[9] = 6
	}
	p[l3+12] = byte(5+optionWords) << 4
	mendSums(p, l3)
	return p, l3, l4
}

// FuzzSplit checks that an exit cuts a packet into the same segments as slowSplit.
func FuzzSplit(f *testing.F) {
	f.Add(int64(1), false, uint8(3), uint16(1368), uint16(60000), uint16(16384), uint8(0))
	f.Add(int64(2), true, uint8(3), uint16(1348), uint16(61000), uint16(65535), uint8(90))
	f.Add(int64(3), false, uint8(0), uint16(1), uint16(300), uint16(1), uint8(127))
	f.Add(int64(4), false, uint8(10), uint16(536), uint16(0), uint16(7), uint8(1))
	f.Add(int64(5), true, uint8(10), uint16(9000), uint16(9000), uint16(100), uint8(0))
	f.Fuzz(func(t *testing.T, seed int64, v6 bool, optionWords uint8, mss, n, viewSizes uint16, before uint8) {
		rnd := rand.New(rand.NewSource(seed))
		p, l3, l4 := tcpPacket(rnd, v6, int(optionWords%11), int(n)%(65535-120))
		size := max(1, int(mss))
		if (len(p)-l4)/size > 500 {
			size = (len(p) - l4) / 500 // at most about 500 segments
		}
		announced := bytes.Clone(p)
		if w := binary.BigEndian.Uint16(p[l3+14:]); w > 0 {
			binary.BigEndian.PutUint16(announced[l3+14:], w-1) // outbound lowers the window; see windows
		}
		want := slowSplit(announced, l3, l4, size)

		var c collector
		x := exit{to: &c, batch: c.NewBatch(), drops: new(drops), windows: new(windows)}
		for range before % 128 { // fill a part of the batch first
			x.batch.Append([]byte("xyz"))
		}
		// gVisor writes only the sum of the pseudo-header, and the link must not use it. So the checksum field gets random bytes.
		rnd.Read(p[l3+16 : l3+18])
		pkt := gsoPacket(p, l3, l4, size, max(1, int(viewSizes)))
		x.put(pkt)
		x.flush()
		pkt.DecRef()

		got := c.packets[before%128:]
		if len(got) != len(want) {
			t.Fatalf("the exit made %d segments, want %d", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("segment %d of %d is\n%x\nwant\n%x", i, len(want), got[i], want[i])
			}
		}
	})
}

// TestPutWhole checks that put does not change packets that need no segmentation.
func TestPutWhole(t *testing.T) {
	var c collector
	x := exit{to: &c, batch: c.NewBatch(), drops: new(drops), windows: new(windows)}
	var want [][]byte
	for n := range 200 {
		p, l3, l4 := tcpPacket(rand.New(rand.NewSource(int64(n))), n%2 == 1, n%11, 100*n)
		p[l3+13] &^= 0x02 // lowerSYN would change a SYN
		mendSums(p, l3)
		pkt := gsoPacket(p, l3, l4, 0, 999)
		pkt.GSOOptions = stack.GSO{}
		x.put(pkt)
		pkt.DecRef()
		want = append(want, p)
	}
	x.flush()
	if len(c.packets) != len(want) {
		t.Fatalf("the exit sent %d packets, want %d", len(c.packets), len(want))
	}
	for i := range want {
		if !bytes.Equal(c.packets[i], want[i]) {
			t.Fatalf("put changed packet %d", i)
		}
	}
}

// TestTrainFits checks that the segments of the largest packet that gVisor makes fit into one train of UDP segmentation offload,
// and that a train holds many segments.
func TestTrainFits(t *testing.T) {
	for mtu := minMTU; mtu <= maxMTU; mtu++ {
		l := newLink(mtu, nil)
		largest := int(l.GSOMaxSize()) - header.TCPTotalHeaderMaximumSize - 1
		if int(l.GSOMaxSize()) > 65535 || largest < min(mtu-100, 65000) {
			t.Fatalf("MTU %d: GSOMaxSize is %d, want at most 65535, and enough for large packets", mtu, l.GSOMaxSize())
		}
		for _, headers := range []int{20 + 20, 20 + 60, 40 + 20, 40 + 60} {
			mss := mtu - 100
			if headers < 80 {
				mss = mtu - headers
			}
			segments := (largest + mss - 1) / mss
			if bytes := segments * (mss + headers + 32); segments > 64 || bytes > 65507 && segments > 1 {
				t.Fatalf("MTU %d: the largest packet makes %d segments with %d bytes, want at most 64 and 65507", mtu, segments, bytes)
			}
		}
		if mtu >= 1000 && mtu <= 1500 && largest < 55000 {
			t.Errorf("MTU %d: the largest packet has %d bytes of payload, want at least 55000", mtu, largest)
		}
	}
}

func TestSplitAllocates(t *testing.T) {
	if testkit.Race {
		t.Skip("the race detector empties pools at random")
	}
	for _, v6 := range []bool{false, true} {
		p, l3, l4 := tcpPacket(rand.New(rand.NewSource(1)), v6, 3, 60000)
		pkt := gsoPacket(p, l3, l4, 1348, 16384)
		x := exit{to: discard{}, batch: new(wireguard.Batch), drops: new(drops), windows: new(windows)}
		if n := testing.AllocsPerRun(100, func() { x.put(pkt); x.flush() }); n != 0 {
			t.Errorf("splitting a packet of 45 segments allocates %v times, want 0", n)
		}
		pkt.DecRef()
	}
}

// A discard is an outlet that drops all packets.
type discard struct{}

func (discard) NewBatch() *wireguard.Batch    { return new(wireguard.Batch) }
func (discard) Send(b *wireguard.Batch) error { b.Reset(); return nil }

func BenchmarkSplit(b *testing.B) {
	p, l3, l4 := tcpPacket(rand.New(rand.NewSource(1)), false, 3, 60000)
	pkt := gsoPacket(p, l3, l4, 1368, 65536)
	x := exit{to: discard{}, batch: new(wireguard.Batch), drops: new(drops), windows: new(windows)}
	b.SetBytes(60000)
	for b.Loop() {
		x.put(pkt)
		x.flush()
	}
	pkt.DecRef()
}
