package wireguard_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// These tests call Close in every state of a device, in real time, with UDP sockets and with an in-memory network. Close must
// return within closeWait. Every call that waits must then fail with net.ErrClosed, and no goroutine and no socket may be left.

const closeWait = 5 * time.Second // the time limit of calls that take milliseconds

// A ground is a kind of network on which these tests run. Its function bind makes a Bind for each device, as if each device had
// its own machine.
type ground struct {
	name string
	bind func() (b wireguard.Bind, at func(port uint16) wireguard.Endpoint)
}

func onLoopback(b *udp.Bind) (wireguard.Bind, func(uint16) wireguard.Endpoint) {
	b.Address = netip.MustParseAddr("127.0.0.1")
	return b, func(port uint16) wireguard.Endpoint {
		return wireguard.EndpointOf(netip.AddrPortFrom(b.Address, port))
	}
}

func grounds() []ground {
	network := pipe.NewNetwork(pipe.Config{})
	return []ground{
		{"udp", func() (wireguard.Bind, func(uint16) wireguard.Endpoint) { return onLoopback(&udp.Bind{Receivers: 1}) }},
		{"udp, portable", func() (wireguard.Bind, func(uint16) wireguard.Endpoint) {
			return onLoopback(&udp.Bind{Portable: true, Receivers: 1})
		}},
		{"pipe", func() (wireguard.Bind, func(uint16) wireguard.Endpoint) {
			e := network.NewEnd()
			return e, e.Endpoint
		}},
	}
}

// A closing is a device that is about to be closed, its peer (other), and the goroutines that use the two devices.
type closing struct {
	*testing.T
	*wireguard.Device
	ground  ground
	tun     *pipe.Tunnel
	key     wireguard.PrivateKey
	at      func(port uint16) wireguard.Endpoint
	other   *wireguard.Device
	otherAt wireguard.Endpoint
	busy    sync.WaitGroup
	ended   atomic.Bool // set before Close; calls may fail only after that
	cleanup []func()
}

var otherKey = wireguard.PrivateKey{0: 8, 31: 64}

func newClosing(t *testing.T, g ground, lookup func(context.Context, wireguard.PublicKey) (wireguard.PeerConfig, error)) *closing {
	c := &closing{T: t, ground: g, key: wireguard.NewPrivateKey(), tun: pipe.NewTunnel(0)}
	bind, at := g.bind()
	c.at = at
	otherBind, otherAt := g.bind()
	otherTun := pipe.NewTunnel(0)
	other, err := wireguard.New(wireguard.Config{PrivateKey: otherKey, Tunnel: otherTun, Bind: otherBind, Peers: []wireguard.PeerConfig{
		{PublicKey: c.key.Public(), AllowedIPs: prefixes(ourAddrs)},
	}})
	if err == nil {
		err = other.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	c.other, c.otherAt = other, otherAt(other.Status().ListenPort)
	c.cleanup = append(c.cleanup, func() { other.Close() })
	config := wireguard.Config{PrivateKey: c.key, Tunnel: c.tun, Bind: bind, Lookup: lookup}
	if lookup == nil {
		config.Peers = []wireguard.PeerConfig{{PublicKey: otherKey.Public(), Endpoint: c.otherAt, AllowedIPs: prefixes(theirAddrs)}}
	}
	if c.Device, err = wireguard.New(config); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *closing) up() {
	c.Helper()
	if err := c.Up(); err != nil {
		c.Fatal(err)
	}
}

func (c *closing) connect() {
	c.Helper()
	c.up()
	ctx, cancel := context.WithTimeout(c.Context(), closeWait)
	defer cancel()
	if err := c.Handshake(ctx, otherKey.Public()); err != nil {
		c.Fatal(err)
	}
}

// repeats calls f again and again on a new goroutine until f fails. The function f may fail only once the device is being closed,
// and only with net.ErrClosed.
func (c *closing) repeats(what string, f func() error) {
	c.busy.Go(func() {
		for {
			ended := c.ended.Load()
			if err := f(); err != nil {
				if !ended && !c.ended.Load() || !errors.Is(err, net.ErrClosed) {
					c.Errorf("%s returned %v, want no error before Close and net.ErrClosed after it", what, err)
				}
				return
			}
		}
	})
}

// untilDone calls f again and again on a new goroutine until the device has ended, and then once more.
func (c *closing) untilDone(f func()) {
	c.busy.Go(func() {
		for more := true; more; {
			select {
			case <-c.Done():
				more = false
			default:
			}
			f()
		}
	})
}

// silent opens a socket that never answers. It returns the socket and its endpoint.
func (c *closing) silent() (wireguard.Socket, wireguard.Endpoint) {
	bind, at := c.ground.bind()
	s, err := bind.Listen(0)
	if err != nil {
		c.Fatal(err)
	}
	c.cleanup = append(c.cleanup, func() { s.Close() })
	return s, at(s.Port())
}

// redirect sets the peer's endpoint to a socket that never answers.
func (c *closing) redirect() wireguard.Socket {
	c.Helper()
	s, at := c.silent()
	if err := c.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: otherKey.Public(), Endpoint: &at}}}); err != nil {
		c.Fatal(err)
	}
	return s
}

func packetTo(dst netip.Addr, size int) []byte {
	src := ourAddrs[0]
	if dst == src {
		src = theirAddrs[0]
	}
	return pipe.UDPPacket(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, 2), make([]byte, size))
}

// sends keeps sending batches on a device until the device is closed.
func (c *closing) sends(d *wireguard.Device, dst netip.Addr) {
	b, p := d.NewBatch(), packetTo(dst, 1000)
	c.repeats("Send", func() error {
		for b.Append(p) {
		}
		return d.Send(b)
	})
}

// moving keeps calling the methods that change the device's state: Down, Up, Wake and Configure.
func (c *closing) moving() {
	c.untilDone(func() { c.Down() })
	c.repeats("Up", c.Up)
	c.untilDone(func() { c.Wake() })
	port, flip := c.Status().ListenPort, false
	c.repeats("Configure", func() error {
		var p uint16
		if flip = !flip; flip {
			p = port
		}
		err := c.Configure(wireguard.Change{ListenPort: &p})
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return nil // another socket of this process has the port
		}
		return err
	})
}

// closingStates are the states in which the tests call Close. The function enter brings a device into the state. The goroutines
// that it starts end when the device is closed.
var closingStates = []struct {
	name   string
	lookup bool
	enter  func(c *closing)
}{
	{"new", false, func(c *closing) {}},
	{"up, idle", false, (*closing).up},
	{"down again", false, func(c *closing) { c.connect(); c.Down() }},
	{"a session", false, (*closing).connect},
	{"amid a handshake", false, func(c *closing) {
		c.up()
		c.redirect()
		c.repeats("Handshake", func() error { return c.Handshake(context.Background(), otherKey.Public()) })
		c.repeats("Tunnel.Send", func() error { return c.tun.Send(context.Background(), packetTo(theirAddrs[0], 100)) })
		testkit.Eventually(c, "a handshake is in progress, and packets are staged", func() bool {
			s, _ := c.Peer(otherKey.Public())
			return s.Initiating && s.Staged > 0 && wireguard.Waiters(c.Device) > 0
		})
	}},
	{"bulk both ways", false, func(c *closing) {
		c.connect()
		for range 2 {
			c.sends(c.Device, theirAddrs[0])
			c.sends(c.other, ourAddrs[0])
		}
		c.repeats("Tunnel.Send", func() error { return c.tun.Send(context.Background(), packetTo(theirAddrs[0], 1000)) })
		c.repeats("Tunnel.Receive", func() error { _, err := c.tun.Receive(context.Background()); return err })
		testkit.Eventually(c, "more than 1000 packets arrive in each direction", func() bool {
			s, _ := c.Peer(otherKey.Public())
			return s.Received.Packets > 1000 && s.Sent.Packets > 1000
		})
	}},
	{"a flood of handshakes", false, func(c *closing) {
		c.up()
		at := c.at(c.Status().ListenPort)
		initiation := c.recorded()
		s, _ := c.silent()
		train := wireguard.Train{Size: len(initiation), Data: bytes.Repeat(initiation, 40)}
		c.untilDone(func() {
			train.Err, train.Endpoint = nil, at
			s.Send([]wireguard.Train{train})
		})
		testkit.Eventually(c, "the device drops more than 100 initiations", func() bool {
			drops := c.Status().Drops
			return drops[wireguard.DropOldTimestamp]+drops[wireguard.DropCookieRequired] > 100
		})
	}},
	{"a lookup that waits", true, func(c *closing) {
		c.up()
		c.otherInitiates()
		testkit.Eventually(c, "Lookup was called", func() bool { return lookups.Load() > 0 })
	}},
	{"amid Configure, Down, Up and Wake", false, func(c *closing) {
		c.connect()
		c.moving()
		time.Sleep(5 * time.Millisecond) // Close then interrupts each of the calls at a random point
	}},
	{"all of that and bulk", false, func(c *closing) {
		c.connect()
		b, p := c.NewBatch(), packetTo(theirAddrs[0], 1000)
		c.untilDone(func() { b.Append(p); c.Send(b) })
		c.sends(c.other, ourAddrs[0])
		c.untilDone(func() { c.tun.TryReceive(); c.Status() })
		events := c.Subscribe()
		c.busy.Go(func() {
			for range events.Events(context.Background()) { // ends when Close ends the subscription
			}
		})
		c.moving()
		time.Sleep(5 * time.Millisecond)
	}},
}

var lookups atomic.Int64

// otherInitiates makes the peer begin a handshake with the device.
func (c *closing) otherInitiates() {
	c.Helper()
	at := c.at(c.Status().ListenPort)
	err := c.other.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: c.key.Public(), Endpoint: &at}}})
	if err == nil {
		b := c.other.NewBatch()
		b.Append(packetTo(ourAddrs[0], 10))
		err = c.other.Send(b)
	}
	if err != nil {
		c.Fatal(err)
	}
}

// recorded returns an initiation that the peer made and that the device has already accepted. Its mac1 is valid, and its
// timestamp is now old.
func (c *closing) recorded() []byte {
	c.Helper()
	s, at := c.silent()
	err := c.other.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: c.key.Public(), Endpoint: &at}}})
	if err != nil {
		c.Fatal(err)
	}
	b := c.other.NewBatch()
	b.Append(packetTo(ourAddrs[0], 10))
	if err := c.other.Send(b); err != nil {
		c.Fatal(err)
	}
	for r := s.Receivers()[0]; ; {
		ts, err := r.Receive()
		if err != nil {
			c.Fatal(err)
		}
		if m := bytes.Clone(ts[0].Data); pipe.TypeOf(m) == pipe.TypeInitiation {
			s.Send([]wireguard.Train{{Data: m, Size: len(m), Endpoint: c.at(c.Status().ListenPort)}})
			testkit.Eventually(c, "the initiation is answered", func() bool {
				s, _ := c.Peer(otherKey.Public())
				return s.Timestamp != wireguard.Timestamp{}
			})
			return m
		}
	}
}

// wantClosed fails unless each method of the device behaves as its comment says for a closed device.
func (c *closing) wantClosed() {
	c.Helper()
	b := c.NewBatch()
	b.Append(packetTo(theirAddrs[0], 10))
	for what, err := range map[string]error{
		"Up": c.Up(), "Send": c.Send(b), "Configure": c.Configure(wireguard.Change{}),
		"SetPeer":     c.SetPeer(wireguard.PeerConfig{PublicKey: c.key.Public()}),
		"Tunnel.Send": c.tun.Send(context.Background(), packetTo(theirAddrs[0], 10)),
	} {
		if !errors.Is(err, net.ErrClosed) {
			c.Errorf("%s after Close: %v, want net.ErrClosed", what, err)
		}
	}
	if _, known := c.Peer(otherKey.Public()); known {
		if err := c.Handshake(context.Background(), otherKey.Public()); !errors.Is(err, net.ErrClosed) {
			c.Errorf("Handshake after Close: %v, want net.ErrClosed", err)
		}
	}
	c.Down()
	if err := errors.Join(c.Wake(), c.Close(), c.Err()); err != nil {
		c.Errorf("Wake, Close or Err after Close returned %v, want no error", err)
	}
	events := c.Subscribe()
	if e, err := events.Next(context.Background()); !errors.Is(err, net.ErrClosed) {
		c.Errorf("Next after Close: %+v, %v, want net.ErrClosed", e, err)
	}
	events.Close()
	if c.Status().Up {
		c.Error("after Close, Status says that the device is up")
	}
}

// descriptors returns the number of this process's open files, or 0 on a system that has no /proc/self/fd.
func descriptors() int {
	all, _ := os.ReadDir("/proc/self/fd")
	return len(all)
}

func TestCloseFromEveryState(t *testing.T) {
	testkit.NeedsThreads(t, "the test closes a device while other goroutines send in a loop")
	for _, g := range grounds() {
		for _, state := range closingStates {
			for _, closers := range []int{1, 8} {
				t.Run(fmt.Sprintf("%s/%s/%d", g.name, state.name, closers), func(t *testing.T) {
					if s, err := net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
						s.Close() // when a process opens its first socket, the runtime also opens other descriptors
					}
					ignore, files := goleak.IgnoreCurrent(), descriptors()
					var lookup func(context.Context, wireguard.PublicKey) (wireguard.PeerConfig, error)
					if lookups.Store(0); state.lookup {
						lookup = func(ctx context.Context, _ wireguard.PublicKey) (wireguard.PeerConfig, error) {
							lookups.Add(1)
							<-ctx.Done()
							return wireguard.PeerConfig{}, ctx.Err()
						}
					}
					c := newClosing(t, g, lookup)
					state.enter(c)
					c.ended.Store(true)
					testkit.Returns(c, closeWait, "Close", func() {
						var all sync.WaitGroup
						for range closers {
							all.Go(func() {
								if err := c.Close(); err != nil {
									t.Errorf("Close: %v", err)
								}
								select {
								case <-c.Done():
								default:
									t.Error("Close returned before the device had ended")
								}
							})
						}
						all.Wait()
					})
					c.wantClosed()
					for _, f := range c.cleanup {
						testkit.Returns(c, closeWait, "Close of the peer or of a socket", f)
					}
					testkit.Returns(c, closeWait, "the wait for the test's goroutines", c.busy.Wait)
					if err := goleak.Find(ignore); err != nil {
						t.Error(err)
					}
					if now := descriptors(); now > files {
						t.Errorf("%d files are open after Close, but only %d were open before", now, files)
					}
				})
			}
		}
	}
}
