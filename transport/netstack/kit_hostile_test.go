package netstack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// c4 and c6 are the addresses of the bystander.
var c4, c6 = netip.MustParseAddr("10.8.0.3"), netip.MustParseAddr("fd08::3")

// A hostile plays an authenticated peer that misbehaves. Such a peer has a session, so the device accepts its packets, but only
// from the source addresses that the peer owns: b4, b6 and the networks of hostilePrefix. A script, which a fuzzer can make,
// decides what the peer does.
//
//	hostile ──┐
//	          ├── Net under test, an echo server on port 7
//	bystander ┘   a Net with two open connections
type hostile struct {
	*handPeer
	t      testing.TB
	script script

	conns     []*handConn
	last      [][]byte // the latest packets, which repeat and split send again
	bystander *Net
	witnesses []net.Conn // the bystander's connections
}

// hostilePrefix contains the first addresses of the IPv4 network (false) and the IPv6 network (true) that the hostile peer owns
// besides b4 and b6.
var hostilePrefix = map[bool]netip.Addr{false: netip.MustParseAddr("10.99.0.0"), true: netip.MustParseAddr("fd99::")}

// A junction is an outlet that passes each packet to the bystander or to the hostile peer, depending on the destination.
type junction struct {
	*handPeer
	bystander *Net
}

func (j junction) Send(b *wireguard.Batch) error {
	var pkts [][]byte
	for i := range b.Len() {
		p := slices.Clone(b.Packet(i))
		if to, _, _ := packet.Destination(p); to == c4 || to == c6 {
			pkts = append(pkts, p)
			continue
		}
		j.mu.Lock()
		if j.sent = append(j.sent, p); len(j.sent) > 1000 {
			j.sent = j.sent[500:] // nobody reads older packets
		}
		j.mu.Unlock()
	}
	b.Reset()
	_, err := j.bystander.WritePackets(pkts)
	return err
}

// newHostile makes the Net under test, the hostile peer and the bystander, and establishes the bystander's connections.
func newHostile(t testing.TB) *hostile {
	n, peer := byHand(t)
	c, err := New(Config{Addresses: []netip.Addr{c4, c6}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	c.link.attach(&wire{to: n})
	n.link.attach(junction{peer, c})
	h := &hostile{handPeer: peer, t: t, bystander: c}
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := n.Listen(network, ":7")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
		if _, err := n.ListenPacket("udp"+network[3:], ":7"); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []netip.Addr{a4, a6} {
		w, err := c.Dial("tcp", netip.AddrPortFrom(to, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.Close() })
		h.witnesses = append(h.witnesses, w)
	}
	h.bears(t)
	return h
}

// bears checks that the connections of the bystander still carry data in both directions.
func (h *hostile) bears(t testing.TB) {
	t.Helper()
	for _, w := range h.witnesses {
		if err := echoed(w); err != nil {
			t.Fatalf("a connection of the bystander failed: %v", err)
		}
	}
}

func echoed(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make([]byte, 3000)
	for i := range sent {
		sent[i] = byte(i)
	}
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read only %d of %d bytes: %w", n, len(got), err)
	}
	if !slices.Equal(sent, got) {
		return errors.New("the echoed bytes differ from the bytes that were sent")
	}
	return nil
}
