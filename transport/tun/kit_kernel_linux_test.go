//go:build !android

package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"os"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A fakeKernel replaces the kernel and stores the packets that are written to it.
type fakeKernel struct {
	mu      sync.Mutex
	written [][]byte // with their virtio headers
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

// dry returns an Interface that writes to a fakeKernel, and the fakeKernel.
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

// receive processes a packet that is written to a TUN as the kernel and a network card do. It checks the virtio header (as
// virtio_net_hdr_to_skb does) and returns the segments of the packet.
func receive(t testing.TB, b []byte) [][]byte {
	t.Helper()
	h, p := getVirtio(b), b[virtioSize:]
	if h.gso == gsoNone {
		if h != (virtio{}) {
			t.Fatalf("a packet that is not merged has the header %+v, want an empty header", h)
		}
		return [][]byte{p}
	}
	s := shape{l3: int(h.start), l4: int(h.headers), udp: h.gso == gsoUDP}
	if h.flags != needsSum || s.sumAt() != s.l3+int(h.offset) || int(h.headers) >= len(p) || h.size == 0 || len(p)-s.l4 <= int(h.size) {
		t.Fatalf("a merged packet of %d bytes has the header %+v, whose fields do not fit the packet", len(p), h)
	}
	if v4 := p[0]>>4 == 4; v4 && h.gso == gsoTCP6 || !v4 && h.gso == gsoTCP4 {
		t.Fatalf("a packet of IP version %d has the header %+v, which is for the other version", p[0]>>4, h)
	}
	whole := bytes.Clone(p)
	s.mend(whole)
	s.partial(whole)
	if !bytes.Equal(whole, p) {
		t.Fatalf("the merged packet is\n%x\nwant\n%x", p[:s.l4], whole[:s.l4])
	}
	return s.split(p, int(h.size))
}

// same reports whether q equals p. In an IPv4 packet that must not be fragmented, it ignores the identification, because this
// field has no meaning there (RFC 6864).
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
				return bytes.Equal(p, q) // a damaged packet must be unchanged
			}
		}
	}
	return bytes.Equal(p, q)
}

// train returns n consecutive packets of one flow.
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

func interleave(trains ...[][]byte) (ps [][]byte) {
	for i := range trains[0] {
		for _, train := range trains {
			ps = append(ps, train[i])
		}
	}
	return ps
}

func bytesClones(bs [][]byte) (c [][]byte) {
	for _, b := range bs {
		c = append(c, bytes.Clone(b))
	}
	return c
}

// bytesOf returns the memory that v points to.
func bytesOf(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }
