//go:build linux

package kernel

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// initiationLike returns a forged initiation in which only mac1 is valid. A receiver that is not under load computes X25519 once
// before it drops the message.
func initiationLike(receiver wireguard.PublicKey) []byte {
	m := make([]byte, 148)
	m[0], m[20] = 1, 9
	key := blake2s.Sum256(append([]byte("mac1----"), receiver[:]...))
	h, _ := blake2s.New128(key[:])
	h.Write(m[:116])
	h.Sum(m[116:116])
	return m
}

// flood calls the function burst repeatedly, with pauses, until stop is called. stop waits until the last call has returned.
func flood(t *testing.T, pause time.Duration, burst func()) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			burst()
			select {
			case <-done:
				return
			case <-time.After(pause):
			}
		}
	})
	stop = sync.OnceFunc(func() { close(done); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// TestCookieOurs checks that our device answers an initiation with a cookie reply while it is under load. The device is under load
// while its handshake queue, which has room for 4096 messages, is more than an eighth full, and for a second after that. When the
// kernel tries again after 5 s, its initiation has a mac2, and our device answers this initiation although it is still under load.
func TestCookieOurs(t *testing.T) {
	p := newPair(t, setup{way: line4, noKernelsAt: true})
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.dev.Status().ListenPort)
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := initiationLike(p.key.Public())
	stop := flood(t, 200*time.Millisecond, func() {
		for range 1500 {
			c.Write(m)
		}
	})
	// If the flood has paused for a second, our device answers the kernel's initiation with a response and sends no cookie reply.
	// Then restart wg0, so that the kernel begins again.
	for range 10 {
		p.want("our device is under load", func() bool { return p.dev.Status().UnderLoad })
		p.pinged(0)
		if p.line.count(ours, pipe.TypeCookieReply) > 0 {
			break
		}
		p.sh("ip link set wg0 down; ip link set wg0 up")
	}
	stop()
	all := p.line.all(kernels, pipe.TypeInitiation)
	if n := p.line.count(ours, pipe.TypeCookieReply); n == 0 || len(all) < 2 {
		t.Fatalf("we sent %d cookie replies and the kernel sent %d initiations, want at least 1 and 2", n, len(all))
	}
	if all[0].hasMAC2() || !all[len(all)-1].hasMAC2() {
		t.Errorf("mac2 in the first initiation: %v, in the last: %v; want it only in the last", all[0].hasMAC2(), all[len(all)-1].hasMAC2())
	}
	if n := p.dev.Status().Drops[wireguard.DropCookieRequired]; n < 2 {
		t.Errorf("our device dropped %d messages that had no cookie, want at least 2: the kernel's first initiation and some of the flood", n)
	}
	p.ping(1)
}

// TestCookieKernel floods the kernel from another address. The kernel sends our device a cookie, and then answers an initiation
// whose mac2 proves that the device has this cookie.
func TestCookieKernel(t *testing.T) {
	p := newPair(t, setup{way: line4})
	m := datagram{
		from: netip.MustParseAddrPort("10.9.0.3:1"), to: netip.MustParseAddrPort("10.9.0.2:51820"), data: initiationLike(p.kernelKey.Public()),
	}
	// The kernel requires cookies from all senders for a second after the flood. Messages of the flood that are still queued then
	// have the same effect as a longer flood.
	t.Cleanup(func() { p.m.script("sleep 2") })
	stop := flood(t, 100*time.Millisecond, func() {
		for range 1500 {
			p.line.wire.send(&m) // this blocks while the machine is busy
		}
	})
	// Each attempt sends one initiation. It sets the device's clock forward, because the device sends initiations at least 5 s
	// apart. A cookie is valid for 120 s.
	try := func() {
		p.clock.forward(6 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p.dev.Handshake(ctx, p.kernelKey.Public())
	}
	p.want("the kernel sends a cookie reply", func() bool {
		try()
		return p.line.count(kernels, pipe.TypeCookieReply) > 0
	})
	tries := p.line.count(ours, pipe.TypeInitiation)
	p.want("our device gets a session after an initiation with a mac2", func() bool {
		try()
		return p.status().Session
	})
	stop()
	all := p.line.all(ours, pipe.TypeInitiation)
	if !all[len(all)-1].hasMAC2() || all[0].hasMAC2() {
		t.Errorf("mac2 in the last initiation: %v, in the first: %v; want it only in the last", all[len(all)-1].hasMAC2(), all[0].hasMAC2())
	}
	t.Logf("the kernel sent a cookie reply after %d initiations, and our device had a session after %d", tries, len(all))
	p.ping(1)
}
