//go:build linux

package kernel

import (
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// TestRoaming changes the UDP port of our device and then that of the kernel, over QEMU's user network. The session continues,
// because each peer sends to the address from which the last authentic message came.
func TestRoaming(t *testing.T) {
	p := newPair(t, setup{})
	p.ping(0)
	first := p.kernel().endpoint
	port := freePort()
	p.configure(wireguard.Change{ListenPort: &port})
	p.ping(0)
	if now := p.kernel().endpoint; now == first || now != p.deviceAt().String() {
		t.Errorf("the kernel sends to %s, and sent to %s before our port changed, want %v", now, first, p.deviceAt())
	}
	p.pinged(1)

	// When the kernel changes its port, the user network sends the kernel's messages from another port of the host.
	p.sh("wg set wg0 listen-port %d", guestPort+1)
	p.pinged(0)
	moved := p.status().Endpoint.Addr
	if moved == p.kernelAt() {
		t.Errorf("we still send to the kernel's first port, %v", moved)
	}
	p.ping(1)
	p.sh("wg set wg0 listen-port %d", guestPort)
	p.pinged(0)
	if back := p.status().Endpoint.Addr; back == moved {
		t.Errorf("we still send to the port that the kernel has left, %v", back)
	}
	p.ping(1)
	p.wantCounters()
	if s := p.status(); s.Received.Bytes+s.Sent.Bytes >= 2*(initiationBytes+responseBytes)+14*(32+112) {
		t.Errorf("we received %+v and sent %+v, which is more than one handshake and the pings", s.Received, s.Sent)
	}
}

// TestRebinding changes the port to which a NAT on the path maps our device. The kernel learns the new port from our next packet.
// The test uses both outer families.
func TestRebinding(t *testing.T) {
	for _, w := range []way{line4, line6} {
		t.Run(string(w), func(t *testing.T) {
			p := newPair(t, setup{way: w})
			p.ping(0)
			for port := uint16(40001); port < 40004; port++ {
				p.line.rebind(port)
				p.ping(0)
				if now := p.kernel().endpoint; now != p.deviceAt().String() {
					t.Errorf("the kernel sends to %s, want %v", now, p.deviceAt())
				}
				p.pinged(1)
			}
			if n := p.line.count(ours, pipe.TypeInitiation) + p.line.count(kernels, pipe.TypeInitiation); n != 1 {
				t.Errorf("the peers sent %d initiations, want 1, because the session continues", n)
			}
			p.wantCounters()
		})
	}
}

// TestKernelMovesAddress changes the kernel's address but not its port. Our device answers to the new address at once.
func TestKernelMovesAddress(t *testing.T) {
	p := newPair(t, setup{way: line4, noKernelsAt: true})
	p.pinged(0)
	p.sh("ip addr add 10.9.0.77/24 dev eth1; ip addr del 10.9.0.2/24 dev eth1")
	t.Cleanup(func() {
		p.m.script("ip addr add 10.9.0.2/24 dev eth1; ip addr del 10.9.0.77/24 dev eth1")
	})
	p.pinged(0)
	p.ping(1)
	all := p.line.all(ours, pipe.TypeData)
	if to := all[len(all)-1].to; to.Addr().String() != "10.9.0.77" {
		t.Errorf("our last message went to %v, want 10.9.0.77", to)
	}
	if n := p.line.count(kernels, pipe.TypeInitiation); n != 1 {
		t.Errorf("the kernel sent %d initiations, want 1", n)
	}
}
