package netstack

import (
	"io"
	"net/netip"
	"testing"
	"time"
)

// TestCookiesForEver completes many handshakes that began with a cookie, and sends data in the last segment of each. gVisor
// counts these segments as memory of the listener for ever. So without the code in cookie.go, gVisor would at some point drop
// all further segments with data. The test checks that each handshake is still completed.
func TestCookiesForEver(t *testing.T) {
	for name, flow := range talkFlows {
		n, h := smallNet(t, minMemory)
		l, err := n.ListenTCP(flow[1])
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 * leastHalfOpen { // after these SYNs, gVisor answers with cookies
			h.write(t, synFrom(netip.AddrPortFrom(flow[0].Addr().Next(), uint16(1000+i)), flow[1]))
		}
		waitFor(t, func() bool { return n.stack.Stats().TCP.ListenOverflowSynCookieSent.Value() > 0 })
		for i := range uint16(20) {
			h.forget()
			own := netip.AddrPortFrom(flow[0].Addr(), 5000+i)
			syn := segment{from: own, to: flow[1], seq: 7, flags: flagSYN, window: 60000, options: []byte{1, 3, 3, 9}}
			h.write(t, syn.packet())
			s := h.want(t, "a SYN-ACK", func(s segment) bool { return s.to == own && s.flags == flagSYN|flagACK })
			data := segment{from: own, to: flow[1], seq: 8, ack: s.seq + 1, flags: flagACK | flagPSH, window: 60000, payload: make([]byte, 1000)}
			// A peer sends a lost segment again until it is acknowledged. So does this test.
			acked := func(s segment) bool {
				return s.to == own && s.flags&(flagACK|flagRST) == flagACK && s.ack == data.seq+1000
			}
			ok := false
			for range 20 {
				h.write(t, data.packet())
				if _, ok = h.next(acked, 50*time.Millisecond); ok {
					break
				}
			}
			if !ok {
				t.Fatalf("%s: the Net did not acknowledge the data that completes handshake %d", name, i)
			}
			_ = l.SetDeadline(time.Now().Add(10 * time.Second))
			c, err := l.AcceptTCP()
			if err != nil {
				t.Fatalf("%s: AcceptTCP after handshake %d failed: %v", name, i, err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			// The peer's SYN had a window scale, but a SYN cookie cannot store the scale.
			if known := n.link.windows.heard.of(flowBetween(flow[1], own)); known == nil || known.scale != 0 {
				t.Fatalf("%s: handshake %d: the Net has noted %+v about the connection, want the peer's window scale 0", name, i, known)
			}
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		_ = l.Close()
	}
}
