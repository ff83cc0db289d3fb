package udp

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// elsewhere stores an entry for p as if its packets had left through another interface before the last change of routes.
func elsewhere(r *routes, p pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(p, way{1 << 20, r.changes.Load() - 1})
}

// TestPeersBehindOneAddress checks that the source is dropped for both of two peers with the same address.
func TestPeersBehindOneAddress(t *testing.T) {
	p := fast(t, variants[0].listen(t), ipv4)
	if p.routes == nil {
		t.Skip("needs netlink")
	}
	lo := loopback(ipv4)
	for _, port := range []uint16{9, 10} {
		elsewhere(p.routes, pair{lo.As4(), lo.As4(), port})
	}
	for _, kept := range []bool{false, true} {
		for _, port := range []uint16{9, 10} {
			e := wireguard.EndpointOf(netip.AddrPortFrom(lo, port))
			e.Source = lo
			if p.routes.check(&e, p.raw); e.Source.IsValid() != kept {
				t.Errorf("check kept the source for port %d: %v, want %v", port, !kept, kept)
			}
		}
	}
}

// TestLonePeerTakesNoLock checks that a second check of the same pair takes no lock, as long as no route has changed.
func TestLonePeerTakesNoLock(t *testing.T) {
	p := fast(t, variants[0].listen(t), ipv4)
	if p.routes == nil {
		t.Skip("needs netlink")
	}
	check := func(locked bool) bool {
		e := wireguard.EndpointOf(netip.AddrPortFrom(loopback(ipv4), 9))
		e.Source = loopback(ipv4)
		if locked {
			p.routes.mu.Lock()
			defer p.routes.mu.Unlock()
		}
		p.routes.check(&e, p.raw)
		return e.Source.IsValid()
	}
	check(false)
	late := time.AfterFunc(20*time.Second, func() { panic("the second check waits for the lock, want no lock taken") })
	check(true)
	late.Stop()
	elsewhere(p.routes, pair{loopback(ipv4).As4(), loopback(ipv4).As4(), 9})
	if check(false) {
		t.Error("check kept the source after the route changed")
	}
}

// A script replaces the netlink socket. Each Read returns the next error that the test sends to the script's channel.
type script struct {
	says   chan error // nil means a message about a change
	closed chan struct{}
}

func (s script) Read([]byte) (int, error) {
	select {
	case err := <-s.says:
		return 16, err
	case <-s.closed:
		return 0, os.ErrClosed
	}
}

func (s script) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

// TestRoutesSurviveErrors checks that the source is still dropped after trains to IPv6 peers and after errors of the netlink
// socket. After each read of netlink, one Send sends trains to peers of both families, and must drop the source of the IPv4
// train, whose route has changed. Another implementation had a netlink loop that stopped at the first IPv6 peer (faults_test.go).
func TestRoutesSurviveErrors(t *testing.T) {
	x, y := variants[0].listen(t), variants[0].listen(t)
	netlink := script{make(chan error), make(chan struct{})}
	ask, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		t.Skip("needs netlink")
	}
	p, r := fast(t, x, ipv4), &routes{events: netlink, ask: ask}
	if p.also != nil {
		p.also.Close()
	}
	p.routes, p.also = r, r
	ended := make(chan bool)
	go func() {
		r.listen()
		close(ended)
	}()
	for i, err := range []error{nil, unix.ENOBUFS, unix.EIO, nil} {
		noticed(t, r, "a result of reading netlink", func() {
			select {
			case netlink.says <- err:
			case <-time.After(10 * time.Second):
				t.Fatalf("listen no longer reads netlink, so it cannot get the result %v", err)
			}
		})
		four := trainOf(i, 2100, 1000, y.at(ipv4))
		elsewhere(r, pair{loopback(ipv4).As4(), loopback(ipv4).As4(), y.Port()})
		ts := []wireguard.Train{four}
		if has(ipv6) {
			six := trainOf(i, 2100, 1000, y.at(ipv6))
			ts = []wireguard.Train{six, four, six}
		}
		for i := range ts {
			ts[i].Endpoint.Source = ts[i].Endpoint.Addr.Addr()
		}
		x.send(ts...)
		y.receive(ipv4, 3)
		if has(ipv6) {
			y.receive(ipv6, 6)
		}
		for i := range ts {
			if e := &ts[i].Endpoint; e.Source.IsValid() != e.Addr.Addr().Is6() {
				t.Errorf("after netlink returned %v: the source of train %d to %v is %v; want it dropped for IPv4 and kept for IPv6", err, i, e, e.Source)
			}
		}
	}
	x.Close()
	<-ended
}
