package page_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/observe/page"
)

func get(h http.Handler, method, host, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Host = host
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestHost checks that a page of another site can read nothing, even if the site's name resolves to this server's address.
func TestHost(t *testing.T) {
	h := page.New(page.Config{Hosts: []string{"status.example"}})
	guarded := h.Guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for host, want := range map[string]int{
		"127.0.0.1:9090": 200, "127.0.0.1": 200, "[::1]:9090": 200, "[::1]": 200, "192.0.2.1": 200, "localhost": 200, "LOCALHOST:80": 200, "localhost.": 200,
		"x.localhost": 200, "status.example": 200, "Status.Example:443": 200,
		"": 421, "evil.example": 421, "evil.example:9090": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "evillocalhost": 421,
		"x.status.example": 421, "[evil]:1": 421, "127.0.0.1:80:80": 421, ":9090": 421,
	} {
		for _, path := range []string{"/", "/status.json", "/page.js"} {
			if got := get(h, "GET", host, path).Code; got != want {
				t.Errorf("host %q: GET %s has status %d, want %d", host, path, got, want)
			}
		}
		if host == "" {
			want = 200 // Guard lets a request without a host name through
		}
		if got := get(guarded, "GET", host, "/metrics").Code; got != want {
			t.Errorf("host %q: the handler behind Guard has status %d, want %d", host, got, want)
		}
	}
	if got := get(h, "GET", "evil.example", "/events").Code; got != 421 {
		t.Errorf("the stream for a host name that is not allowed has status %d, want 421", got)
	}
}

func FuzzHost(f *testing.F) {
	for _, host := range []string{"127.0.0.1:1", "[::1]", "localhost", "a.example", "[[::1]", "::1", "fe80::1%eth0"} {
		f.Add(host)
	}
	h := page.New(page.Config{Hosts: []string{"good.example"}})
	f.Fuzz(func(t *testing.T, host string) {
		// A name that DNS can resolve has a letter in its last label. Of such names, only those in Config.Hosts may pass.
		name := strings.ToLower(host)
		if i := strings.IndexAny(name, ":[]"); i >= 0 {
			return
		}
		name = strings.TrimSuffix(name, ".")
		last := name[strings.LastIndexByte(name, '.')+1:]
		if !strings.ContainsAny(last, "abcdefghijklmnopqrstuvwxyz") || last == "localhost" || name == "good.example" || strings.Contains(last, "%") {
			return
		}
		if got := get(h, "GET", host, "/").Code; got != 421 {
			t.Errorf("host %q: status %d, want 421", host, got)
		}
	})
}

// TestOtherSites checks that the handler answers only GET and HEAD, that its page loads nothing from other servers, and that
// pages of other sites cannot read it.
func TestOtherSites(t *testing.T) {
	h := page.New(page.Config{})
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
		if got := get(h, method, "localhost", "/status.json").Code; got != 405 {
			t.Errorf("%s has status %d, want 405", method, got)
		}
	}
	for site, want := range map[string]int{"": 200, "none": 200, "same-origin": 200, "same-site": 403, "cross-site": 403} {
		if got := get(h, "GET", "localhost", "/status.json", "Sec-Fetch-Site", site).Code; got != want {
			t.Errorf("Sec-Fetch-Site %q: status %d, want %d", site, got, want)
		}
	}
	if got := get(h, "GET", "localhost", "/", "Sec-Fetch-Site", "cross-site").Code; got != 200 {
		t.Errorf("a link on another site to the page has status %d, want 200", got)
	}
	if got := get(h, "GET", "localhost", "/../key.go").Code; got != 404 {
		t.Errorf("a file that is not part of the page has status %d, want 404", got)
	}
	for _, path := range []string{"/", "/status.json", "/nothing"} {
		header := get(h, "GET", "localhost", path).Header()
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if !strings.HasPrefix(header.Get(name), want) {
				t.Errorf("%s: %s is %q, want %q", path, name, header.Get(name), want)
			}
		}
		if header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s has Access-Control-Allow-Origin, so other sites can read it", path)
		}
	}
	for _, file := range []string{"page.html", "page.css", "page.js"} {
		b, err := os.ReadFile(file)
		if err != nil || len(b) < 1000 || strings.Contains(string(b), "//www") || strings.Contains(string(b), "http") || strings.Contains(string(b), "innerHTML") {
			t.Errorf("%s: %v, %d bytes; want at least 1000 bytes, no link to another server and no use of innerHTML", file, err, len(b))
		}
	}
}

// TestStatus checks that status.json contains what the page shows, with the reasons, and that it contains no private key and no
// preshared key.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		psk := wireguard.NewPresharedKey()
		s := h.add("laptop", func(ours *wireguard.PeerConfig, theirs *wireguard.Config) {
			ours.PresharedKey, theirs.Peers[0].PresharedKey = psk, psk
		})
		h.add("router", func(_ *wireguard.PeerConfig, theirs *wireguard.Config) { theirs.Peers = nil })
		handler := h.handler()
		status := func() (body string, peers map[string]map[string]any) {
			w := get(handler, "GET", "localhost", "/status.json")
			var got struct {
				Devices []struct {
					Name  string
					Key   string
					Up    bool
					Count int
					Peers []map[string]any
				}
			}
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Header().Get("Content-Type") != "application/json" {
				t.Fatalf("status.json: %v, %s; want JSON with its content type", err, w.Body)
			}
			if d := got.Devices[0]; d.Name != "wg0" || d.Key != h.key.String() || !d.Up || d.Count != 2 {
				t.Errorf("status.json shows the device as %+v, want wg0, up, with its key and 2 peers", d)
			}
			peers = make(map[string]map[string]any)
			for _, p := range got.Devices[0].Peers {
				peers[p["name"].(string)] = p
			}
			return w.Body.String(), peers
		}
		for _, to := range h.spokes {
			h.say(to, 100)
		}
		time.Sleep(time.Second)
		h.hear(s, 100)
		time.Sleep(12 * time.Second)
		status()
		time.Sleep(2 * time.Second)
		body, peers := status()
		if p := peers["laptop"]; p["state"] != "connected" || p["key"] != s.key.String() || p["endpoint"] != s.end.Endpoint(51820).String() || p["allowed"] != "10.0.0.2/32" || p["received"].(float64) < 100 {
			t.Errorf("status.json shows the laptop as %v, want it connected, with its key, endpoint, allowed IPs and received bytes", p)
		}
		if p := peers["router"]; p["state"] != "unreachable" || !strings.HasPrefix(p["text"].(string), "No answer to 3 initiations.") {
			t.Errorf("status.json shows the router as %v, want it unreachable after 3 initiations", p)
		}
		for what, secret := range map[string]string{"private": h.device.PrivateKey().Text(), "preshared": psk.Text()} {
			if strings.Contains(body, secret) {
				t.Errorf("status.json contains the %s key", what)
			}
		}
	})
}

// A stream reads server-sent events from the handler as a browser does.
type stream struct {
	t      *testing.T
	body   io.ReadCloser
	lines  *bufio.Scanner
	cancel context.CancelFunc
}

func open(t *testing.T, url string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); a.Body.Close() })
	if kind := a.Header.Get("Content-Type"); a.StatusCode != 200 || kind != "text/event-stream" {
		t.Fatalf("the stream has status %s and type %s, want 200 and text/event-stream", a.Status, kind)
	}
	lines := bufio.NewScanner(a.Body)
	lines.Buffer(nil, 1<<20)
	return &stream{t, a.Body, lines, cancel}
}

// next returns the data of the next event of a kind.
func (s *stream) next(kind string) string {
	s.t.Helper()
	for found := false; s.lines.Scan(); {
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok && found {
			return data
		}
		if name, ok := strings.CutPrefix(s.lines.Text(), "event: "); ok {
			found = name == kind
		}
	}
	s.t.Fatalf("the stream ended before the next message of the kind %s: %v", kind, s.lines.Err())
	return ""
}

// TestStream checks that a stream begins with the whole status and then contains only changes, that events arrive at once, and
// that viewers share one look.
func TestStream(t *testing.T) {
	h := newHub(t)
	a := h.add("laptop", nil)
	h.add("phone", nil)
	server := serve(t, page.New(page.Config{Devices: []page.Device{{Name: "wg0", Device: h.device}}, Name: h.name, Interval: 50 * time.Millisecond}))
	one, two := open(t, server.URL), open(t, server.URL)
	for _, s := range []*stream{one, two} {
		if all := s.next("all"); !strings.Contains(all, "laptop") || !strings.Contains(all, "phone") {
			t.Errorf("the first message is %s, want both peers", all)
		}
	}
	h.say(a, 100)
	if e := one.next("event"); !strings.Contains(e, `"handshake completed"`) && !strings.Contains(e, `"endpoint moved"`) || !strings.Contains(e, a.key.String()) {
		t.Errorf("the event is %s, want a handshake with the laptop or its endpoint", e)
	}
	for changes := ""; !strings.Contains(changes, `"connected"`); {
		if changes = one.next("changes"); strings.Contains(changes, "phone") {
			t.Errorf("the changes contain a peer that has not changed: %s", changes)
		}
	}
	if err := h.device.RemovePeer(a.key); err != nil {
		t.Fatal(err)
	}
	for changes := ""; !strings.Contains(changes, `"gone":["`+a.key.String()); {
		changes = two.next("changes")
	}
	three := open(t, server.URL)
	if all := three.next("all"); strings.Contains(all, a.key.String()) || !strings.Contains(all, "phone") {
		t.Errorf("the first message of a later page is %s, want only the peer that is left", all)
	}
	if e := three.next("event"); !strings.Contains(e, a.key.String()) {
		t.Errorf("a page that is opened later does not get the past events: %s", e)
	}
}

// TestGateway checks that the handler shows the counters of a gateway for each peer, and sends a peer's row again when its
// counters change. Without a gateway, the status must not mention one.
func TestGateway(t *testing.T) {
	h := newHub(t)
	if w := get(h.handler(), "GET", "localhost", "/status.json"); strings.Contains(w.Body.String(), "gateway") {
		t.Errorf("the status mentions a gateway although there is none: %s", w.Body)
	}
	busy := h.add("busy", nil)
	h.add("quiet", nil)
	server := serve(t, h.withGateway())
	h.pass(busy, page.GatewayPeer(gateway.PeerStats{Flows: 2, Opened: 9, Refused: 3, Failed: 1, Dropped: 4, Pings: 5, FromPeer: 1000, ToPeer: 2000}))
	s := open(t, server.URL)
	all := s.next("all")
	for _, want := range []string{`"count":2,"gateway":true`, `"gateway":{"flows":2,"opened":9,"refused":3,"failed":1,"dropped":4,"pings":5,"from_peer":1000,"to_peer":2000}`} {
		if !strings.Contains(all, want) {
			t.Errorf("the first message lacks %s: %s", want, all)
		}
	}
	if n := strings.Count(all, `"gateway":{`); n != 1 {
		t.Errorf("%d peers have counters, want 1: %s", n, all)
	}
	h.pass(busy, page.GatewayPeer{Flows: 3})
	for changes := ""; !strings.Contains(changes, `"gateway":{"flows":3,`); {
		if changes = s.next("changes"); strings.Contains(changes, "quiet") {
			t.Errorf("the changes contain a peer that has not changed: %s", changes)
		}
	}
}

// TestViewers checks that the number of open pages is limited, and that another page can be opened after one is closed. It also
// checks that Close ends the streams and refuses further streams.
func TestViewers(t *testing.T) {
	h := newHub(t)
	handler := page.New(page.Config{Devices: []page.Device{{Device: h.device}}, Viewers: 1})
	server := serve(t, handler)
	one := open(t, server.URL)
	one.next("all")
	if got := get(handler, "GET", "localhost", "/events"); got.Code != 503 || !strings.Contains(got.Body.String(), "too many pages") {
		t.Errorf("the stream of a second page has status %d, %s, want 503 and the limit", got.Code, got.Body)
	}
	one.cancel()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		a, err := http.Get(server.URL + "/events")
		if err != nil {
			t.Fatal(err)
		}
		if a.StatusCode == 200 {
			handler.Close()
			if _, err := io.Copy(io.Discard, a.Body); err != nil {
				t.Errorf("after Close, the stream ended with %v, want no error", err)
			}
			a.Body.Close()
			break
		}
		a.Body.Close()
		if time.Now().After(end) {
			t.Fatal("the handler still refuses a page after the only other page was closed")
		}
	}
	if got := get(handler, "GET", "localhost", "/events"); got.Code != 503 || !strings.Contains(got.Body.String(), "closed") {
		t.Errorf("a stream after Close has status %d, %s, want 503 and the reason", got.Code, got.Body)
	}
	if got := get(handler, "GET", "localhost", "/status.json").Code; got != 200 {
		t.Errorf("status.json after Close has status %d, want 200", got)
	}
}

// BenchmarkLook measures the cost of one look with 1,000 peers and without events. The cost includes making the message for
// all viewers, and in the last case also sending it. In "all changed", each peer had traffic since the previous look. Divide
// the time by the interval, 1 s, to get the share of a core that an open page takes.
func BenchmarkLook(b *testing.B) {
	h := newHub(b)
	for i := range 1000 {
		inside := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32)
		if err := h.device.SetPeer(wireguard.PeerConfig{PublicKey: wireguard.NewPrivateKey().Public(), Endpoint: h.end.Endpoint(51821), AllowedIPs: []netip.Prefix{inside}}); err != nil {
			b.Fatal(err)
		}
	}
	gateway := make(map[wireguard.PublicKey]page.GatewayPeer)
	for p := range h.device.Peers() {
		gateway[p.PublicKey] = page.GatewayPeer{Flows: 10, Opened: 100_000, FromPeer: 1 << 30, ToPeer: 1 << 33}
	}
	shown := page.Device{Name: "wg0", Device: h.device, Gateway: func() map[wireguard.PublicKey]page.GatewayPeer { return maps.Clone(gateway) }}
	for _, name := range []string{"idle", "all changed", "all changed, with a gateway"} {
		look := page.Looker(h.handler())
		if strings.Contains(name, "gateway") {
			look = page.Looker(page.New(page.Config{Devices: []page.Device{shown}, Name: h.name}))
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.SetBytes(int64(look(name != "idle")))
			}
		})
	}
	// The processor time includes that of the client, which reads the stream over a loopback socket.
	b.Run("all changed, with a gateway, sent to a page", func(b *testing.B) {
		handler := page.New(page.Config{Devices: []page.Device{shown}, Name: h.name, Interval: time.Hour})
		a, err := http.Get(serve(b, handler).URL + "/events")
		if err != nil {
			b.Fatal(err)
		}
		defer a.Body.Close()
		body := bufio.NewReader(a.Body)
		for line := ""; !strings.HasPrefix(line, "data: "); { // the first message
			if line, err = body.ReadString('\n'); err != nil {
				b.Fatal(err)
			}
		}
		_, _ = body.ReadString('\n')
		send := page.Sender(handler)
		for b.Loop() {
			n := send()
			b.SetBytes(int64(n))
			if _, err := io.CopyN(io.Discard, body, int64(n)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
