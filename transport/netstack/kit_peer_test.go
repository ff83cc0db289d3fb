package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// A handPeer is a peer whose packets a test makes by hand. It is the outlet of the Net under test, and it keeps the packets that
// the Net sends.
type handPeer struct {
	n     *Net
	early []byte // payload of the segment that completes a handshake
	mss   uint16 // maximum segment size that the peer announces; 0 means 1,000

	mu   sync.Mutex // guards sent
	sent [][]byte   // packets from the Net that next has neither skipped nor returned
}

// byHand returns a Net with the addresses a4 and a6, and the Net's peer.
func byHand(t testing.TB) (*Net, *handPeer) {
	t.Helper()
	return smallNet(t, 0)
}

// smallNet is like byHand, but sets Config.Memory to memory.
func smallNet(t testing.TB, memory int) (*Net, *handPeer) {
	t.Helper()
	n, err := New(Config{Addresses: []netip.Addr{a4, a6}, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	h := &handPeer{n: n}
	n.link.attach(h)
	return n, h
}

func (h *handPeer) NewBatch() *wireguard.Batch { return new(wireguard.Batch) }

func (h *handPeer) Send(b *wireguard.Batch) error {
	h.mu.Lock()
	for i := range b.Len() {
		h.sent = append(h.sent, bytes.Clone(b.Packet(i)))
	}
	h.mu.Unlock()
	b.Reset()
	return nil
}

// forget drops the packets that the Net has sent.
func (h *handPeer) forget() {
	h.mu.Lock()
	h.sent = nil
	h.mu.Unlock()
}

// write delivers packets to the Net.
func (h *handPeer) write(t testing.TB, pkts ...[]byte) {
	t.Helper()
	if _, err := h.n.WritePackets(pkts); err != nil {
		t.Fatal(err)
	}
}

// want returns the next segment of the Net for which ok returns true. It skips the packets before that segment.
func (h *handPeer) want(t testing.TB, what string, ok func(s segment) bool) segment {
	t.Helper()
	s, found := h.next(ok, 30*time.Second)
	if !found {
		t.Fatalf("the Net did not send %s", what)
	}
	return s
}

// next is like want, but waits no longer than wait, and reports whether it found a segment.
func (h *handPeer) next(ok func(s segment) bool, wait time.Duration) (s segment, found bool) {
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		for i, p := range h.sent {
			if s, is := parseSegment(p); is && ok(s) {
				h.sent = h.sent[i+1:]
				h.mu.Unlock()
				return s, true
			}
		}
		h.mu.Unlock()
		if time.Now().After(end) {
			return s, false
		}
	}
}

// A segment is a TCP segment with its addresses.
type segment struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    uint8
	window   uint16
	options  []byte // a multiple of four bytes
	payload  []byte
}

const (
	flagFIN, flagSYN, flagRST, flagPSH, flagACK = 1, 2, 4, 8, 16
)

// packet returns s as an IP packet, with correct checksums.
func (s segment) packet() []byte {
	l3 := packet.IP4Header
	if s.from.Addr().Is6() {
		l3 = packet.IP6Header
	}
	l4 := l3 + packet.TCPHeader + len(s.options)
	p := make([]byte, l4+len(s.payload))
	packet.PutIP(p, len(p), s.from.Addr(), s.to.Addr(), packet.TCP, 0)
	tcp := p[l3:]
	binary.BigEndian.PutUint16(tcp, s.from.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.to.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[12], tcp[13] = uint8((l4-l3)/4)<<4, s.flags
	binary.BigEndian.PutUint16(tcp[14:], s.window)
	copy(tcp[20:], s.options)
	copy(p[l4:], s.payload)
	mendSums(p, l3)
	return p
}

// parseSegment parses a packet that a Net sent. ok is false if the packet is not a TCP segment.
func parseSegment(p []byte) (s segment, ok bool) {
	l3, l4, ok := tcpHeaders(p)
	if !ok {
		return s, false
	}
	at, n := ip4Addresses, 4
	if p[0]>>4 == 6 {
		at, n = ip6Addresses, 16
	}
	from, _ := netip.AddrFromSlice(p[at : at+n])
	to, _ := netip.AddrFromSlice(p[at+n : at+2*n])
	tcp := p[l3:]
	return segment{
		from: netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)),
		to:   netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:])),
		seq:  binary.BigEndian.Uint32(tcp[4:]), ack: binary.BigEndian.Uint32(tcp[8:]),
		flags: tcp[13], window: binary.BigEndian.Uint16(tcp[14:]), options: tcp[20 : l4-l3], payload: p[l4:],
	}, true
}

func (s segment) String() string {
	return fmt.Sprintf("%v to %v: flags %#x, seq %d, ack %d, window %d, %d bytes", s.from, s.to, s.flags, s.seq, s.ack, s.window, len(s.payload))
}

// A handConn is one connection of a handPeer with a listener of the Net. The peer's next segment has the sequence number next and
// the acknowledgement number ack, and announces window, which is not scaled.
type handConn struct {
	h         *handPeer
	own, net  netip.AddrPort
	next, ack uint32
	scale     uint8 // scale of the windows that the Net announces
	window    uint16
}

// connect opens a connection from own to the listener at to.
func (h *handPeer) connect(t testing.TB, own, to netip.AddrPort) *handConn {
	t.Helper()
	c, ok := h.tryConnect(t, own, to, 30*time.Second)
	if !ok {
		t.Fatal("the Net did not send a SYN-ACK")
	}
	return c
}

// tryConnect is like connect, but waits for an answer no longer than wait. ok is false if the listener does not answer.
func (h *handPeer) tryConnect(t testing.TB, own, to netip.AddrPort, wait time.Duration) (c *handConn, ok bool) {
	t.Helper()
	c = &handConn{h: h, own: own, net: to, next: 0xffff_f000, window: 65535}
	mss := h.mss
	if mss == 0 {
		mss = 1000
	}
	// The options announce the window scale 0 and permit selective acknowledgements. The single bytes 1 are padding.
	options := []byte{2, 4, byte(mss >> 8), byte(mss), 1, 3, 3, 0, 1, 1, 4, 2}
	h.write(t, segment{from: own, to: to, seq: c.next, flags: flagSYN, window: c.window, options: options}.packet())
	c.next++
	s, ok := h.next(func(s segment) bool { return s.to == own && s.flags == flagSYN|flagACK }, wait)
	if !ok {
		return nil, false
	}
	c.ack = s.seq + 1
	for o := s.options; len(o) > 2 && o[0] != 0; {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if o[0] == 3 {
			c.scale = o[2]
		}
		o = o[o[1]:]
	}
	h.write(t, c.segment(flagACK, h.early).packet())
	c.next += uint32(len(h.early))
	return c, true
}

// segment returns the next segment of c. It does not advance c.next.
func (c *handConn) segment(flags uint8, payload []byte) segment {
	return segment{from: c.own, to: c.net, seq: c.next, ack: c.ack, flags: flags, window: c.window, payload: payload}
}

// send sends n bytes in segments of 1,000 bytes.
func (c *handConn) send(t testing.TB, n int) {
	t.Helper()
	for n > 0 {
		k := min(n, 1000)
		c.h.write(t, c.segment(flagACK|flagPSH, make([]byte, k)).packet())
		c.next += uint32(k)
		n -= k
	}
}

// mine reports whether s belongs to c.
func (c *handConn) mine(s segment) bool { return s.from == c.net && s.to == c.own }
