package pipe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
)

// A station is a device with its end and its tunnel. The device's address inside the tunnel is 10.0.0.1 or 10.0.0.2, and it
// listens on port 51820.
type station struct {
	*End
	device *wireguard.Device
	tunnel *Tunnel
	key    wireguard.PrivateKey
	inside netip.AddrPort
}

// twoStations returns two stations that are up and are peers of each other. Only the first station knows the endpoint of the
// other. twoStations does not return an array because of a bug of Go 1.26 on 386: memory that the array points to is freed
// while the caller still uses it.
func twoStations(t *testing.T, a, b *End, clock *Clock) (first, second *station) {
	var ss [2]*station
	for i, e := range []*End{a, b} {
		inside := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 7)
		ss[i] = &station{End: e, tunnel: NewTunnel(1420), key: wireguard.NewPrivateKey(), inside: inside}
	}
	for i, s := range ss {
		other := ss[1-i]
		peer := wireguard.PeerConfig{
			PublicKey:  other.key.Public(),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(other.inside.Addr(), 32)},
		}
		if i == 0 {
			peer.Endpoint = other.Endpoint(51820)
		}
		s.device = devices.Up(t, wireguard.Config{
			PrivateKey: s.key, ListenPort: 51820, Bind: s.End, Tunnel: s.tunnel, Clock: clock,
			Peers: []wireguard.PeerConfig{peer},
		})
	}
	return ss[0], ss[1]
}

// say sends a packet with the payload through the tunnel to another station. wantHeard checks which payloads have arrived at s
// since the last call of wantHeard.
func (s *station) say(to *station, payload string) {
	s.tunnel.TrySend(UDPPacket(s.inside, to.inside, []byte(payload)))
	synctest.Wait()
}

func (s *station) wantHeard(t *testing.T, why string, payloads ...string) {
	t.Helper()
	var got []string
	for p := s.tunnel.TryReceive(); p != nil; p = s.tunnel.TryReceive() {
		got = append(got, string(p[28:]))
	}
	if fmt.Sprint(got) != fmt.Sprint(payloads) {
		t.Errorf("the tunnel received the payloads %q, want %q: %s", got, payloads, why)
	}
}

func TestDevicesInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(Config{})
		a, b := twoStations(t, n.NewEnd(), n.NewEnd(), NewClock())
		n.SetConditions(Conditions{Delay: 100 * time.Millisecond})
		initiations := 0
		n.Filter(func(p *Packet) Verdict {
			if p.Type == TypeInitiation {
				if initiations++; initiations == 1 {
					return Drop
				}
			}
			return Pass
		})
		a.say(b, "hello")
		time.Sleep(4 * time.Second)
		synctest.Wait()
		b.wantHeard(t, "the only initiation is lost")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.wantHeard(t, "an initiation is sent again after 5 s", "hello")
		if got := a.Sent(); got.Initiations != 2 || got.Data != 1 || b.Sent().Responses != 1 {
			t.Errorf("a sent %+v, want 2 initiations and 1 data message; b sent %+v, want 1 response", got, b.Sent())
		}
		b.say(a, "hello yourself")
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		a.wantHeard(t, "b knows the endpoint of a", "hello yourself")
		n.wantBalance(t)
	})
}

func TestDeviceRoamsBehindNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(Config{})
		nat := n.NewNAT(NATConfig{Addrs: []netip.Addr{gateway}, Idle: 20 * time.Second})
		a, b := twoStations(t, nat.NewEnd(private), n.NewEnd(), NewClock())
		a.say(b, "one")
		b.wantHeard(t, "through the NAT", "one")
		b.say(a, "two")
		a.wantHeard(t, "back through the mapping", "two")
		time.Sleep(30 * time.Second)
		b.say(a, "three")
		a.wantHeard(t, "the mapping of the NAT has expired")
		a.say(b, "four")
		b.wantHeard(t, "the packet makes a new mapping", "four")
		b.say(a, "five")
		a.wantHeard(t, "b sends to the new port of a", "five")

		if err := a.MoveBehind(nil, netip.MustParseAddr("192.0.2.9")); err != nil {
			t.Fatal(err)
		}
		a.say(b, "six")
		b.say(a, "seven")
		a.wantHeard(t, "b sends to the new address of a", "seven")
		if p, _ := b.device.Peer(a.key.Public()); p.Endpoint.Addr != a.Endpoint(51820).Addr {
			t.Errorf("b has the endpoint %v for a, want %v", p.Endpoint, a.Endpoint(51820))
		}
		n.wantBalance(t)
	})
}

func TestDeviceSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(Config{})
		clock := NewClock()
		a, b := twoStations(t, n.NewEnd(), n.NewEnd(), clock)
		a.say(b, "one")
		clock.Suspend(time.Hour)
		a.say(b, "two")
		b.wantHeard(t, "a makes a new handshake after an hour of suspension", "one", "two")
		if got := a.Sent().Initiations; got != 2 {
			t.Errorf("a sent %d initiations, want 2: the session is too old after an hour", got)
		}
	})
}

func TestDeviceClosesWhileTheWireIsBusy(t *testing.T) {
	for _, c := range []Config{{}, {Lossless: true, Queue: 1}} {
		synctest.Test(t, func(t *testing.T) {
			n := NewNetwork(c)
			a, b := twoStations(t, n.NewEnd(), n.NewEnd(), NewClock())
			a.say(b, "hello")
			packet := UDPPacket(a.inside, b.inside, make([]byte, 1000))
			done := make(chan error)
			go func() {
				for {
					if err := a.tunnel.Send(t.Context(), packet); err != nil {
						done <- err
						return
					}
				}
			}()
			for b.Received().Data < 5000 {
				for b.tunnel.TryReceive() != nil {
				}
				runtime.Gosched() // in WebAssembly, the scheduler cannot preempt this loop
			}
			b.device.Close()
			a.device.Close()
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Send: %v, want net.ErrClosed", err)
			}
		})
	}
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, start := NewClock(), time.Now()
		time.Sleep(time.Second)
		c.Suspend(time.Hour)
		c.Step(-time.Minute)
		if got := c.Now(); got != time.Hour+time.Second {
			t.Errorf("Now returns %v, want an hour and a second", got)
		}
		if got := c.Wall().Sub(start); got != time.Hour+time.Second-time.Minute {
			t.Errorf("Wall is %v after the start, want an hour and a second minus a minute", got)
		}
	})
}
