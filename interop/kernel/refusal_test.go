//go:build linux

package kernel

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// TestWrongPresharedKey gives the device and the kernel different preshared keys. The initiation does not depend on that key, so
// the responder answers it. The initiator cannot decrypt the response, so neither peer has a session, and neither tells the other
// one why. With the right key, the next handshake succeeds.
func TestWrongPresharedKey(t *testing.T) {
	for _, role := range []string{"initiator", "responder"} {
		t.Run("kernel is "+role, func(t *testing.T) {
			p := newPair(t, setup{way: line4, psk: wireguard.NewPresharedKey()})
			right := p.psk
			wrong := wireguard.NewPresharedKey()
			p.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: p.kernelKey.Public(), PresharedKey: &wrong}}})
			initiator, responder := ours, kernels
			if role == "initiator" {
				initiator, responder = kernels, ours
				if !p.fails("ping -c 1 -W 1 %v", ourAddrs[0]) {
					t.Error("the kernel's ping was answered although the preshared keys differ")
				}
			} else {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if p.dev.Handshake(ctx, p.kernelKey.Public()) == nil {
					t.Error("the handshake succeeded although the preshared keys differ")
				}
				p.want("our device drops a response that it cannot decrypt", func() bool { return p.dev.Status().Drops[wireguard.DropForged] > 0 })
			}
			if a, b := p.line.count(initiator, pipe.TypeInitiation), p.line.count(responder, pipe.TypeResponse); a < 1 || b < 1 {
				t.Errorf("the initiator sent %d initiations and the responder sent %d responses, want at least 1 each", a, b)
			}
			for _, kind := range []pipe.MessageType{pipe.TypeData, pipe.TypeKeepalive, pipe.TypeCookieReply} {
				if n := p.line.count(ours, kind) + p.line.count(kernels, kind); n != 0 {
					t.Errorf("the peers sent %d messages of the type %v without a session, want 0", n, kind)
				}
			}
			if s := p.status(); s.Session || !p.kernel().handshake.IsZero() {
				t.Error("one end has a session although the preshared keys differ")
			}
			p.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: p.kernelKey.Public(), PresharedKey: &right}}})
			p.clock.forward(6 * time.Second) // the device sends initiations at least 5 s apart
			p.ping(0)
			p.pinged(1)
		})
	}
}

// TestReplay sends recorded messages to both peers again. Neither peer may answer a replay, and the kernel must not change the
// device's endpoint. A responder accepts an initiation only if its timestamp is greater than those of all earlier initiations. An
// initiator accepts only one response to an initiation. Both accept each data message only once.
func TestReplay(t *testing.T) {
	for first, role := range []string{"ours", "the kernel's"} {
		t.Run(role, func(t *testing.T) {
			p := newPair(t, setup{way: line4})
			if first == ours {
				p.ping(0)
			} else {
				p.pinged(0)
			}
			p.wantCounters()
			before, k := p.status(), p.kernel()
			recorded := [2][]datagram{}
			for end := range recorded {
				for kind := pipe.TypeInitiation; kind <= pipe.TypeKeepalive; kind++ {
					recorded[end] = append(recorded[end], p.line.all(end, kind)...)
				}
			}
			time.Sleep(apart)
			// All replays to the kernel come from a source port that the device does not use. If the kernel accepted one of them,
			// it would send to that port.
			for _, d := range recorded[ours] {
				d.from = netip.AddrPortFrom(d.from.Addr(), 40001)
				p.line.inject(ours, d)
			}
			for _, d := range recorded[kernels] {
				p.line.inject(kernels, d)
			}
			drops := func() (n uint64) { d := p.dev.Status().Drops; return d.Total() }
			p.want("our device drops each replayed message of the kernel", func() bool { return drops() == uint64(len(recorded[kernels])) })
			refused := map[int]wireguard.DropReason{ours: wireguard.DropSuperseded, kernels: wireguard.DropOldTimestamp}[first]
			if d := p.dev.Status().Drops; d[refused] != 1 || d[wireguard.DropReplayed] == 0 {
				t.Errorf("our device dropped %v, want one handshake message and some replayed data messages", d)
			}
			p.ping(0) // uses the old session; when the answer arrives, the kernel has processed all replays
			if a := p.line.count(first, pipe.TypeInitiation); a != 1 {
				t.Errorf("the initiator sent %d initiations, want 1, because a replay must not affect the session", a)
			}
			if a := p.line.count(1-first, pipe.TypeResponse); a != 1 {
				t.Errorf("the responder sent %d responses, want 1 and none to a replay", a)
			}
			after, l := p.status(), p.kernel()
			for _, more := range []uint64{after.Received.Bytes - before.Received.Bytes, l.rx - k.rx} {
				// On a slow machine, up to two keepalives may be counted too. Together they are smaller than any handshake or data
				// message that was replayed.
				if last := uint64(keepaliveBytes + 96); more < last || more > last+2*keepaliveBytes {
					t.Errorf("a peer counted %d more bytes, want the %d bytes of the last ping", more, last)
				}
			}
			if l.endpoint != p.deviceAt().String() {
				t.Errorf("the kernel sends to %s, want %v, because a replay must not change the endpoint", l.endpoint, p.deviceAt())
			}
		})
	}
}

// TestOrder checks that each peer accepts data messages out of order, and accepts each message only once, as the replay window
// requires.
func TestOrder(t *testing.T) {
	p := newPair(t, setup{way: line4, packets: true})
	p.echo(0, 84, 0)
	for end, name := range []string{"ours", "the kernel's"} {
		var held []datagram
		p.line.filter(func(from int, d *datagram) bool {
			if from == end && d.kind() == pipe.TypeData && len(held) < 4 {
				held = append(held, *d)
				return false
			}
			return true
		})
		var requests [][]byte
		for range 4 {
			requests = append(requests, echoRequest(ourAddrs[0], kernelAddrs[0], 84, 0, p.nextSequence()))
			p.send(requests[len(requests)-1])
		}
		p.want("the filter holds four messages of "+name, func() bool {
			p.line.mu.Lock()
			defer p.line.mu.Unlock()
			return len(held) == 4
		})
		p.line.filter(nil)
		slices.Reverse(held)
		for _, d := range append(held, held...) {
			p.line.inject(end, d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		for _, request := range slices.Backward(requests) {
			got, err := p.tun.Receive(ctx)
			if err != nil || !isReply(got, request) {
				t.Fatalf("messages of %s out of order: %v, received %x; want the answer to %x", name, err, got, request)
			}
		}
		cancel()
		p.echo(0, 84, 0)
		if got := p.tun.TryReceive(); got != nil {
			t.Errorf("messages of %s: a further packet arrived, want none: %x", name, got)
		}
	}
	p.want("our device drops the four replayed messages of the kernel", func() bool { return p.status().Drops[wireguard.DropReplayed] == 4 })
	p.wantCounters()
}

// TestSourceFilter sends an authentic packet from an inner source address that the sender may not use: either no peer has the
// address in its allowed IPs, or the longest prefix that contains the address belongs to another peer. The receiver drops the
// packet and does not count its bytes.
func TestSourceFilter(t *testing.T) {
	foreign := [2]netip.Addr{netip.MustParseAddr("10.8.0.9"), netip.MustParseAddr("fd08::9")}
	t.Run("the kernel's", func(t *testing.T) {
		p := newPair(t, setup{packets: true})
		for family := range families {
			p.echo(family, 104, 0)
			const message = 32 + 112
			var k kernelStatus
			p.want("both peers count the same bytes, except those of refused packets", func() bool {
				k = p.kernel()
				return k.rx+uint64(family)*message == p.status().Sent.Bytes
			})
			p.send(echoRequest(foreign[family], kernelAddrs[family], 104, 0, p.nextSequence()))
			p.echo(family, 104, 0)
			if n := p.kernel().rx - k.rx; n != message {
				t.Errorf("%s: the kernel counted %d bytes, want %d, those of one packet of two", families[family], n, message)
			}
		}
		if n := p.sh("cat /sys/class/net/wg0/statistics/rx_errors"); n != "2" {
			t.Errorf("the kernel counted %s receive errors, want 2", n)
		}
	})
	t.Run("ours", func(t *testing.T) {
		p := newPair(t, setup{})
		p.sh("ip addr add %v/32 dev wg0; ip -6 addr add %v/128 dev wg0 nodad preferred_lft 0", foreign[0], foreign[1])
		for family := range families {
			p.pinged(family)
			const refused = 32 + 96 // bytes of the data message with the IPv4 ping from the foreign address
			p.want("both peers count the same bytes, except those of refused packets", func() bool {
				return p.kernel().tx == p.status().Received.Bytes+uint64(family)*refused
			})
			s := p.status()
			if !p.fails("ping -c 1 -W 1 -I %v %v", foreign[family], ourAddrs[family]) {
				t.Errorf("a ping from %v got an answer, want none", foreign[family])
			}
			p.want("our device drops the ping", func() bool { return p.status().Drops[wireguard.DropSourceNotAllowed] == uint64(family+1) })
			if now := p.status(); now.Received != s.Received {
				t.Errorf("%s: our device has received %+v after the refused ping, and %+v before, want no change", families[family], now.Received, s.Received)
			}
		}
	})
	t.Run("nested prefixes", func(t *testing.T) {
		p := newPair(t, setup{})
		p.pinged(0)
		// Another peer gets a longer prefix inside the kernel's prefix. From then on, the device drops the kernel's packets whose
		// source address is in the longer prefix.
		other := wireguard.PeerConfig{PublicKey: wireguard.NewPrivateKey().Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(kernelAddrs[0], 32)}}
		wide := wireguard.PeerChange{PublicKey: p.kernelKey.Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24")}}
		p.configure(wireguard.Change{Peers: []wireguard.PeerChange{wide, other.Change()}})
		if !p.fails("ping -c 1 -W 1 %v", ourAddrs[0]) {
			t.Error("a ping from an address of another peer got an answer")
		}
		p.sh("ip addr add %v/32 dev wg0; ping -c 1 -W 30 -I %v %v", foreign[0], foreign[0], ourAddrs[0])
		if n := p.status().Drops[wireguard.DropSourceNotAllowed]; n != 1 {
			t.Errorf("our device refused %d packets, want 1", n)
		}
	})
}

// TestStrangers checks that the device does not answer an initiation from an unknown public key, and that the kernel does not
// answer an initiation with a wrong mac1.
func TestStrangers(t *testing.T) {
	p := newPair(t, setup{way: line4})
	p.ping(0)
	t.Run("ours", func(t *testing.T) {
		p.sh("echo %s >/tmp/other; wg set wg0 private-key /tmp/other", wireguard.NewPrivateKey().Text())
		if !p.fails("ping -c 1 -W 1 %v", ourAddrs[0]) {
			t.Error("a ping from an unknown peer got an answer")
		}
		if n := p.line.count(ours, pipe.TypeResponse); n != 0 {
			t.Errorf("our device sent %d responses to an unknown peer, want 0", n)
		}
		if n := p.dev.Status().Drops[wireguard.DropUnknownPeer]; n == 0 {
			t.Error("our device did not count the initiation from an unknown peer")
		}
	})
	t.Run("the kernel", func(t *testing.T) {
		// The kernel has a new key now, so the mac1 of our messages is made for a key that the kernel no longer has.
		responses := p.line.count(kernels, pipe.TypeResponse)
		p.clock.forward(181 * time.Second) // the session expires after 180 s
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if p.dev.Handshake(ctx, p.kernelKey.Public()) == nil {
			t.Error("the handshake with a key that the kernel no longer has succeeded")
		}
		if n := p.line.count(kernels, pipe.TypeResponse); n != responses {
			t.Errorf("the kernel sent %d responses to initiations with a wrong mac1, want 0", n-responses)
		}
	})
}
