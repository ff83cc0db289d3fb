package prom_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe/prom"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

var inside = netip.MustParsePrefix("10.0.0.2/32")

// pair returns a device that has sent one packet over a session with its peer, and has refused one packet.
func pair(t *testing.T) (*wireguard.Device, wireguard.PeerStatus) {
	n := pipe.NewNetwork(pipe.Config{Seed: 1})
	endA, endB := n.NewEnd(), n.NewEnd()
	tunA, tunB := pipe.NewTunnel(1420), pipe.NewTunnel(1420)
	a, b := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	up := func(c wireguard.Config) *wireguard.Device {
		c.Clock = pipe.NewClock()
		d, err := wireguard.New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	up(wireguard.Config{PrivateKey: b, Bind: endB, Tunnel: tunB, ListenPort: 51820, Peers: []wireguard.PeerConfig{{PublicKey: a.Public()}}})
	da := up(wireguard.Config{PrivateKey: a, Bind: endA, Tunnel: tunA, Peers: []wireguard.PeerConfig{{
		PublicKey: b.Public(), Endpoint: endB.Endpoint(51820), AllowedIPs: []netip.Prefix{inside},
	}}})
	for _, dst := range []netip.Addr{inside.Addr(), netip.MustParseAddr("10.9.9.9")} {
		tunA.TrySend(pipe.UDPPacket(netip.MustParseAddrPort("10.0.0.1:7"), netip.AddrPortFrom(dst, 7), []byte("hello")))
		synctest.Wait()
	}
	p, ok := da.Peer(b.Public())
	if !ok || !p.Session {
		t.Fatalf("the device has no session with the peer: %+v", p)
	}
	return da, p
}

// scrape returns the series of the collectors cs, one per line. It fails the test if Prometheus's own linter rejects a name.
func scrape(t *testing.T, cs ...prometheus.Collector) (lines []string) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for _, c := range cs {
		registry.MustRegister(c)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) != 0 {
		t.Errorf("promlint finds the problems %v, %v, want none", problems, err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			lines = append(lines, fmt.Sprintf("%s{%s} %.0f", f.GetName(), strings.Join(labels, ","), m.GetCounter().GetValue()+m.GetGauge().GetValue()))
		}
	}
	return lines
}

func TestCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := pair(t)
		lines := scrape(t, prom.New(d, prom.Config{Interface: "wg0"}))
		of := fmt.Sprintf(`{interface="wg0",public_key=%q}`, p.PublicKey.String())
		for _, want := range []string{
			fmt.Sprintf("wireguard_sent_bytes_total%s %d", of, p.Sent.Bytes),
			fmt.Sprintf("wireguard_received_bytes_total%s %d", of, p.Received.Bytes),
			fmt.Sprintf("wireguard_latest_handshake_seconds%s %d", of, p.LastHandshake.Unix()),
			"wireguard_sent_packets_total" + of + " 1",
			"wireguard_session" + of + " 1",
			`wireguard_up{interface="wg0"} 1`,
			`wireguard_peers{interface="wg0"} 1`,
			`wireguard_drops_total{interface="wg0",reason="no route"} 1`,
			`wireguard_drops_total{interface="wg0",reason="replayed"} 0`,
		} {
			if !slices.Contains(lines, want) {
				t.Errorf("the scrape has no %s:\n%s", want, strings.Join(lines, "\n"))
			}
		}
	})
}

// TestCollectorOptions checks that the endpoint is a label only if Config.Endpoint is set, and that peers are left out if
// Config.DeviceOnly is set.
func TestCollectorOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := pair(t)
		label := fmt.Sprintf("endpoint=%q", p.Endpoint.String())
		of := func(c prom.Config) string { return strings.Join(scrape(t, prom.New(d, c)), "\n") }
		if text := of(prom.Config{}); strings.Contains(text, "endpoint=") || strings.Contains(text, "interface=") {
			t.Errorf("the scrape has labels that no option asked for:\n%s", text)
		}
		if text := of(prom.Config{Endpoint: true}); !strings.Contains(text, label) {
			t.Errorf("the scrape has no %s:\n%s", label, text)
		}
		if text := of(prom.Config{DeviceOnly: true}); strings.Contains(text, "public_key") || !strings.Contains(text, "wireguard_up") {
			t.Errorf("with DeviceOnly, the scrape has series of peers, or none of the device:\n%s", text)
		}
	})
}

// TestCollectorsOfOneRegistry checks that one registry accepts several devices if their interfaces have different names.
func TestCollectorsOfOneRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := pair(t)
		e, _ := pair(t)
		lines := scrape(t, prom.New(d, prom.Config{Interface: "wg0"}), prom.New(e, prom.Config{Interface: "wg1"}))
		for _, name := range []string{"wg0", "wg1"} {
			if want := fmt.Sprintf("wireguard_up{interface=%q} 1", name); !slices.Contains(lines, want) {
				t.Errorf("the scrape has no %s", want)
			}
		}
	})
}

// TestCollectorWithNamesThatAreNotUTF8 checks that a Link whose name is not UTF-8 does not break the scrape. The program chooses
// the names of its Links.
func TestCollectorWithNamesThatAreNotUTF8(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := wireguard.NewPrivateKey().Public()
		d, err := wireguard.New(wireguard.Config{
			Bind: pipe.NewNetwork(pipe.Config{}).NewEnd(), Tunnel: pipe.NewTunnel(1420),
			Peers: []wireguard.PeerConfig{{PublicKey: key, Endpoint: wireguard.Endpoint{Link: link{}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if text := strings.Join(scrape(t, prom.New(d, prom.Config{Interface: "\xff", Endpoint: true})), "\n"); !strings.Contains(text, `endpoint="relay ?"`) {
			t.Errorf("the scrape has no endpoint label with the name of the Link:\n%s", text)
		}
	})
}

type link struct{}

func (link) Key() [16]byte  { return [16]byte{1} }
func (link) String() string { return "relay \xff" }
