//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/wgnet"
)

// TestGatewaySection reads the keys of [Gateway], and checks with its policy what peers may reach.
func TestGatewaySection(t *testing.T) {
	key := wireguard.NewPrivateKey().Public()
	s, err := readSettings(write(t, "x.conf", fmt.Sprintf("[Interface]\nAddress = 10.7.0.1/24\n[Peer]\nPublicKey = %v\nAllowedIPs = 10.8.0.0/16, 0.0.0.0/1\n"+
		"[gateway]\nallow = 192.0.2.1, fd00:1::/64\nAllow = 10.7.0.9/32\nMaxFlows = 5\nBytesPerSecond = 7\n", key)))
	if err != nil {
		t.Fatal(err)
	}
	allow := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("10.7.0.9/32")}
	if s.exit == nil || !slices.Equal(s.exit.allow, allow) || s.exit.limits != (gateway.Limits{Flows: 5, FromPeer: 7, ToPeer: 7}) || len(s.services) != 0 {
		t.Fatalf("[Gateway] was read as %+v, with the services %v; want the values of the file and no service", s.exit, s.services)
	}
	policy := s.exit.policy(s.file)
	for a, want := range map[string]bool{
		"203.0.113.1": true, "fd00:1::5": true, "10.7.0.9": true, "100.64.0.1": true,
		"10.7.0.8": false, "10.8.3.4": false, "127.0.0.1": false, "::1": false,
	} {
		if got := policy(gateway.Request{Network: "tcp", Destination: netip.AddrPortFrom(netip.MustParseAddr(a), 80)}).Allow; got != want {
			t.Errorf("%s: allowed %t, want %t", a, got, want)
		}
	}
	if got := planExit(nil, s.exit); len(got) != 1 || !strings.HasPrefix(got[0], "leave [Gateway] as it is") || planExit(s.exit, s.exit) != nil {
		t.Errorf("the plan for a new [Gateway] is %q, and for the same one %q; want one line that leaves it as it is, and no line", got, planExit(s.exit, s.exit))
	}
	o, _ := parseArgs([]string{write(t, "y.conf", "[Interface]\nPrivateKey = "+wireguard.NewPrivateKey().Text()+"\nAddress = 10.7.0.1\n[Gateway]\n")}, io.Discard)
	if s, err := o.settings(); err != nil || s.exit == nil {
		t.Errorf("a file with only an empty [Gateway]: %v, want no error and an exit", err)
	}
}

// TestGatewayProcess checks that a second device can fetch a page from a web server on the host through a wgproxy process with
// [Gateway] and Allow. The process must refuse the tunnel's addresses, and a second connection beyond MaxFlows. The test then
// raises MaxFlows with a first reload, and removes Allow with a second one.
func TestGatewayProcess(t *testing.T) {
	host := testkit.HostAddr(t)
	l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "from this host") })}
	go web.Serve(l)
	defer web.Close()

	key, clientKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	f, err := conf.Parse(fmt.Appendf(nil, "[Interface]\nPrivateKey = %s\nAddress = 10.7.0.2\n[Peer]\nPublicKey = %v\nAllowedIPs = 0.0.0.0/0\n", clientKey.Text(), key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	client, err := wgnet.OpenFile(t.Context(), f, wgnet.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// The process sends the first initiation to the client, so the client need not know the port of the process.
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = 10.7.0.1/24\n[Peer]\nPublicKey = %v\nAllowedIPs = 10.7.0.2/32\nEndpoint = 127.0.0.1:%d\nPersistentKeepalive = 1\n[Gateway]\n",
		key.Text(), clientKey.Public(), client.Device().Status().ListenPort)
	r := &run{T: t, path: write(t, "gateway.conf", text+fmt.Sprintf("Allow = %v\nMaxFlows = 1\n", host))}
	process := exec.Command(os.Args[0], r.path)
	process.Env, process.Stderr = append(os.Environ(), runMain+"=1"), r
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	defer process.Process.Kill()
	r.waitFor("serving [Gateway]")
	testkit.Eventually(t, "the process sends an initiation to the client", func() bool {
		p, _ := client.Device().Peer(key.Public())
		return p.Endpoint.IsValid()
	})

	tr := &http.Transport{DialContext: client.DialContext, DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: tr, Timeout: testkit.Patience}).Get("http://" + l.Addr().String() + "/")
	if err != nil {
		t.Fatalf("fetch the page through the gateway: %v; wgproxy printed\n%s", err, r.said())
	}
	if b, err := io.ReadAll(answer.Body); string(b) != "from this host" || err != nil {
		t.Errorf("the page is %q, %v, want from this host", b, err)
	}
	answer.Body.Close()
	if _, err := client.Dial("tcp", "10.7.0.3:80"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a connection to an address of the tunnel: %v, want a refusal", err)
	}

	var open []net.Conn
	dial := func() error {
		c, err := client.Dial("tcp", l.Addr().String())
		if err == nil {
			open = append(open, c)
		}
		return err
	}
	testkit.Eventually(t, "the gateway accepts a connection after that of the page has ended", func() bool { return dial() == nil })
	if err := dial(); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a connection beyond MaxFlows: %v, want a refusal", err)
	}
	reload := func(text string) {
		t.Helper()
		r.mu.Lock()
		r.out.Reset()
		r.mu.Unlock()
		if err := os.WriteFile(r.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := process.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		r.waitFor("reloaded " + r.path)
		if want := "plan: change [Gateway]"; !strings.Contains(r.said(), want) {
			t.Errorf("wgproxy did not print %q; it printed\n%s", want, r.said())
		}
	}
	reload(text + fmt.Sprintf("Allow = %v\n", host))
	if err := dial(); err != nil {
		t.Errorf("a second connection after a reload without MaxFlows: %v, want no error", err)
	}
	reload(text)
	if err := dial(); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a connection to the host after a reload without Allow: %v, want a refusal", err)
	}
	for _, c := range open {
		c.Close()
	}
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := process.Wait(); err != nil {
		t.Errorf("wgproxy ended with %v and printed\n%s", err, r.said())
	}
}

// TestGatewayDrain checks that after SIGTERM, wgproxy lets an existing connection through [Gateway] continue until it ends, and
// refuses a new one. It also checks that /metrics and the status page count the connection before SIGTERM.
func TestGatewayDrain(t *testing.T) {
	host := testkit.HostAddr(t)
	l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echo(l)
	o := newOffice(t)
	// The office is the peer of [Gateway]. Its own AllowedIPs for wgproxy are all IPv4 addresses, so all its traffic goes to
	// wgproxy.
	if err := o.Device().SetPeer(wireguard.PeerConfig{PublicKey: o.client.Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}); err != nil {
		t.Fatal(err)
	}
	in := make(sockets)
	status := inheritTCP(t, in)
	text := strings.Replace(o.file(fmt.Sprintf("AllowedIPs = 10.7.0.1/32\n[Gateway]\nAllow = %v\n", host)), "Endpoint", "PersistentKeepalive = 1\nEndpoint", 1)
	r := launch(t, text, in, "-status", status)
	r.waitFor("serving [Gateway]")
	testkit.Eventually(t, "wgproxy establishes a session with the office", func() bool {
		p, _ := o.Device().Peer(o.client.Public())
		return p.Session
	})
	c, err := o.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(testkit.Patience))
	hello := func() {
		t.Helper()
		io.WriteString(c, "hello")
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	hello()
	key := `{public_key="` + o.key.Public().String() + `"} `
	metrics := curl(t, "http://"+status+"/metrics")
	lint(t, metrics)
	for _, want := range []string{
		"wgproxy_gateway_flows" + key + "1\n", "wgproxy_gateway_opened_total" + key + "1\n", "wgproxy_gateway_refused_total" + key + "0\n",
		"wgproxy_gateway_from_peer_bytes_total" + key + "5\n", "wgproxy_gateway_to_peer_bytes_total" + key + "5\n",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s in\n%s", want, metrics)
		}
	}
	var page struct {
		Devices []struct {
			Gateway bool
			Peers   []struct{ Gateway map[string]uint64 }
		}
	}
	testkit.Eventually(t, "the status page counts the connection", func() bool {
		err := json.Unmarshal([]byte(curl(t, "http://"+status+"/status.json")), &page)
		return err == nil && len(page.Devices) == 1 && page.Devices[0].Gateway && len(page.Devices[0].Peers) == 1 &&
			maps.Equal(page.Devices[0].Peers[0].Gateway, map[string]uint64{"flows": 1, "opened": 1, "refused": 0, "failed": 0, "dropped": 0, "pings": 0, "from_peer": 5, "to_peer": 5})
	})
	r.signals <- syscall.SIGTERM
	testkit.Eventually(t, "wgproxy refuses a further connection", func() bool {
		c, err := o.Dial("tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.EHOSTUNREACH)
	})
	hello()
	select {
	case err := <-r.ended:
		t.Fatalf("wgproxy did not wait for the connection: %v", err)
	default:
	}
	c.Close()
	if err := testkit.Next(t, r.ended, "wgproxy ends after the last connection"); err != nil {
		t.Error(err)
	}
}
