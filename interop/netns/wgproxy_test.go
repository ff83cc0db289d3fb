//go:build linux

package netns

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/netlab"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// serveSize runs a web server on the host. The server answers a request with the client's address and the size of the request's
// body, and pads the answer to the size that the query of the URL states.
func (h *host) serveSize(at string) {
	h.t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		head := fmt.Sprintf("%s sent %d ", from, n)
		size := 0
		fmt.Sscan(r.URL.RawQuery, &size)
		_, _ = io.WriteString(w, head)
		_, _ = w.Write(bytes.Repeat([]byte("x"), max(0, size-len(head))))
	})}
	go s.Serve(l)
	h.t.Cleanup(func() { s.Close() })
}

// TestWgproxy connects a wgproxy process on a with wireguard-go's daemon on b. On a, curl reaches b's web server through wgproxy's
// SOCKS5 server, its HTTP proxy and a forwarded port, with large bodies in both directions. Through the tunnel, b reaches a service
// on a's loopback by a forwarded port, and another address, which the section [Gateway] allows. The test builds programs, so it
// does not run in parallel with others.
//
//	a  curl ─ wgproxy ─ udp ─ v0 192.0.2.1 ─── v0 192.0.2.2 ─ udp ─ wireguard-go ─ TUN ─ web server  b
func TestWgproxy(t *testing.T) {
	a, b := newHost(t), newHost(t)
	if missing := netlab.Missing("curl"); missing != "" {
		t.Skip(missing)
	}
	dir := t.TempDir()
	wgproxy, theirs := filepath.Join(dir, "wgproxy"), filepath.Join(dir, "wireguard-go")
	for program, source := range map[string]string{wgproxy: "github.com/seed-86b749af/wireguard/cmd/wgproxy", theirs: "golang.zx2c4.com/wireguard"} {
		if err := netlab.Build("../..", source, program); err != nil {
			t.Fatal(err)
		}
	}
	a.cable("v0", outerA, b, "v0", outerB)

	// On b, start wireguard-go and a web server.
	key, keyB := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	name := fmt.Sprintf("wg%d", serial.Add(1))
	d, err := b.StartDaemon(theirs, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Kill)
	b.feed(keyB.Text(), "wg set %s private-key /dev/stdin listen-port %d peer %v allowed-ips %v,%v,203.0.113.0/24", name, defaultPort, key.Public(), innerA4, innerA6)
	b.addresses(name, innerB)
	b.run("ip link set up dev %s", name)
	b.run("ip route add 203.0.113.0/24 dev %s", name)
	b.serveSize(":80")

	// On a, start wgproxy and two web servers: one on loopback, and one at an address that b reaches through the gateway.
	a.addresses("lo", "203.0.113.1/32")
	a.serveSize("127.0.0.1:8000")
	a.serveSize("203.0.113.1:8000")
	file := filepath.Join(dir, "office.conf")
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = %s\n[Peer]\nPublicKey = %v\nEndpoint = %v:%d\nAllowedIPs = %v/32, %v/128\nPersistentKeepalive = 1\n[Gateway]\nAllow = 203.0.113.1\n",
		key.Text(), strings.ReplaceAll(innerA, " ", ", "), keyB.Public(), outerB4, defaultPort, innerB4, innerB6)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	p, err := a.Start(&log, nil, wgproxy, file, "-socks", "127.0.0.1:1080", "-http", "127.0.0.1:8080", "-L", fmt.Sprintf("8081=%v:80", innerB4), "-R", "2222=127.0.0.1:8000", "-status", "127.0.0.1:9090")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("wgproxy said\n%s\nwireguard-go said\n%s", log.String(), d.Log())
		}
	})
	testkit.Eventually(t, "wgproxy is ready, and wireguard-go knows its endpoint", func() bool {
		out, err := a.Run("curl -sS http://127.0.0.1:9090/metrics")
		return err == nil && strings.Contains(out, "wireguard_session{") && strings.Contains(out, `"} 1`) && strings.Contains(b.run("wg show %s endpoints", name), "192.0.2.1:")
	})

	const size = 4 << 20
	body := filepath.Join(dir, "body")
	if err := os.WriteFile(body, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{
		fmt.Sprintf("-x socks5h://127.0.0.1:1080 http://%v/", innerB4), fmt.Sprintf("-g -x socks5h://127.0.0.1:1080 http://[%v]/", innerB6),
		fmt.Sprintf("-x http://127.0.0.1:8080 http://%v/", innerB4), fmt.Sprintf("-p -x http://127.0.0.1:8080 http://%v/", innerB4), "http://127.0.0.1:8081/",
	} {
		from := innerA4.String()
		if strings.Contains(how, "[") {
			from = innerA6.String()
		}
		out := a.run("curl -sS --max-time 60 --data-binary @%s %s?%d", body, how, size)
		if want := fmt.Sprintf("%s sent %d ", from, size); !strings.HasPrefix(out, want) || len(out) != size {
			t.Errorf("curl %s prints %.60q and %d bytes in all, want %q at the beginning and %d bytes", how, out, len(out), want, size)
		}
	}
	for _, c := range []struct{ at, from string }{{innerA4.String() + ":2222", "127.0.0.1"}, {"203.0.113.1:8000", "203.0.113.1"}} {
		out := b.run("curl -sS --max-time 60 --data-binary @%s http://%s/?%d", body, c.at, size)
		if want := fmt.Sprintf("%s sent %d ", c.from, size); !strings.HasPrefix(out, want) || len(out) != size {
			t.Errorf("from b, curl %s prints %.60q and %d bytes in all, want %q at the beginning and %d bytes", c.at, out, len(out), want, size)
		}
	}
	p.Signal(os.Interrupt)
	if err := p.Wait(); err != nil {
		t.Errorf("wgproxy ended with %v, want no error", err)
	}
}
