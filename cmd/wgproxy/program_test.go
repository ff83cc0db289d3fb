//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/wgnet"
)

// runMain is the name of an environment variable that makes this test binary run wgproxy.
const runMain = "WGPROXY_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// An office is the other end of the tunnel, 10.7.0.1, with a web server on port 80.
type office struct {
	*testing.T
	*wgnet.Tunnel
	key, client wireguard.PrivateKey
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{T: t, key: wireguard.NewPrivateKey(), client: wireguard.NewPrivateKey()}
	f, err := conf.Parse(fmt.Appendf(nil, "[Interface]\nPrivateKey = %s\nAddress = 10.7.0.1\n[Peer]\nPublicKey = %v\nAllowedIPs = 10.7.0.2/32\n",
		o.key.Text(), o.client.Public()))
	if err != nil {
		t.Fatal(err)
	}
	if o.Tunnel, err = wgnet.OpenFile(t.Context(), f, wgnet.Config{}); err != nil {
		t.Fatal(err)
	}
	l, err := o.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello from %s", r.Host) })}
	go web.Serve(l)
	t.Cleanup(func() {
		web.Close()
		o.Close()
	})
	return o
}

// file returns the text of the client's file. more has further lines for the end of the file.
func (o *office) file(more string) string {
	return fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = 10.7.0.2\nCheckAlive = 10.7.0.1\nCheckAliveInterval = 1\n[Peer]\nPublicKey = %v\nEndpoint = 127.0.0.1:%d\n%s",
		o.client.Text(), o.key.Public(), o.Device().Status().ListenPort, more)
}

// A run is a program under test.
type run struct {
	*testing.T
	path    string
	p       *program
	signals chan os.Signal
	ended   chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func (r *run) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(b)
}

func (r *run) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

func (r *run) waitFor(text string) {
	r.Helper()
	defer func() {
		if r.Failed() {
			r.Logf("wgproxy printed\n%s", r.said())
		}
	}()
	testkit.Eventually(r, fmt.Sprintf("wgproxy prints %q", text), func() bool { return strings.Contains(r.said(), text) })
}

// launch runs wgproxy with a file, flags and inherited sockets.
func launch(t *testing.T, text string, in sockets, flags ...string) *run {
	t.Helper()
	r := prepare(t, text, in, flags...)
	r.start()
	return r
}

// prepare does what launch does, except that it leaves the start of the program to the test.
func prepare(t *testing.T, text string, in sockets, flags ...string) *run {
	t.Helper()
	r := &run{T: t, path: write(t, "office.conf", text), signals: make(chan os.Signal, 2), ended: make(chan error, 1)}
	o, err := parseArgs(append([]string{r.path}, flags...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	s, err := o.settings()
	if err != nil {
		t.Fatal(err)
	}
	r.p = &program{settings: s, options: o, out: r, terminal: true, inherited: in}
	return r
}

func (r *run) start() {
	go func() { r.ended <- r.p.run(context.Background(), r.signals) }()
}

// counted waits until the metrics have a line, and returns all of them.
func (r *run) counted(line string) (text string) {
	r.Helper()
	testkit.Eventually(r, "the metrics have "+line, func() bool {
		w := httptest.NewRecorder()
		promhttp.HandlerFor(r.p.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		text = w.Body.String()
		return strings.Contains(text, line+"\n")
	})
	return text
}

// end sends SIGTERM, and checks that the program's run returns no error.
func (r *run) end() {
	r.Helper()
	r.signals <- syscall.SIGTERM
	if err := testkit.Next(r, r.ended, "wgproxy ends after SIGTERM"); err != nil {
		r.Errorf("wgproxy ended with %v after SIGTERM", err)
	}
}

// inheritTCP opens a socket for wgproxy, so that its port is known and free.
func inheritTCP(t *testing.T, in sockets) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in["tcp "+l.Addr().String()] = l
	return l.Addr().String()
}

func curl(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("needs curl: install curl")
	}
	cmd := exec.Command(path, append([]string{"-sS", "--max-time", "30"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // without the host's proxy settings
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestServices checks that curl reaches a web server behind the tunnel through SOCKS5, through an HTTP proxy with a password, and
// through a forward. It also checks that a connection from the tunnel reaches a service of this host, and that the status page,
// /metrics and /readyz show the tunnel's state.
func TestServices(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	socks, web, forward, status := inheritTCP(t, in), inheritTCP(t, in), inheritTCP(t, in), inheritTCP(t, in)
	local, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	here := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "from this host") })}
	go here.Serve(local)
	defer here.Close()
	r := launch(t, o.file("[http]\nBindAddress = "+web+"\nUsername = alice\nPassword = secret\n"), in,
		"-socks", socks, "-L", forward+"=10.7.0.1:80", "-R", "2222="+local.Addr().String(), "-status", status)
	r.waitFor("waiting for the first byte")
	for _, args := range [][]string{
		{"-x", "socks5://" + socks, "http://10.7.0.1/"},
		{"-x", "socks5h://" + socks, "http://10.7.0.1/"},
		{"-x", "http://alice:secret@" + web, "http://10.7.0.1/"},
		{"-p", "-x", "http://alice:secret@" + web, "http://10.7.0.1/"},
		{"-H", "Host: 10.7.0.1", "http://" + forward + "/"},
	} {
		if got := curl(t, args...); got != "hello from 10.7.0.1" {
			t.Errorf("curl %v prints %q, want hello from 10.7.0.1", args, got)
		}
	}
	if got := curl(t, "-o", os.DevNull, "-w", "%{http_code}", "-x", "http://alice:wrong@"+web, "http://10.7.0.1/"); got != "407" {
		t.Errorf("with the wrong password, the status is %s, want 407", got)
	}
	r.waitFor("the first bytes have arrived, from 10.7.0.1:80")
	tr := &http.Transport{DialContext: o.DialContext, DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: tr}).Get("http://10.7.0.2:2222/")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(answer.Body); string(b) != "from this host" {
		t.Errorf("through -R, the body is %q, want from this host", b)
	}
	answer.Body.Close()

	testkit.Eventually(t, "the office answers a ping", func() bool {
		var last map[string]int64
		text := curl(t, "http://"+status+"/readyz")
		return json.Unmarshal([]byte(text), &last) == nil && last["10.7.0.1"] > 1_700_000_000
	})
	if text := curl(t, "http://"+status+"/"); !strings.Contains(text, "<html") {
		t.Errorf("the status page is not HTML:\n%s", text)
	}
	if text := curl(t, "http://"+status+"/status.json"); !strings.Contains(text, `"wgproxy"`) {
		t.Errorf("status.json lacks the tunnel's name:\n%s", text)
	}
	metrics := curl(t, "http://"+status+"/metrics")
	lint(t, metrics)
	for _, want := range []string{
		`wireguard_received_bytes_total{interface="wgproxy",public_key="` + o.key.Public().String() + `"`,
		`wgproxy_connections_total{failed="false",service="[Socks5] on ` + socks + `"} 2`,
		`wgproxy_received_bytes_total{service="[http] on ` + web,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s in\n%s", want, metrics)
		}
	}
	o.Close() // from now on, nobody answers the pings
	testkit.Eventually(t, "/readyz has status 503, because the office answers no pings", func() bool {
		return curl(t, "-o", os.DevNull, "-w", "%{http_code}", "http://"+status+"/readyz") == "503"
	})
	r.end()
}

// TestReload checks that on SIGHUP wgproxy prints what changes, stops and starts services, and keeps a connection of a service
// that remains. A file with an error changes nothing.
func TestReload(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	kept, gone, added := inheritTCP(t, in), inheritTCP(t, in), "127.0.0.1:0"
	forward := func(bind string) string {
		return "[TCPClientTunnel]\nBindAddress = " + bind + "\nTarget = 10.7.0.1:80\n"
	}
	r := launch(t, o.file(forward(kept)+forward(gone)), in)
	r.waitFor("waiting for the first byte")
	c, err := net.Dial("tcp", kept)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func() {
		t.Helper()
		c.SetDeadline(time.Now().Add(testkit.Patience))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: kept\r\n\r\n")
		b := make([]byte, 4096)
		n, err := c.Read(b)
		for err == nil && !bytes.Contains(b[:n], []byte("hello from kept")) {
			var more int
			more, err = c.Read(b[n:])
			n += more
		}
		if err != nil {
			t.Fatalf("the connection of a service that remains failed: %v", err)
		}
	}
	ask()
	reload := func(text, want string) {
		t.Helper()
		if err := os.WriteFile(r.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r.signals <- syscall.SIGHUP
		r.waitFor(want)
	}
	reload(o.file("[Socks5]\n"), "not reloaded: "+r.path+": line 9: [Socks5]: BindAddress is missing")
	other := wireguard.NewPrivateKey().Public()
	more := fmt.Sprintf("PersistentKeepalive = 25\n%s[Peer]\nPublicKey = %v\nAllowedIPs = 10.8.0.0/16\n[SNI]\nBindAddress = %s\n", "", other, added)
	// The new file has another endpoint in front of the old one. The device keeps the old endpoint, where the peer answers,
	// because the file still contains it.
	before, _ := r.p.tunnel.Device().Peer(o.key.Public())
	reload(strings.Replace(o.file(more+forward(kept)), "Endpoint = ", "Endpoint = 127.0.0.1:9\nEndpoint = ", 1), "reloaded "+r.path)
	for _, want := range []string{
		fmt.Sprintf("plan: add the peer %v\n", other), fmt.Sprintf("plan: change the peer %v: Endpoint, PersistentKeepalive\n", o.key.Public()),
		"plan: stop [TCPClientTunnel] " + gone + " to 10.7.0.1:80 in the tunnel, with its connections\n", "plan: start [SNI] on " + added + "\n",
	} {
		if !strings.Contains(r.said(), want) {
			t.Errorf("wgproxy did not print %q; it printed\n%s", want, r.said())
		}
	}
	ask()
	if _, ok := r.p.tunnel.Device().Peer(other); !ok {
		t.Error("the device does not have the new peer")
	}
	if after, _ := r.p.tunnel.Device().Peer(o.key.Public()); !after.Endpoint.SamePlace(before.Endpoint) {
		t.Errorf("the peer moved from %v to %v, where nothing answers", before.Endpoint, after.Endpoint)
	}
	if c, err := net.Dial("tcp", gone); err == nil {
		c.Close()
		t.Error("a service that was removed still listens")
	}
	c.Close()
	r.end()
}

// TestNamesWithoutDNS checks that names are resolved by the host's resolver if the file has no DNS, to addresses of the family that
// ResolveStrategy names, and that ResolveStrategy does not concern addresses.
func TestNamesWithoutDNS(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	socks := inheritTCP(t, in)
	r := prepare(t, o.file("[Resolve]\nResolveStrategy = ipv4\n"), in, "-socks", socks)
	r.p.lookup = func(_ context.Context, network, host string) ([]netip.Addr, error) {
		if network != "ip4" || host != "office.test" {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		return []netip.Addr{netip.MustParseAddr("10.7.0.1")}, nil
	}
	r.start()
	r.waitFor("this host resolves the names of targets, because [Interface] has no DNS")
	if got := curl(t, "-x", "socks5h://"+socks, "http://office.test/"); got != "hello from office.test" {
		t.Errorf("curl prints %q, want hello from office.test", got)
	}
	if _, err := r.p.dial(t.Context(), "tcp", "other.test:80"); err == nil || !strings.Contains(err.Error(), "other.test") {
		t.Errorf("a dial of a name that does not exist returned %v", err)
	}
	if _, err := r.p.dial(t.Context(), "tcp", "[fd07::1]:80"); err == nil || strings.Contains(err.Error(), "no suitable address") {
		t.Errorf("a dial of an IPv6 address returned %v, want an error because the tunnel has no IPv6 address", err)
	}
	r.end()
}

// TestReloadOfServices checks a reload in which one of two new services cannot start: the other new one starts, and the services
// that stay go on. It also checks that a reload reads a renewed certificate.
func TestReloadOfServices(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	https := inheritTCP(t, in)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	added := free.Addr().String()
	_ = free.Close()
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	writeCertificate(t, cert, key)
	kept := fmt.Sprintf("[http]\nBindAddress = %s\nCertFile = %s\nKeyFile = %s\n", https, cert, key)
	r := launch(t, o.file(kept), in)
	r.waitFor("serving [http]")
	serial := func() string {
		c, err := tls.Dial("tcp", https, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	writeCertificate(t, cert, key)
	if err := os.WriteFile(r.path, []byte(o.file(kept+"[Socks5]\nBindAddress = "+busy.Addr().String()+"\n[SNI]\nBindAddress = "+added+"\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	r.waitFor("everything except these services was reloaded: [Socks5] on " + busy.Addr().String())
	if c, err := net.Dial("tcp", added); err != nil {
		t.Errorf("the other new service does not listen: %v", err)
	} else {
		c.Close()
	}
	if after := serial(); after == before {
		t.Errorf("after the reload the service still has the certificate %s", before)
	}
	r.end()
}

// writeCertificate writes a new certificate for this host, and its key.
func writeCertificate(t *testing.T, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{SerialNumber: serial, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStdio connects standard input and output with a target in the tunnel, which sees the end of the input. When the target
// closes the connection, wgproxy counts the connection and ends. A reload without the section ends the connection, and wgproxy
// continues to run.
func TestStdio(t *testing.T) {
	o := newOffice(t)
	l, err := o.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	defer l.Close()
	const section = "[STDIOTunnel]\nTarget = 10.7.0.1:7\n"
	var out bytes.Buffer
	r := prepare(t, o.file(section), nil)
	r.p.stdin, r.p.stdout = strings.NewReader("echo\n"), &out
	r.start()
	if err := testkit.Next(t, r.ended, "wgproxy ends when the target does"); err != nil || out.String() != "echo\n" {
		t.Errorf("the standard output has %q, %v, want echo", out.String(), err)
	}
	r.waitFor("the first bytes have arrived, from 10.7.0.1:7")
	lint(t, r.counted(`wgproxy_received_bytes_total{service="[STDIOTunnel] to 10.7.0.1:7 in the tunnel"} 5`))

	in := make(sockets)
	status := inheritTCP(t, in)
	r = prepare(t, o.file(section), in, "-status", status)
	input, more := io.Pipe()
	output, w := io.Pipe()
	defer more.Close()
	r.p.stdin, r.p.stdout = input, w
	r.start()
	go io.WriteString(more, "x")
	if _, err := io.ReadFull(output, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path, []byte(o.file("")), 0o600); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGHUP
	r.waitFor("reloaded " + r.path)
	r.counted(`wgproxy_connections_total{failed="true",service="[STDIOTunnel] to 10.7.0.1:7 in the tunnel"} 1`)
	if text := curl(t, "http://"+status+"/status.json"); !strings.Contains(text, `"wgproxy"`) {
		t.Errorf("wgproxy does not serve its status after the reload: %s", text)
	}
	r.end()
}

// TestDrain checks that no client can connect after SIGTERM, that an existing connection continues, and that a second signal
// ends this connection.
func TestDrain(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	forward := inheritTCP(t, in)
	r := launch(t, o.file(""), in, "-L", forward+"=10.7.0.1:80")
	r.waitFor("waiting for the first byte")
	c, err := net.Dial("tcp", forward)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	b := make([]byte, 4096)
	if _, err := c.Read(b); err != nil {
		t.Fatal(err)
	}
	r.signals <- syscall.SIGTERM
	testkit.Eventually(t, "wgproxy accepts no new client", func() bool {
		c, err := net.Dial("tcp", forward)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case err := <-r.ended:
		t.Fatalf("wgproxy did not wait for a connection: %v", err)
	default:
	}
	r.end() // sends the second signal
}

// TestUnusedSocket checks that a socket from systemd that no service uses is an error, which names the socket.
func TestUnusedSocket(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	used, unused := inheritTCP(t, in), inheritTCP(t, in)
	r := launch(t, o.file(""), in, "-socks", used)
	if err := testkit.Next(t, r.ended, "wgproxy ends"); err == nil || !strings.Contains(err.Error(), "no service uses the inherited socket tcp "+unused) {
		t.Errorf("wgproxy ended with %v, want an error that names the unused socket", err)
	}
	in["tcp "+unused].(net.Listener).Close()
}

// echo answers the connections of l one after another, until l is closed.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.Copy(c, c)
		c.Close()
	}
}
