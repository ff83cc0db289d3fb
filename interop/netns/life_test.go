//go:build linux

package netns

import (
	"io"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// flow starts to ping an address a hundred times per second, until the test ends.
func (h *host) flow(to netip.Addr) {
	h.t.Helper()
	b, err := h.Start(io.Discard, nil, "ping", "-n", "-i", "0.01", to.String())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(b.Kill)
}

// ended waits until the daemon has ended, and checks that its control socket and its interface are gone.
func (w *wg) ended(why string) {
	w.t.Helper()
	testkit.Next(w.t, w.Done(), "the daemon ends: "+why)
	if err := w.Wait(); err != nil {
		w.t.Errorf("the daemon ended with %v: %s", err, why)
	}
	if exists(w.Socket()) {
		w.t.Errorf("the control socket exists after the daemon has ended: %s", why)
	}
	w.fails("the interface is gone", "ip link show dev %s", w.name)
}

// TestKilledReceiver kills a daemon under traffic and starts it again. The interface disappears with the daemon. The other daemon
// sends on the old session until it has received no answer for fifteen seconds, and then makes a new session.
//
//	a ══ v0 ── v0 ══ b     newPair; b is killed
func TestKilledReceiver(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 3)
	p.a.flow(innerB4)
	p.b.Kill()
	p.b.fails("the interface disappears with its daemon", "ip link show dev %s", p.b.name)
	os.Remove(p.b.Socket()) // wg-quick does this too
	p.b.again()
	p.b.peer(p.a, "allowed-ips %v/32,%v/128", innerA4, innerA6)
	testkit.Within(t, 30*time.Second, "a makes a new session with b", func() bool { return p.a.reaches(innerB4) })
	p.b.ping(innerA6, 3)
}

// again starts a new daemon for the interface b of a pair, with the same key and port and without peers.
func (w *wg) again() {
	w.t.Helper()
	w.launch()
	w.set("listen-port %d private-key /dev/stdin", w.port)
	w.addresses(w.name, innerB)
	w.up()
}

// TestKilledSender kills a daemon that is sending traffic. After its restart, the daemon must make a session at once.
func TestKilledSender(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 3)
	p.b.flow(innerA4)
	for range 3 {
		p.b.Kill()
		os.Remove(p.b.Socket())
		p.b.again()
		p.b.peer(p.a, "allowed-ips %v/32,%v/128 endpoint %s", innerA4, innerA6, at(outerA4))
		p.b.ping(innerA4, 3)
		p.a.ping(innerB6, 3)
	}
}

// TestInterfaceDeleted deletes an interface under traffic in both directions. The interface's daemon must end, and the other
// daemon must continue to run.
func TestInterfaceDeleted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 3)
	p.a.flow(innerB4)
	p.b.flow(innerA6)
	p.b.run("ip link del dev %s", p.b.name)
	p.b.ended("its interface was deleted")
	p.a.run("wg show %s", p.a.name)
	select {
	case <-p.a.Done():
		t.Errorf("the other daemon ended, too: %v", p.a.Wait())
	default:
	}
}

// TestEnd checks that a daemon under traffic ends and cleans up when it gets a signal, and when its control socket is removed.
func TestEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		why string
		end func(w *wg)
	}{
		{"SIGTERM", func(w *wg) { w.Signal(syscall.SIGTERM) }},
		{"SIGINT", func(w *wg) { w.Signal(syscall.SIGINT) }},
		{"its socket was removed", func(w *wg) { os.Remove(w.Socket()) }},
	} {
		t.Run(c.why, func(t *testing.T) {
			p := newPair(t)
			p.meet(outerB4)
			p.a.ping(innerB4, 3)
			p.a.flow(innerB4)
			c.end(p.b)
			p.b.ended(c.why)
		})
	}
}

// TestDownAndUp checks that `ip link set down` closes the port and wipes the sessions, and that `ip link set up` opens the port
// again. The configuration and the counters must not change. After that, the first packet causes a new handshake at once: the limit
// of one initiation per five seconds does not apply.
func TestDownAndUp(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it does not notice that its interface goes down: with IFF_VNET_HDR the test write of its listener fails in both "+
		"states, and its netlink loop forgets with each message that the interface was up")
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 2)
	p.a.transferred(p.b, transfer{responseSize + 2*sealed(84), initiationSize + 2*sealed(84)})
	for range 3 {
		before := p.a.status(p.b)
		p.a.down()
		if got := p.a.status(p.b); got.endpoint != before.endpoint || got.allowed != before.allowed || got.rx != before.rx {
			t.Errorf("the peer is %+v after down, want %+v", got, before)
		}
		p.b.noPing("a is down", innerA4)
		p.a.addresses(p.a.name, "fd00::1/64") // the kernel removed the IPv6 address when the link went down
		p.a.up()
		p.a.ping(innerB4, 2)
		p.b.ping(innerA6, 2)
		sent := initiationSize + 2*sealed(84) + 2*sealed(104)
		if got := settled(sent, func() int64 { return p.a.status(p.b).tx - before.tx }); got != sent {
			t.Errorf("a sent %d bytes since it was down, want %d: an initiation, and four packets", got, sent)
		}
	}
}

// TestFlapping sets an interface down and up repeatedly under traffic. In the end, the interface must be in the last state that
// was set: up.
func TestFlapping(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	p.a.flow(innerB4)
	p.b.flow(innerA4)
	for range 30 {
		p.a.run("ip link set down dev %s", p.a.name)
		p.a.run("ip link set up dev %s", p.a.name)
	}
	testkit.Within(t, 20*time.Second, "the tunnel is back", func() bool { return p.a.reaches(innerB4) })
}

// TestMovedInterface moves the daemon's interface to another host that has no other interface, as for a container that may use
// only the tunnel. Packets from that host leave through the socket on the daemon's host. The daemon must still learn when the MTU
// changes, and when the interface goes up and is deleted.
//
//	inner: wg ╌╌ moved ╌╌ a v0 ── v0 ══ b
func TestMovedInterface(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	inner := newHost(t)
	p.a.run("ip link set dev %s netns %s", p.a.name, inner.Name)
	inner.run("ip link set %s addrgenmode none", p.a.name)
	inner.addresses(p.a.name, innerA)
	inner.run("ip link set up dev %s mtu 9000", p.a.name)
	p.b.run("ip link set dev %s mtu 9000", p.b.name)
	p.meet(outerB4)
	testkit.Within(t, 20*time.Second, "the moved interface is up", func() bool { return inner.reaches(innerB4) })
	inner.ping(innerB4, 3)
	inner.ping(innerB6, 3, "-s", "8900", "-M", "do")
	p.b.ping(innerA4, 3, "-s", "8900", "-M", "do")
	inner.run("ip link del dev %s", p.a.name)
	testkit.Next(t, p.a.Done(), "the daemon ends when its interface is deleted")
}

// TestNameTaken checks that a second daemon with the name of an existing interface ends with an error, and that the existing
// interface still works.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	second, err := p.a.Start(io.Discard, []string{"WG_PROCESS_FOREGROUND=1"}, program(t), "-f", p.a.name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Kill)
	if testkit.Next(t, second.Done(), "a second daemon ends"); second.Wait() == nil {
		t.Error("the second daemon ends without an error")
	}
	p.a.ping(innerB4, 3)
	p.a.run("wg show %s", p.a.name)
}
