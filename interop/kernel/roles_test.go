//go:build linux

package kernel

import (
	"fmt"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// The sizes of messages in bytes. A data message is keepaliveBytes longer than its padded packet: WireGuard pads each packet to a
// multiple of 16 bytes.
const (
	initiationBytes = 148
	responseBytes   = 92
	keepaliveBytes  = 32
)

// TestRoles lets our device or the kernel begin the handshake, over each outer and each inner family, with and without a preshared
// key. The first packet establishes the session, and the byte counters of both peers agree.
func TestRoles(t *testing.T) {
	for _, w := range []way{userNet, line4, line6} {
		for _, role := range []string{"initiator", "responder"} {
			for family, name := range families {
				for i, psk := range []wireguard.PresharedKey{{}, wireguard.NewPresharedKey()} {
					if w != userNet && i != family {
						continue // the outer family does not matter for the preshared key, so these paths skip half of the cases
					}
					t.Run(fmt.Sprintf("%s/kernel is %s/%s/psk=%v", w, role, name, !psk.IsZero()), func(t *testing.T) {
						p := newPair(t, setup{way: w, psk: psk, noKernelsAt: role == "initiator"})
						if role == "initiator" {
							p.pinged(family)
							p.ping(family)
						} else {
							p.ping(family)
							p.pinged(family)
						}
						p.ping(1 - family)
						p.pinged(1 - family)
						p.wantCounters()
						// Four pings make 8 packets. The 4 IPv4 packets have 84 bytes each, padded to 96, and the 4 IPv6 packets
						// have 104 bytes each, padded to 112.
						data := uint64(4*(keepaliveBytes+96) + 4*(keepaliveBytes+112))
						s := p.status()
						if got, want := s.Sent.Bytes+s.Received.Bytes, data+initiationBytes+responseBytes; got < want || got > want+2*keepaliveBytes {
							t.Errorf("the peers sent %d bytes, want %d for one handshake and 8 packets, and at most two keepalives on a slow machine", got, want)
						}
						if s.Drops.Total() != 0 || s.Sent.Packets != 4 || s.Received.Packets != 4 {
							t.Errorf("our device sent %d packets, received %d and dropped %v; want 4, 4 and none", s.Sent.Packets, s.Received.Packets, s.Drops)
						}
						if k := p.kernel(); time.Since(k.handshake) > patience {
							t.Errorf("the kernel's last handshake was at %v, want one in the last 30 s", k.handshake)
						}
					})
				}
			}
		}
	}
}

// TestConfirmation checks that the initiator confirms the session at once, with staged packets or a keepalive. The responder must
// not send on the session before it has received a first data message or keepalive from the initiator.
func TestConfirmation(t *testing.T) {
	messages := []pipe.MessageType{pipe.TypeInitiation, pipe.TypeResponse, pipe.TypeKeepalive, pipe.TypeData}
	for _, c := range []struct {
		name  string
		first int
		begin func(p *pair)
		want  [2][4]int // how many messages of each type, indexed by the sending end
	}{
		{"ours, nothing staged", ours, func(p *pair) {
			if err := p.handshake(); err != nil {
				p.t.Error(err)
			}
		}, [2][4]int{ours: {1, 0, 1, 0}, kernels: {0, 1, 0, 0}}},
		{"ours, a packet staged", ours, func(p *pair) { p.ping(0) }, [2][4]int{ours: {1, 0, 0, 1}, kernels: {0, 1, 0, 1}}},
		// Without a packet, the kernel begins a handshake only for a persistent keepalive.
		{"the kernel's, nothing staged", kernels, func(p *pair) {
			p.sh("wg set wg0 peer %s persistent-keepalive 1000", p.key.Public())
		}, [2][4]int{ours: {0, 1, 0, 0}, kernels: {1, 0, 1, 0}}},
		{"the kernel's, a packet staged", kernels, func(p *pair) { p.pinged(0) }, [2][4]int{ours: {0, 1, 0, 1}, kernels: {1, 0, 0, 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, setup{way: line4})
			c.begin(p)
			p.want("our device has a session", func() bool { return p.status().Session })
			p.wantCounters()
			for end, counts := range c.want {
				for i, want := range counts {
					if got := p.line.count(end, messages[i]); got != want {
						t.Errorf("%s sent %d messages of the type %v, want %d", [2]string{"we", "the kernel"}[end], got, messages[i], want)
					}
				}
			}
		})
	}
}
