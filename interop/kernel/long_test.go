//go:build linux

package kernel

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// These tests wait for the kernel's clock, which a test cannot set forward.

func needsLong(t *testing.T) {
	t.Helper()
	if !*long || testing.Short() {
		t.Skip("this test takes minutes; run it with -long")
	}
}

// TestLongRekey sends one ping per second in each direction for 135 s, while both peers use the real clock. The initiator makes a
// new session when it sends after REKEY_AFTER_TIME (120 s). The test checks that it makes exactly one, that no packet is lost, and
// that the responder sends no initiation.
func TestLongRekey(t *testing.T) {
	for first, role := range []string{"ours", "the kernel's"} {
		t.Run(role, func(t *testing.T) {
			needsLong(t)
			p := newPair(t, setup{way: line4})
			if first == ours {
				p.ping(0)
			} else {
				p.pinged(0)
			}
			began := time.Now()
			var second time.Duration
			for time.Since(began) < 135*time.Second {
				p.ping(0)
				p.pinged(1)
				if second == 0 && p.line.count(first, pipe.TypeInitiation) == 2 {
					second = time.Since(began)
				}
				time.Sleep(time.Second)
			}
			if second < 119*time.Second || second > 130*time.Second {
				t.Errorf("the second handshake began after %v, want 119 to 130 s", second)
			}
			a, b := p.line.count(first, pipe.TypeInitiation), p.line.count(1-first, pipe.TypeInitiation)
			if a != 2 || b != 0 {
				t.Errorf("the initiator sent %d initiations and the responder sent %d, want 2 and 0", a, b)
			}
			p.wantCounters()
			t.Logf("rekey after %v", second)
		})
	}
}

// TestLongRejectAfterTime drops all handshake messages after the first handshake, while both peers continue to send packets. The
// session lasts exactly 180 s (REJECT_AFTER_TIME). After that, neither peer sends on it, because the other one would drop the
// messages.
func TestLongRejectAfterTime(t *testing.T) {
	needsLong(t)
	p := newPair(t, setup{way: line4, packets: true})
	p.echo(0, 84, 0)
	began := time.Now()
	p.line.filter(func(_ int, d *datagram) bool {
		return d.kind() == pipe.TypeData || d.kind() == pipe.TypeKeepalive
	})
	var last [2]atomic.Int64 // when each end sent its last data message, in nanoseconds since the handshake
	sent := [2]int{}
	for time.Since(began) < 190*time.Second {
		p.send(echoRequest(ourAddrs[0], kernelAddrs[0], 84, 0, p.nextSequence()))
		p.m.script("ping -c 1 -W 0.2 " + ourAddrs[0].String())
		for end := range sent {
			if n := p.line.count(end, pipe.TypeData); n != sent[end] {
				sent[end] = n
				last[end].Store(int64(time.Since(began)))
			}
		}
		for p.tun.TryReceive() != nil {
		}
		time.Sleep(500 * time.Millisecond)
	}
	for end, name := range []string{"ours", "the kernel's"} {
		if at := time.Duration(last[end].Load()); at < 175*time.Second || at > 182*time.Second {
			t.Errorf("%s: the last data message was sent after %v, want 175 to 182 s", name, at)
		}
	}
	if n := p.line.count(ours, pipe.TypeInitiation); n < 10 {
		t.Errorf("our device sent %d initiations in 190 s, want at least 10, because it sends one per 5 s from 120 s on", n)
	}
	p.line.filter(nil)
	p.clock.forward(6 * time.Second)
	p.echo(1, 104, 0)
}

// TestLongPassiveKeepalive checks that a peer that received data and sends nothing for 10 s then sends one keepalive. It also
// checks that neither peer answers a keepalive. Both peers use the real clock.
func TestLongPassiveKeepalive(t *testing.T) {
	needsLong(t)
	p := newPair(t, setup{way: line4, packets: true})
	unanswered := [2]func(){
		ours:    func() { p.echo(0, 84, 0) }, // the test does not answer the reply
		kernels: func() { p.send(p.unasked()) },
	}
	for end, say := range unanswered {
		say()
		began := time.Now()
		p.want("the peer that received data sends a keepalive", func() bool { return p.line.count(end, pipe.TypeKeepalive) == 1 })
		if took := time.Since(began); took < 9500*time.Millisecond || took > 15*time.Second {
			t.Errorf("end %d sent its keepalive after %v, want 9.5 to 15 s", end, took)
		}
	}
	time.Sleep(12 * time.Second)
	if a, b := p.line.count(ours, pipe.TypeKeepalive), p.line.count(kernels, pipe.TypeKeepalive); a != 1 || b != 1 {
		t.Errorf("our device sent %d keepalives and the kernel sent %d, want one each, because no peer answers a keepalive", a, b)
	}
}

// TestLongSilentKernel drops all messages of the kernel and sends a packet to it. After 15 s plus up to a third of a second of
// real time, our device begins a new handshake.
func TestLongSilentKernel(t *testing.T) {
	needsLong(t)
	p := newPair(t, setup{way: line4, packets: true})
	p.echo(0, 84, 0)
	p.line.filter(func(from int, _ *datagram) bool { return from == ours })
	began := time.Now()
	p.send(echoRequest(ourAddrs[0], kernelAddrs[0], 84, 0, p.nextSequence()))
	p.want("our device sends a further initiation", func() bool { return p.line.count(ours, pipe.TypeInitiation) == 2 })
	if took := time.Since(began); took < 15*time.Second || took > 20*time.Second {
		t.Errorf("our device sent the initiation after %v, want 15 to 15.33 s, or up to 20 s on a slow machine", took)
	}
	p.line.filter(nil)
	p.want("our device has a new session", func() bool { return p.status().SessionAge < 10*time.Second && p.status().Session })
	p.echo(1, 104, 0)
	if d := p.status().Drops; d[wireguard.DropForged] != 0 {
		t.Errorf("our device dropped %v, want no forged messages", d)
	}
}
