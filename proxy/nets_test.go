package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/proxy"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"golang.org/x/net/dns/dnsmessage"
)

var office, server = netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")

// tunnel returns two Nets with a device each, a (office) and b (server). The server's Net has a web server, and a name server
// that knows intranet.example.
//
//	host ── proxy ── office ══ pipe ══ server: DNS, web
func tunnel(t *testing.T) (a, b *netstack.Net) {
	t.Helper()
	wire := pipe.NewNetwork(pipe.Config{Lossless: true})
	side := func(addr netip.Addr) (*netstack.Net, devices.Side) {
		n, err := netstack.New(netstack.Config{Addresses: []netip.Addr{addr}, DNS: []netip.Addr{server}})
		if err != nil {
			t.Fatal(err)
		}
		end := wire.NewEnd()
		return n, devices.Side{Tunnel: n, Bind: end, At: end.Endpoint, Inside: []netip.Prefix{netip.PrefixFrom(addr, 32)}}
	}
	a, sideA := side(office)
	b, sideB := side(server)
	devices.Pair(t, sideA, sideB)
	names, err := b.ListenPacket("udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	go answerNames(names)
	l, err := b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from ", r.Host) })}
	go func() { _ = web.Serve(l) }()
	t.Cleanup(func() { web.Close(); names.Close() })
	return a, b
}

// answerNames runs a name server that answers each question with the server's address.
func answerNames(c net.PacketConn) {
	for b := make([]byte, 1500); ; {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Header.Response, m.Additionals = true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: server.As4()}}}
		}
		if a, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(a, from)
		}
	}
}

// start runs a server until the test ends.
func start(t *testing.T, s *proxy.Server, l net.Listener, err error) (addr string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-ended })
	return l.Addr().String()
}

// TestTunnel runs proxies over a tunnel. It checks that HTTP clients reach a web server in the tunnel through SOCKS and through
// an HTTP proxy, by a name that only the tunnel's name server knows. SOCKS datagrams and a UDP forward must reach that name
// server. Forwards in the other direction must publish a TCP and a UDP service of the host in the tunnel.
func TestTunnel(t *testing.T) {
	a, b := tunnel(t)
	host := func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	l, err := host()
	socks := start(t, &proxy.Server{Protocol: proxy.SOCKS5{}, DialContext: a.DialContext, ListenPacket: a.ListenPacket}, l, err)
	l, err = host()
	web := start(t, &proxy.Server{Protocol: proxy.HTTP{}, DialContext: a.DialContext}, l, err)
	for _, p := range []url.URL{{Scheme: "socks5h", Host: socks}, {Scheme: "http", Host: web}} {
		transport := &http.Transport{Proxy: http.ProxyURL(&p)}
		got := get(t, &http.Client{Transport: transport, Timeout: time.Minute}, "http://intranet.example/")
		if got != "hello from intranet.example" {
			t.Errorf("through %v: the body is %q, want hello from intranet.example", &p, got)
		}
		transport.CloseIdleConnections()
	}
	published, err := b.Listen("tcp", ":2222")
	start(t, &proxy.Server{Protocol: proxy.Forward{Target: web}}, published, err)
	transport := &http.Transport{DialContext: a.DialContext, Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "10.8.0.2:2222"})}
	if got := get(t, &http.Client{Transport: transport, Timeout: time.Minute}, "http://intranet.example/"); got != "hello from intranet.example" {
		t.Errorf("through a forward from the tunnel: the body is %q, want hello from intranet.example", got)
	}
	transport.CloseIdleConnections()
	askOverSOCKS(t, socks)
	publishDatagrams(t, a, b)
}

// publishDatagrams forwards datagrams that arrive at b from the tunnel to an echo service of the host, and uses that
// service from the Net a.
func publishDatagrams(t *testing.T, a, b *netstack.Net) {
	t.Helper()
	service, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	go func() {
		for buf := make([]byte, 1500); ; {
			n, from, err := service.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = service.WriteTo(buf[:n], from)
		}
	}()
	published, err := b.ListenPacket("udp", ":5353")
	if err != nil {
		t.Fatal(err)
	}
	s := &proxy.Server{Protocol: proxy.Forward{Target: service.LocalAddr().String()}}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.ServePacket(published) }()
	defer func() { s.Close(); <-ended }()
	c, err := a.Dial("udp", "10.8.0.2:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	for _, size := range []int{5, 0, 1200} {
		buf := make([]byte, 1500)
		if _, err := c.Write(bytes.Repeat([]byte("x"), size)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); n != size || err != nil {
			t.Errorf("the echo of a datagram of %d bytes has %d bytes, %v", size, n, err)
		}
	}
}

func get(t *testing.T, c *http.Client, address string) string {
	t.Helper()
	r, err := c.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// question returns a DNS query for intranet.example.
func question() []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName("intranet.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, _ := m.Pack()
	return b
}

// askOverSOCKS opens a UDP association as a SOCKS client, and sends a DNS query to a name server. It addresses that server by its
// host name.
func askOverSOCKS(t *testing.T, socks string) {
	t.Helper()
	c, err := net.Dial("tcp", socks)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))
	b := make([]byte, 2+10)
	if _, err := io.ReadFull(c, b); err != nil || b[3] != 0 {
		t.Fatalf("the answer to the greeting and to UDP ASSOCIATE is % x, %v, want success", b, err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[6:10])), uint16(b[10])<<8|uint16(b[11]))
	u, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(30 * time.Second))
	name := "names.intranet.example"
	_, _ = u.Write(append([]byte("\x00\x00\x00\x03"+string(rune(len(name)))+name+"\x00\x35"), question()...))
	answer := make([]byte, 1500)
	n, err := u.Read(answer)
	if err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer[10:n]); err != nil || m.ID != 7 || len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A != server.As4() {
		t.Errorf("after the SOCKS header %v, the DNS answer is %v, %v, want one with the server's address", answer[:10], m.GoString(), err)
	}
}

// TestDig asks the tunnel's name server with dig, through a UDP forward.
func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("needs dig: install bind9-dnsutils")
	}
	a, _ := tunnel(t)
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &proxy.Server{Protocol: proxy.Forward{Target: "10.8.0.2:53"}, DialContext: a.DialContext}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.ServePacket(c) }()
	defer func() { s.Close(); <-ended }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	out, err := exec.CommandContext(ctx, dig, "@127.0.0.1", "-p", port, "+short", "+tries=5", "intranet.example").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != server.String() {
		t.Errorf("dig prints %s, %v, want 10.8.0.2", out, err)
	}
}
