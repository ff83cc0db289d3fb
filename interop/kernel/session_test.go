//go:build linux

package kernel

import (
	"context"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// apart is how long a test waits between two initiations of the device. The kernel accepts at most one initiation from a peer per
// 20 ms, measured by the kernel's clock, and drops the others.
const apart = 50 * time.Millisecond

// TestRekey checks that the initiator makes a new session when it sends a packet and its session is older than REKEY_AFTER_TIME
// (120 s). The test sets our device's clock forward. The old session works until the new one is established, so no packet is lost.
// The third handshake removes the first session from both peers.
func TestRekey(t *testing.T) {
	p := newPair(t, setup{way: line4})
	p.ping(0)
	for n := 1; n <= 3; n++ {
		time.Sleep(apart)
		p.clock.forward(121 * time.Second)
		p.ping(0) // uses the old session and requests the new one
		p.want("the kernel answers a further initiation", func() bool { return p.line.count(kernels, pipe.TypeResponse) == n+1 })
		p.want("our device has a new session", func() bool { s := p.status(); return s.Session && s.SessionAge < 60*time.Second })
		p.ping(1)
		p.pinged(0)
	}
	if n := p.line.count(ours, pipe.TypeInitiation); n != 4 {
		t.Errorf("our device sent %d initiations, want 4", n)
	}
	if n := p.line.count(kernels, pipe.TypeInitiation); n != 0 {
		t.Errorf("the kernel sent %d initiations, want none, because the responder does not rekey", n)
	}
	p.wantCounters()
}

// TestOurRestart replaces the device by a new one with the same keys. The new device establishes a session although the kernel
// still has one with the old device, because the timestamps in its initiations are greater than those of the old device.
func TestOurRestart(t *testing.T) {
	p := newPair(t, setup{way: line4})
	p.ping(0)
	for range 2 {
		time.Sleep(apart)
		p.reopen()
		p.ping(0)
		p.pinged(1)
	}
	if a, b := p.line.count(ours, pipe.TypeInitiation), p.line.count(kernels, pipe.TypeResponse); a != 3 || b != 3 {
		t.Errorf("our devices sent %d initiations and the kernel sent %d responses, want 3 and 3: one per device", a, b)
	}
}

// TestKernelAfterOurRestart replaces the device by a new one with the same keys, and lets the kernel send on its session with the
// old device. The kernel begins a new handshake 15 s after it has sent a packet (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT), if it has not
// received a packet since then. The new device answers the initiation, because it has not yet seen a timestamp from the kernel.
func TestKernelAfterOurRestart(t *testing.T) {
	p := newPair(t, setup{way: line4, noKernelsAt: true})
	p.pinged(0)
	p.reopen()
	began := time.Now()
	p.sh("ping -c 25 -W 30 -i 1 %v >/tmp/ping & until grep -q 'bytes from' /tmp/ping; do usleep 50000; done; kill $!", ourAddrs[0])
	if took := time.Since(began); took < 14*time.Second {
		t.Errorf("the kernel got an answer after %v, want at least 14 s, because the new device does not have the old session", took)
	}
	if a, b := p.line.count(kernels, pipe.TypeInitiation), p.line.count(ours, pipe.TypeResponse); a != 2 || b != 2 {
		t.Errorf("the kernel sent %d initiations and our devices sent %d responses, want 2 and 2", a, b)
	}
	s := p.status()
	if !s.Session || p.dev.Status().Drops[wireguard.DropUnknownIndex] == 0 {
		t.Errorf("session %v, drops %v; want a session, and drops of messages with an unknown index", s.Session, p.dev.Status().Drops)
	}
	p.ping(0)
}

// TestKernelRecreated deletes the kernel's interface and creates it again with the same keys. The kernel does not tell our device
// that the session is gone. 15 s plus jitter after an unanswered packet, our device begins a new handshake, which succeeds.
func TestKernelRecreated(t *testing.T) {
	p := newPair(t, setup{way: line4})
	p.ping(0)
	p.sh("ip link del wg0")
	p.addKernel()
	p.revive()
}

// TestPeerReadded removes the device from the kernel's peers and adds it again, while the kernel's interface stays up. In between,
// the kernel does not answer the device.
func TestPeerReadded(t *testing.T) {
	p := newPair(t, setup{way: line4})
	p.ping(0)
	p.sh("wg set wg0 peer %s remove", p.key.Public())
	said := p.line.count(kernels, pipe.TypeData) + p.line.count(kernels, pipe.TypeKeepalive)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := p.net.Ping(ctx, kernelAddrs[0]); err == nil {
		t.Error("the kernel answered a device that is not its peer")
	}
	p.clock.forward(6 * time.Second) // the device sends initiations at least 5 s apart
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	p.dev.Handshake(ctx, p.kernelKey.Public())
	if n := p.line.count(kernels, pipe.TypeResponse); n != 1 {
		t.Errorf("the kernel sent %d responses, want 1 and none to an unknown peer", n)
	}
	if n := p.line.count(kernels, pipe.TypeData) + p.line.count(kernels, pipe.TypeKeepalive); n != said {
		t.Errorf("the kernel sent %d messages on the session of a peer that was removed", n-said)
	}
	p.sh("%s", p.kernelPeerScript())
	p.revive()
}

// revive checks that our device detects that the kernel has lost the session between them, and that our device establishes another
// one.
func (p *pair) revive() {
	p.t.Helper()
	before := p.line.count(kernels, pipe.TypeResponse)
	ctx, cancel := context.WithTimeout(p.t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := p.net.Ping(ctx, kernelAddrs[0]); err == nil {
		p.t.Error("the kernel answered on a session that it does not have")
	}
	p.clock.forward(16 * time.Second)
	if err := p.dev.Wake(); err != nil { // makes the device's timers read the clock
		p.t.Error(err)
	}
	p.want("our device has a new session", func() bool { s := p.status(); return s.Session && s.SessionAge < 10*time.Second })
	if n := p.line.count(kernels, pipe.TypeResponse); n != before+1 {
		p.t.Errorf("the kernel has sent %d responses, and had sent %d before, want one more", n, before)
	}
	p.ping(0)
	p.pinged(1)
}

// TestCrossing lets both peers send their initiations at the same time. The initiations cross, and neither of the two handshakes
// gives the peers a session on which they can send. One peer tries again after 5 to 5.33 s, and then packets pass in both
// directions. In this test the kernel is that peer: the device has the greater public key, so it lets the kernel try first. If both
// tried again at the same time, their initiations would cross again.
func TestCrossing(t *testing.T) {
	p := newPair(t, setup{way: line4, givesWay: true})
	held := make([]*datagram, 2)
	p.line.filter(func(from int, d *datagram) bool {
		if d.kind() == pipe.TypeInitiation && held[from] == nil {
			c := *d
			held[from] = &c
			return false
		}
		return true
	})
	got := p.inMachine("ping -c 1 -W 30 %v", ourAddrs[0]) // the kernel stages the ping until a session is established
	go p.dev.Handshake(t.Context(), p.kernelKey.Public())
	p.want("both peers send an initiation", func() bool {
		return p.line.count(ours, pipe.TypeInitiation) == 1 && p.line.count(kernels, pipe.TypeInitiation) == 1
	})
	p.line.inject(ours, *held[ours])
	p.line.inject(kernels, *held[kernels])
	began := time.Now()
	got()
	p.ping(1)
	a, b := p.line.count(ours, pipe.TypeInitiation), p.line.count(kernels, pipe.TypeInitiation)
	t.Logf("packets passed after %v, with %d initiations of our device and %d of the kernel", time.Since(began), a, b)
	if a > 2 || b > 2 {
		t.Errorf("our device sent %d initiations and the kernel sent %d, want at most 2 each", a, b)
	}
}

// TestPersistentKeepalive lets first the kernel and then our device send a persistent keepalive every second. The receiver counts
// the bytes of a keepalive, but does not count the keepalive as a packet, and does not answer it.
func TestPersistentKeepalive(t *testing.T) {
	p := newPair(t, setup{way: line4, kernelPeer: "persistent-keepalive 1", noKernelsAt: true})
	p.want("the kernel sends three keepalives, and our device counts their bytes", func() bool {
		return p.line.count(kernels, pipe.TypeKeepalive) >= 3 && p.status().Received.Bytes >= initiationBytes+3*keepaliveBytes
	})
	if s := p.status(); s.Received.Packets != 0 || s.Sent.Packets != 0 {
		t.Errorf("our device received %+v and sent %+v, want no packets", s.Received, s.Sent)
	}
	if n := p.line.count(ours, pipe.TypeKeepalive); n != 0 {
		t.Errorf("our device answered keepalives with %d keepalives, want 0", n)
	}
	p.sh("wg set wg0 peer %s persistent-keepalive off", p.key.Public())
	second := time.Second
	p.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: p.kernelKey.Public(), PersistentKeepalive: &second}}})
	p.want("our device sends three keepalives", func() bool { return p.line.count(ours, pipe.TypeKeepalive) >= 3 })
	off := time.Duration(0)
	p.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: p.kernelKey.Public(), PersistentKeepalive: &off}}})
	p.wantCounters()
}

// TestIdentity gives first the device and then the kernel a new private key while they are up. The peer with the new key
// establishes a new session when it sends its next packet, and no longer sends on the session that it made with the old key.
func TestIdentity(t *testing.T) {
	p := newPair(t, setup{way: line4})
	p.ping(0)
	t.Run("ours", func(t *testing.T) {
		p.sh("wg set wg0 peer %s remove", p.key.Public())
		p.key = wireguard.NewPrivateKey()
		p.sh("%s", p.kernelPeerScript())
		p.configure(wireguard.Change{PrivateKey: &p.key})
		p.ping(0)
		if n := p.line.count(kernels, pipe.TypeResponse); n != 2 {
			t.Errorf("the kernel sent %d responses, want 2", n)
		}
	})
	t.Run("the kernel's", func(t *testing.T) {
		gone := p.kernelKey.Public()
		p.kernelKey = wireguard.NewPrivateKey()
		peer := wireguard.PeerConfig{PublicKey: p.kernelKey.Public(), AllowedIPs: prefixes(kernelAddrs)}
		p.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: gone, Remove: true}, peer.Change()}})
		p.sh("echo %s >/tmp/key; wg set wg0 private-key /tmp/key", p.kernelKey.Text())
		p.pinged(0)
		p.ping(1)
		if n := p.line.count(ours, pipe.TypeResponse); n != 1 {
			t.Errorf("our device sent %d responses, want 1", n)
		}
	})
}

// TestOurDown checks that Device.Down erases the device's session, and that after Device.Up the next packet establishes a new
// one. The byte counters continue.
func TestOurDown(t *testing.T) {
	port := freePort()
	p := newPair(t, setup{way: line4})
	p.configure(wireguard.Change{ListenPort: &port})
	p.ping(0)
	before := p.status()
	time.Sleep(apart)
	p.dev.Down()
	if err := p.dev.Up(); err != nil {
		t.Fatal(err)
	}
	p.ping(0)
	s := p.status()
	if s.Sent.Bytes <= before.Sent.Bytes || p.line.count(kernels, pipe.TypeResponse) != 2 {
		t.Errorf("our device has sent %+v, and had sent %+v before Down; want more bytes and one further handshake", s.Sent, before.Sent)
	}
	p.wantCounters()
}
