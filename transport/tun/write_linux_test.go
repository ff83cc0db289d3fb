//go:build linux && !android

package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// A fakeKernel takes what is written in place of the real one.
type fakeKernel struct {
	mu      sync.Mutex
	written [][]byte // with their headers
	refuse  func(h virtio) syscall.Errno
	discard bool
}

func (k *fakeKernel) writev(_ uintptr, iovs []unix.Iovec) (int, syscall.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.discard {
		return 1, 0
	}
	var b []byte
	for _, v := range iovs {
		b = append(b, bytesOf(v)...)
	}
	if k.refuse != nil {
		if errno := k.refuse(getVirtio(b)); errno != 0 {
			return 0, errno
		}
	}
	k.written = append(k.written, b)
	return len(b), 0
}

// dry is a device that writes to a kernel of the test's.
func dry(t testing.TB) (*Interface, *fakeKernel) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	d, k := new(Interface), new(fakeKernel)
	d.status.init()
	d.header, d.writev = virtioSize, k.writev
	q := newQueue(d, 0, w)
	if q.raw, err = w.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	d.queues = []*queue{q}
	t.Cleanup(func() { d.Close() })
	return d, k
}

// receive does what a kernel does with a packet that a TUN is given, and a network card behind it: it checks the header
// (virtio_net_hdr_to_skb) and cuts the packet.
func receive(t testing.TB, b []byte) [][]byte {
	t.Helper()
	h, p := getVirtio(b), b[virtioSize:]
	if h.gso == gsoNone {
		if h != (virtio{}) {
			t.Fatalf("a packet by itself has the header %+v", h)
		}
		return [][]byte{p}
	}
	s := shape{l3: int(h.start), l4: int(h.headers), udp: h.gso == gsoUDP}
	if h.flags != needsSum || s.sumAt() != s.l3+int(h.offset) || int(h.headers) >= len(p) || h.size == 0 || len(p)-s.l4 <= int(h.size) {
		t.Fatalf("a packet of %d bytes has the header %+v", len(p), h)
	}
	if v4 := p[0]>>4 == 4; v4 && h.gso == gsoTCP6 || !v4 && h.gso == gsoTCP4 {
		t.Fatalf("a packet of version %d has the header %+v", p[0]>>4, h)
	}
	whole := bytes.Clone(p)
	s.mend(whole)
	s.partial(whole)
	if !bytes.Equal(whole, p) {
		t.Fatalf("the merged packet is\n%x\nwant\n%x", p[:s.l4], whole[:s.l4])
	}
	return s.split(p, int(h.size))
}

// A script makes packets of fuzzed bytes: plausible ones, most of them, with something odd here and there.
type script struct {
	b     []byte
	flows [16]scriptFlow
}

type scriptFlow struct {
	shape
	size int
	p    []byte // the last packet
}

func (s *script) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	b := s.b[0]
	s.b = s.b[1:]
	return b
}

// next is another packet and the flow that it belongs to, or -1 if it is of none that keeps an order.
func (s *script) next() (p []byte, flow int) {
	flow = int(s.byte()) % len(s.flows)
	f := &s.flows[flow]
	if f.p == nil {
		f.size = 1 + int(s.byte())*11
		f.p, f.shape = newPacket(rand.New(rand.NewSource(int64(flow))), flow&1 != 0, flow&2 != 0, flow/4%2*(1-flow>>1&1)*3, f.size)
		if !f.udp {
			f.p[f.l3+13] = 0x10
		}
		f.mend(f.p)
		return bytes.Clone(f.p), flow
	}
	l3, n, odd := f.l3, f.size, s.byte()
	switch odd {
	case 1:
		n = int(s.byte()) * 12
	case 2:
		n = 0
	case 3:
		n = f.size / 2
	}
	p = append(bytes.Clone(f.p[:f.l4]), make([]byte, n)...)
	for i := f.l4; i < len(p); i++ {
		p[i] = byte(i * n)
	}
	v4 := p[0]>>4 == 4
	if v4 {
		binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+1)
	}
	if !f.udp {
		seq := binary.BigEndian.Uint32(f.p[l3+4:]) + uint32(len(f.p)-f.l4)
		binary.BigEndian.PutUint32(p[l3+4:], seq)
	}
	rest := 0
	switch x := int(s.byte()); odd {
	case 4:
		p[l3+7]++ // sequence number, or the checksum, which is mended
	case 5, 6, 7:
		if !f.udp {
			p[l3+13] ^= 1 << (x % 8) // flags
		}
	case 8:
		if f.l4 > l3+8 {
			p[l3+8+x%(f.l4-l3-8)]++ // acknowledgement, offset, window, urgent pointer, options
		}
	case 9:
		p[1] += byte(x) // type of service or traffic class
	case 10:
		if v4 {
			p[8]++ // time to live
		} else {
			p[7]++ // hop limit
		}
	case 11:
		if v4 {
			p[6] ^= 0x40 // don't fragment, from now on
		} else {
			p[3]++ // flow label
		}
	case 12:
		if v4 {
			p[5] += byte(x) // identification
		}
	case 13:
		if !f.udp {
			p[l3+13] |= 0x08
		}
	case 14:
		if v4 {
			p[7]++ // a fragment
			rest = -1
		}
	}
	shape := f.shape
	if !f.udp { // the offset may have changed
		shape.l4 = l3 + int(p[l3+12]>>4)*4
	}
	f.mend(p)
	f.p = bytes.Clone(p)
	if v4 {
		f.p[6], f.p[7] = f.p[6]&0x40, 0
	}
	if !f.udp {
		f.p[l3+12], f.p[l3+13] = byte((f.l4-l3)/4)<<4, 0x10
		if shape.l4 != f.l4 && (shape.l4 < l3+20 || shape.l4 > len(p)) {
			rest = -1 // no TCP packet
		}
	}
	switch odd {
	case 15:
		p[int(s.byte())%len(p)] ^= 1 << (s.byte() % 8) // damage
		rest = -1
	case 16:
		p = p[:int(s.byte())%len(p)] // the rest is missing
		rest = -1
	case 17:
		if f.udp {
			p[l3+6], p[l3+7] = 0, 0 // no checksum
		}
	case 18:
		p[len(p)-1] ^= 1 // damage that leaves the flow what it is
	}
	if rest < 0 {
		flow = -1
	}
	return p, flow
}

// same reports whether q is p, but for an identification that means nothing (RFC 6864): where fragments are forbidden.
func same(p, q []byte) bool {
	if len(p) != len(q) {
		return false
	}
	if len(p) >= 20 && p[0] == 0x45 && p[6] == 0x40 && p[7] == 0 {
		p, q = bytes.Clone(p), bytes.Clone(q)
		for _, x := range [][]byte{p, q} {
			sum := ^checksum(x[:20])
			clear(x[4:6])
			clear(x[10:12])
			if sum != 0xffff {
				return bytes.Equal(p, q) // damaged: as it was
			}
		}
	}
	return bytes.Equal(p, q)
}

// FuzzMerge writes any sequence of packets: what the kernel makes of it are the same packets, in order a flow.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{})
	for flow := range byte(16) {
		f.Add(bytes.Repeat([]byte{flow, 100, 0, 0}, 60))
		f.Add(bytes.Repeat([]byte{flow, 0, 0, flow + 1, 0, 0}, 60))
	}
	for odd := range byte(19) {
		every := []byte{}
		for flow := range byte(16) {
			every = append(every, flow, 60, flow, 0, 0, flow, 0, 0, flow, odd, 7, 9, flow, 0, 0, flow, 0, 0)
		}
		f.Add(every)
	}
	for seed := range int64(20) {
		b := make([]byte, 600)
		rand.New(rand.NewSource(seed)).Read(b)
		for i := range b {
			if b[i] > 60 {
				b[i] = 0
			}
		}
		f.Add(b)
	}
	d, k := dry(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := script{b: b}
		var pkts, others [][]byte
		var flows [16][][]byte
		for len(s.b) > 0 && len(pkts) < 300 {
			p, flow := s.next()
			pkts = append(pkts, p)
			if flow < 0 {
				others = append(others, bytes.Clone(p))
			} else {
				flows[flow] = append(flows[flow], bytes.Clone(p))
			}
		}
		k.written = nil
		if n, err := d.WritePackets(pkts); n != len(pkts) || err != nil {
			t.Fatalf("took %d of %d packets, %v", n, len(pkts), err)
		}
		n := 0
	next:
		for _, w := range k.written {
			for i, p := range receive(t, w) {
				n++
				for flow := range flows {
					if ps := flows[flow]; len(ps) > 0 && same(ps[0], p) {
						flows[flow] = ps[1:]
						if i == 0 && getVirtio(w).gso == gsoNone {
							continue next
						}
						p = nil
						break
					}
				}
				if p == nil {
					continue
				}
				at := slices.IndexFunc(others, func(o []byte) bool { return bytes.Equal(o, p) })
				if at < 0 || getVirtio(w).gso != gsoNone {
					t.Fatalf("packet %d of %d bytes is not the next of any flow (%+v):\n%x", n, len(p), getVirtio(w), p[:min(100, len(p))])
				}
				others = slices.Delete(others, at, at+1)
			}
		}
		if n != len(pkts) {
			t.Fatalf("%d packets came out, want %d", n, len(pkts))
		}
	})
}

// train is n packets of a flow that follow each other.
func train(v6, udp bool, flow, n, size int) (ps [][]byte) {
	first, s := newPacket(rand.New(rand.NewSource(int64(flow))), v6, udp, 0, size)
	for i := range n {
		p := bytes.Clone(first)
		if !v6 {
			binary.BigEndian.PutUint16(p[4:], uint16(i))
		}
		if !udp {
			p[s.l3+13] = 0x10
			binary.BigEndian.PutUint32(p[s.l3+4:], uint32(i*size))
		}
		p[s.l4] = byte(i)
		s.mend(p)
		ps = append(ps, p)
	}
	return ps
}

// TestMerge checks that what can merge does, and what may not does not.
func TestMerge(t *testing.T) {
	d, k := dry(t)
	writes := func(what string, ps [][]byte, want int) {
		t.Helper()
		k.written = nil
		if n, err := d.WritePackets(ps); n != len(ps) || err != nil {
			t.Errorf("%s: took %d, %v", what, n, err)
		}
		if len(k.written) != want {
			t.Errorf("%s: %d writes, want %d", what, len(k.written), want)
		}
	}
	for _, v6 := range []bool{false, true} {
		writes("TCP, 64 KiB", train(v6, false, 1, 45, 1400), 1)
		writes("TCP, 128 KiB", train(v6, false, 1, 90, 1400), 2)
		writes("UDP, 45 datagrams", train(v6, true, 1, 45, 1400), 1)
		writes("UDP, 65 datagrams", train(v6, true, 1, 65, 10), 2)
		writes("four flows in turn", interleave(train(v6, false, 1, 9, 100), train(v6, true, 2, 9, 100), train(v6, false, 3, 9, 200), train(v6, true, 4, 9, 300)), 4)

		wrong := train(v6, false, 1, 10, 100)
		wrong[5][len(wrong[5])-1] ^= 1
		writes("a wrong checksum in the middle", wrong, 3)
		wrong = train(v6, true, 1, 10, 100)
		wrong[0][len(wrong[0])-1] ^= 1
		writes("a wrong checksum in front", wrong, 2)
	}
	fragments := train(false, true, 1, 10, 100)
	for i, p := range fragments {
		p[6] = 0 // may be fragmented: then the identification counts
		p[5] = byte(2 * i)
		(shape{l3: 20, l4: 28, udp: true}).mend(p)
	}
	writes("identifications that leave numbers out", fragments, 10)
	for i, p := range fragments {
		p[5] = byte(i)
		(shape{l3: 20, l4: 28, udp: true}).mend(p)
	}
	writes("identifications that follow each other", fragments, 1)
}

func interleave(trains ...[][]byte) (ps [][]byte) {
	for i := range trains[0] {
		for _, train := range trains {
			ps = append(ps, train[i])
		}
	}
	return ps
}

// TestRefused falls back, for the kind that the kernel does not know, and for good once three runs in a row were refused; each
// of them goes out one by one. What it took before is not doubted.
func TestRefused(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.EMSGSIZE} {
		t.Run(errno.Error(), func(t *testing.T) {
			d, k := dry(t)
			tried := 0
			k.refuse = func(h virtio) syscall.Errno {
				if h.gso == gsoUDP {
					tried++
					return errno
				}
				return 0
			}
			udp, tcp := train(false, true, 1, 10, 100), train(false, false, 1, 10, 100)
			for i := range 5 {
				begin := len(k.written)
				if n, err := d.WritePackets(append(bytesClones(udp), tcp...)); n != 20 || err != nil {
					t.Fatalf("took %d, %v", n, err)
				}
				if want := min(i+1, mergeRefused); tried != want {
					t.Errorf("%d merged packets were tried, want %d", tried, want)
				}
				for i, p := range udp {
					if !bytes.Equal(k.written[begin+i][virtioSize:], p) {
						t.Fatalf("packet %d was changed on the way", i)
					}
				}
			}
			if s := d.Stats(); s.WriteCalls != 55 || s.Merged != 50 || s.Refused != 3 || s.WrittenPackets != 100 {
				t.Errorf("%+v", s)
			}
			if d.merges[udp6].Load() != mergeUntried {
				t.Error("the other family is doubted")
			}
		})
	}
}

// TestRefusedRuns goes on merging where the kernel refused runs, but not three of the first ones: a peer chooses what is in them.
func TestRefusedRuns(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.EMSGSIZE} {
		for _, x := range []struct {
			name  string
			taken []bool // by the kernel, run after run
			dead  bool
		}{
			{"the first", []bool{false}, false},
			{"the first two", []bool{false, false}, false},
			{"the first three", []bool{false, false, false}, true},
			{"three, the second taken", []bool{false, true, false, false}, false},
			{"what worked", []bool{true, false, false, false, false}, false},
		} {
			t.Run(errno.Error()+"/"+x.name, func(t *testing.T) {
				d, k := dry(t)
				var merged, refused uint64
				for i, taken := range append(x.taken, true) {
					k.refuse = func(h virtio) syscall.Errno {
						if h.gso == gsoNone || taken {
							return 0
						}
						return errno
					}
					switch {
					case !taken:
						refused++
					case i < len(x.taken) || !x.dead:
						merged += 10
					}
					if n, err := d.WritePackets(train(false, false, 1, 10, 100)); n != 10 || err != nil {
						t.Fatalf("run %d: took %d, %v", i, n, err)
					}
				}
				if s := d.Stats(); s.Merged != merged || s.Refused != refused {
					t.Errorf("%d packets were merged and %d runs refused, want %d and %d", s.Merged, s.Refused, merged, refused)
				}
			})
		}
	}
}

func bytesClones(bs [][]byte) (c [][]byte) {
	for _, b := range bs {
		c = append(c, bytes.Clone(b))
	}
	return c
}

// TestNotTaken counts what the kernel does not take, by its reason, and goes on behind it.
func TestNotTaken(t *testing.T) {
	for _, x := range []struct {
		errno                     syscall.Errno
		full, down, invalid, gone uint64
	}{{unix.EAGAIN, 11, 0, 0, 0}, {unix.ENOBUFS, 11, 0, 0, 0}, {unix.EIO, 0, 11, 0, 0}, {unix.EPERM, 0, 0, 11, 0}, {unix.EBADFD, 0, 0, 0, 11}} {
		d, k := dry(t)
		k.refuse = func(virtio) syscall.Errno { return x.errno }
		pkts := append(train(false, false, 1, 10, 100), []byte("no packet"))
		if n, err := d.WritePackets(pkts); n != 0 || err == nil {
			t.Errorf("%v: took %d, %v", x.errno, n, err)
		}
		if s := d.Stats(); s.Full != x.full || s.Down != x.down || s.Invalid != x.invalid || s.WriteCalls != 0 {
			t.Errorf("%v: %+v", x.errno, s)
		}
		if ended := d.Err() != nil; ended != (x.gone > 0) {
			t.Errorf("%v: the device ended with %v", x.errno, d.Err())
		}
		if k.refuse = nil; x.gone > 0 {
			continue
		}
		if n, err := d.WritePackets(pkts); n != len(pkts) || err != nil {
			t.Errorf("%v, and then none: took %d, %v", x.errno, n, err)
		}
	}
}

// TestNoHeader writes packets as they are where the kernel expects no header.
func TestNoHeader(t *testing.T) {
	d, k := dry(t)
	d.header = 0
	for i := range d.merges {
		d.merges[i].Store(mergeRefused)
	}
	pkts := train(true, false, 1, 5, 100)
	if n, err := d.WritePackets(pkts); n != 5 || err != nil {
		t.Fatalf("took %d, %v", n, err)
	}
	for i, p := range pkts {
		if !bytes.Equal(k.written[i], p) {
			t.Fatalf("packet %d is changed", i)
		}
	}
}

// TestWriteAllocates holds the way in to no allocation.
func TestWriteAllocates(t *testing.T) {
	if testkit.Race {
		t.Skip("the race detector empties pools at random")
	}
	d, k := dry(t)
	k.discard = true
	for _, udp := range []bool{false, true} {
		ps := append(train(false, udp, 1, 45, 1400), train(true, udp, 2, 45, 1400)...)
		if n := testing.AllocsPerRun(100, func() { _, _ = d.WritePackets(ps) }); n != 0 {
			t.Errorf("writing 90 packets allocates %v times", n)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	d, k := dry(b)
	k.discard = true
	ps := train(false, false, 1, 45, 1380)
	b.SetBytes(45 * 1380)
	for b.Loop() {
		_, _ = d.WritePackets(ps)
	}
}

// bytesOf is the memory that v tells of.
func bytesOf(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// TestOffload asks for less until the kernel agrees.
func TestOffload(t *testing.T) {
	const (
		tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		ecn = unix.TUN_F_TSO_ECN
		udp = unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	for _, x := range []struct {
		kernel    string
		has, want int
	}{
		{"of today", tcp | ecn | udp, tcp | ecn | udp},
		{"before 6.2", tcp | ecn | unix.TUN_F_UFO, tcp | ecn},
		{"without ECN", tcp, tcp},
		{"with sums alone", unix.TUN_F_CSUM, unix.TUN_F_CSUM},
		{"with nothing", 0, 0},
	} {
		for _, wanted := range []bool{true, false} {
			set := -1
			got := offload(wanted, func(offloads int) error {
				if offloads&^x.has != 0 {
					return unix.EINVAL
				}
				set = offloads
				return nil
			})
			want := x.want
			if !wanted {
				want = 0
			}
			if got != want || set != want {
				t.Errorf("a kernel %s, wanted %v: %#x, and %#x is set, want %#x", x.kernel, wanted, got, set, want)
			}
		}
	}
}
