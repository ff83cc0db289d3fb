package page_test

import (
	"fmt"
	"maps"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe/page"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A hub is a device with peers. Some of the peers are devices on the same wire.
type hub struct {
	t       testing.TB
	network *pipe.Network
	clock   *pipe.Clock
	device  *wireguard.Device
	end     *pipe.End
	tunnel  *pipe.Tunnel
	key     wireguard.PublicKey
	mu      sync.Mutex // guards names and gateway
	names   map[wireguard.PublicKey]string
	gateway map[wireguard.PublicKey]page.GatewayPeer
	spokes  []*spoke
}

type spoke struct {
	device *wireguard.Device
	end    *pipe.End
	tunnel *pipe.Tunnel
	inside netip.Addr
	key    wireguard.PublicKey
}

func newHub(t testing.TB) *hub {
	h := &hub{t: t, network: pipe.NewNetwork(pipe.Config{Seed: 1}), clock: pipe.NewClock(), names: make(map[wireguard.PublicKey]string)}
	h.network.SetConditions(pipe.Conditions{Delay: 5 * time.Millisecond})
	key := wireguard.NewPrivateKey()
	h.key, h.end, h.tunnel = key.Public(), h.network.NewEnd(), pipe.NewTunnel(1420)
	h.device = h.up(wireguard.Config{PrivateKey: key, Bind: h.end, Tunnel: h.tunnel, ListenPort: 51820, Clock: h.clock})
	return h
}

func (h *hub) up(c wireguard.Config) *wireguard.Device {
	h.t.Helper()
	d, err := wireguard.New(c)
	if err == nil {
		h.t.Cleanup(func() { d.Close() })
		err = d.Up()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// add adds a peer to the hub, and makes a device that has the hub as its peer. If change is not nil, change can alter both
// configurations before add uses them.
func (h *hub) add(name string, change func(ours *wireguard.PeerConfig, theirs *wireguard.Config)) *spoke {
	h.t.Helper()
	n := len(h.spokes) + 2
	key := wireguard.NewPrivateKey()
	s := &spoke{end: h.network.NewEnd(), tunnel: pipe.NewTunnel(1420), inside: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), key: key.Public()}
	ours := wireguard.PeerConfig{PublicKey: key.Public(), Endpoint: s.end.Endpoint(51820), AllowedIPs: []netip.Prefix{netip.PrefixFrom(s.inside, 32)}}
	theirs := wireguard.Config{PrivateKey: key, Bind: s.end, Tunnel: s.tunnel, ListenPort: 51820, Clock: h.clock, Peers: []wireguard.PeerConfig{{
		PublicKey: h.key, Endpoint: h.end.Endpoint(51820), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
	}}}
	if change != nil {
		change(&ours, &theirs)
	}
	s.device = h.up(theirs)
	if err := h.device.SetPeer(ours); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.names[s.key] = name
	h.mu.Unlock()
	h.spokes = append(h.spokes, s)
	return s
}

func (h *hub) name(key wireguard.PublicKey) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.names[key]
}

// say sends a packet with size bytes of payload from the hub to s. hear sends such a packet from s to the hub.
func (h *hub) say(s *spoke, size int) { h.send(h.tunnel, hubInside, s.inside, size) }
func (h *hub) hear(s *spoke, size int) {
	h.send(s.tunnel, s.inside, hubInside, size)
}

var hubInside = netip.MustParseAddr("10.0.0.1")

func (h *hub) send(from *pipe.Tunnel, src, dst netip.Addr, size int) {
	from.TrySend(pipe.UDPPacket(netip.AddrPortFrom(src, 7), netip.AddrPortFrom(dst, 7), make([]byte, size)))
}

// drain reads what has arrived in the tunnels, as programs do.
func (h *hub) drain() {
	for h.tunnel.TryReceive() != nil {
	}
	for _, s := range h.spokes {
		for s.tunnel.TryReceive() != nil {
		}
	}
}

func (h *hub) handler() *page.Handler {
	return page.New(page.Config{Devices: []page.Device{{Name: "wg0", Device: h.device}}, Name: h.name})
}

// populate gives the hub peers in every state.
func populate(h *hub) {
	h.add("laptop", nil)
	h.add("office gateway", nil)
	h.add("", nil)
	h.add("phone", func(ours *wireguard.PeerConfig, _ *wireguard.Config) { ours.Endpoint = wireguard.Endpoint{} })
	h.add("old router", func(_ *wireguard.PeerConfig, theirs *wireguard.Config) { theirs.Peers = nil })
	h.add("backup site", func(ours *wireguard.PeerConfig, _ *wireguard.Config) { ours.PresharedKey = wireguard.NewPresharedKey() })
	h.add("camera <b>&amp;", func(ours *wireguard.PeerConfig, _ *wireguard.Config) {
		for i := range 4 {
			ours.AllowedIPs = append(ours.AllowedIPs, netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", i)))
		}
	})
	h.add("sensor", nil)
}

// withGateway returns a handler for the hub with a gateway. The method pass sets the gateway's counters.
func (h *hub) withGateway() *page.Handler {
	h.gateway = make(map[wireguard.PublicKey]page.GatewayPeer)
	return page.New(page.Config{Interval: 50 * time.Millisecond, Name: h.name, Devices: []page.Device{{Name: "wg0", Device: h.device, Gateway: func() map[wireguard.PublicKey]page.GatewayPeer {
		h.mu.Lock()
		defer h.mu.Unlock()
		return maps.Clone(h.gateway)
	}}}})
}

// pass sets the counters of a peer at the gateway.
func (h *hub) pass(s *spoke, counters page.GatewayPeer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gateway[s.key] = counters
}

// traffic sends packets to and from the peers that populate has added, in real time, until the test ends.
func traffic(h *hub) {
	stop := make(chan struct{})
	done := make(chan struct{})
	h.t.Cleanup(func() { close(stop); <-done })
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			for j, s := range h.spokes {
				switch {
				case j == 3, j == 7:
				case j == 6:
					h.send(s.tunnel, netip.MustParseAddr("10.9.9.9"), hubInside, 100)
					h.say(s, 10)
				case j >= 4 && j < 7:
					h.say(s, 10)
				default:
					for range 1 + (i/10+j*3)%7 {
						h.say(s, 1200)
						h.hear(s, 300*(j+1))
					}
				}
			}
			h.drain()
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
}

// serve serves a handler until the test ends.
func serve(t testing.TB, h *page.Handler) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		h.Close() // otherwise the server's Close would wait for the streams
		s.CloseClientConnections()
		s.Close()
	})
	return s
}
