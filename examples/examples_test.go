// Package examples runs and tests the programs below it. Each program answers one question.
package examples

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/internal/netlab"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

var (
	programs string // the folder with the programs
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "examples"); err == nil {
			defer os.RemoveAll(programs)
			var flags []string
			if testkit.Race {
				flags = []string{"-race"}
			}
			err = netlab.Build("..", "./...", programs+string(filepath.Separator), flags...)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// A process is a running example.
type process struct {
	*exec.Cmd
	t      *testing.T
	ended  chan struct{}
	mu     sync.Mutex
	output bytes.Buffer // standard output and standard error
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *process) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// start starts an example and stops it when the test ends.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(filepath.Join(programs, name), args...), t: t, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p, p
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
	})
	return p
}

// says waits until the output matches a pattern, and returns the pattern's first group.
func (p *process) says(pattern string) string {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if found := regexp.MustCompile(pattern).FindStringSubmatch(p.String()); found != nil {
			return found[len(found)-1]
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%v printed nothing that matches %s:\n%v", p.Args, pattern, p)
		}
	}
}

// ends waits until the example has ended, and checks its exit status.
func (p *process) ends(status int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(60 * time.Second):
		p.t.Fatalf("%v did not end within 60 s:\n%v", p.Args, p)
	}
	if got := p.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("%v ended with status %d, want %d:\n%v", p.Args, got, status, p)
	}
}

// interrupt sends the signal of Ctrl-C, and checks that the example ends with status 0.
func (p *process) interrupt() {
	p.t.Helper()
	if runtime.GOOS == "windows" {
		return // Windows has no signals
	}
	if err := p.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	p.ends(0)
}

func writeFile(t *testing.T, text string) (name string) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "wg0.conf")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// serverFile and clientFile write the files of the two ends of a tunnel, 10.0.0.1 and 10.0.0.2.
func serverFile(t *testing.T, key wireguard.PrivateKey, client wireguard.PublicKey) (name string) {
	return writeFile(t, fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = 10.0.0.1/24\n[Peer]\nPublicKey = %v\nAllowedIPs = 10.0.0.2/32\n", key.Text(), client))
}

func clientFile(t *testing.T, key wireguard.PrivateKey, server wireguard.PublicKey, port any) (name string) {
	return writeFile(t, fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = 10.0.0.2/24\n[Peer]\nPublicKey = %v\nEndpoint = localhost:%v\nAllowedIPs = 0.0.0.0/0\n",
		key.Text(), server, port))
}

// TestServer checks that the example server sends a page to the example client, and through the example forward to a client
// without a tunnel:
//
//	server 10.0.0.1:80 ── tunnel ─┬─ client 10.0.0.2
//	                              └─ forward 10.0.0.2 ── 127.0.0.1 ── this test
func TestServer(t *testing.T) {
	serverKey, key := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	server := start(t, "server", "-config", serverFile(t, serverKey, key.Public()))
	port := server.says(`UDP port (\d+); HTTP on \S+:80 of \[10\.0\.0\.1\]`)
	file := clientFile(t, key, serverKey.Public(), port)
	hello := fmt.Sprintf("hello, %v\n", key.Public())

	client := start(t, "client", "-config", file, "http://10.0.0.1/a")
	client.ends(0)
	if out := client.String(); !strings.HasPrefix(out, hello) || !strings.Contains(out, fmt.Sprintf("200 OK, %d bytes", len(hello))) {
		t.Errorf("the client printed %q, want %q and its size", out, hello)
	}

	forward := start(t, "forward", "-config", file, "127.0.0.1:0", "10.0.0.1:80")
	resp, err := http.Get("http://" + forward.says(`forwarding (\S+) to 10\.0\.0\.1:80`) + "/b")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != hello || err != nil {
		t.Errorf("through the example forward, the page is %q, %v, want %q", body, err, hello)
	}
	for _, path := range []string{"/a", "/b"} {
		server.says(regexp.QuoteMeta(key.Public().String()) + ` at 10\.0\.0\.2:\d+: GET ` + path)
	}
	forward.interrupt() // while a connection is open
	server.interrupt()
}

// TestForward checks that each direction of a forwarded connection ends independently, and that a connection ends if the target
// refuses it.
func TestForward(t *testing.T) {
	serverKey, key := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	file := clientFile(t, key, serverKey.Public(), startEcho(t, serverKey, key.Public()))
	dial := func(p *process) *net.TCPConn {
		t.Helper()
		c, err := net.Dial("tcp", p.says(`forwarding (\S+) to`))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
		return c.(*net.TCPConn)
	}

	c := dial(start(t, "forward", "-config", file, "127.0.0.1:0", "10.0.0.1:7"))
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || string(got) != "echo: "+string(data) {
		t.Errorf("the client read %d bytes, %v, want the echo with %d bytes", len(got), err, len("echo: ")+len(data))
	}

	refused := start(t, "forward", "-config", file, "127.0.0.1:0", "10.0.0.1:9")
	if got, err := io.ReadAll(dial(refused)); len(got) > 0 {
		t.Errorf("a connection to a port on which nobody listens returned %q, %v, want nothing", got, err)
	}
	refused.says(`10\.0\.0\.1:9: connect: connection refused`)
}

// TestGateway checks that a client reaches the host's network through the example gateway. Neither of them needs root:
//
//	client 10.0.0.2 ── tunnel ── gateway 10.0.0.1 ── sockets of the host ── this test, at an address of the host
func TestGateway(t *testing.T) {
	host := testkit.HostAddr(t)
	gatewayKey, key := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	gateway := start(t, "gateway", "-open", host.String()+"/32", serverFile(t, gatewayKey, key.Public()))
	file, err := conf.ReadFile(clientFile(t, key, gatewayKey.Public(), gateway.says(`UDP port (\d+)`)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := file.Resolve(ctx, conf.Resolution{}); err != nil {
		t.Fatal(err)
	}
	config, err := file.Config()
	if err != nil {
		t.Fatal(err)
	}
	client, err := netstack.New(netstack.Config{Addresses: file.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	config.Tunnel, config.Bind = client, &udp.Bind{}
	devices.Up(t, config)

	tcp, err := net.Listen("tcp", net.JoinHostPort(host.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	go func() { // this server ends its own direction first
		for c, err := tcp.Accept(); err == nil; c, err = tcp.Accept() {
			io.WriteString(c, "hello")
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	packets, err := net.ListenPacket("udp", net.JoinHostPort(host.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	go func() {
		b := make([]byte, 100)
		for n, from, err := packets.ReadFrom(b); err == nil; n, from, err = packets.ReadFrom(b) {
			packets.WriteTo(b[:n], from)
		}
	}()

	c, err := client.DialContext(ctx, "tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("over TCP, the client read %q, %v, want hello", got, err)
	}
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Errorf("a write after the other direction has ended: %v, want no error", err)
	}
	c.Close()
	gateway.says(regexp.QuoteMeta(key.Public().String()) + `: tcp 10\.0\.0\.2:\d+ to ` + regexp.QuoteMeta(tcp.Addr().String()))

	c, err = client.DialContext(ctx, "udp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	for _, text := range []string{"one", "two"} {
		got := make([]byte, 100)
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(got); string(got[:n]) != text || err != nil {
			t.Errorf("over UDP, the client read %q, %v, want %q", got[:n], err, text)
		}
	}

	tcp.Close()
	if _, err := client.DialContext(ctx, "tcp", tcp.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection to a closed port of the host: %v, want a refusal", err)
	}
	if _, err := client.Ping(ctx, host); err != nil && !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("ping: %v, want an answer, or a refusal if net.ipv4.ping_group_range forbids ping sockets", err)
	}
	if _, err := client.DialContext(ctx, "tcp", "10.0.0.3:80"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a connection to an address of the tunnel: %v, want a refusal", err)
	}
}

// startEcho starts a device whose stack serves TCP port 7 of 10.0.0.1: it writes "echo: " and then what it reads.
func startEcho(t *testing.T, key wireguard.PrivateKey, client wireguard.PublicKey) (port uint16) {
	t.Helper()
	stack, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	d := devices.Up(t, wireguard.Config{
		PrivateKey: key, Tunnel: stack, Bind: &udp.Bind{},
		Peers: []wireguard.PeerConfig{{PublicKey: client, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}}},
	})
	l, err := stack.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			go func() {
				defer c.Close()
				io.WriteString(c, "echo: ")
				io.Copy(c, c)
			}()
		}
	}()
	return d.Status().ListenPort
}

// TestAlone runs the examples that need no configuration file, and checks what they print.
func TestAlone(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"quickstart -size 3000000", `^3000000 bytes in \S+, [0-9.]+ Gbit/s; CRC-32 1e893519, sent 1e893519\nhandshake at [0-9:]+; on the wire 3\d{6} bytes out, \d+ in\n$`},
		{"echo -delay 1ms -count 2", `^hello 0 after [0-9.]+ms\nhello 1 after [0-9.]+ms\non the wire: {Initiations:1 Responses:1 .*\n$`},
		{"bind", `127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+: initiation of 148 bytes\n.*: response of 92 bytes\n`},
		{"tunnel", `hello came back after [0-9.]+.?s\n$`},
	} {
		args := strings.Fields(c.args)
		p := start(t, args[0], args[1:]...)
		p.ends(0)
		if !regexp.MustCompile(c.want).MatchString(p.String()) {
			t.Errorf("%s printed\n%v\nwant %s", c.args, p, c.want)
		}
	}
}

// TestErrors checks that each example reports an error in its arguments or its file in one line, which names the program or the
// file.
func TestErrors(t *testing.T) {
	key := wireguard.NewPrivateKey()
	good := clientFile(t, key, wireguard.NewPrivateKey().Public(), 1)
	bad := writeFile(t, "[Interface]\nPrivateKey = oops\n")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct{ args, want string }{
		{"client", "want one URL"},
		{"client -config /does/not/exist http://10.0.0.1", "/does/not/exist"},
		{"client -config " + bad + " http://10.0.0.1", bad + ": line 2: PrivateKey: "},
		{"client -config " + good + " -timeout 1s http://10.0.0.1", "context deadline exceeded"},
		{"client -config " + good + " gopher://10.0.0.1", "gopher"},
		{"server -config /does/not/exist", "/does/not/exist"},
		{"server -config " + good + " -listen 10.0.0.9:80", "10.0.0.9:80"},
		{"gateway /does/not/exist", "/does/not/exist"},
		{"forward -config " + good, "want two addresses"},
		{"forward -config " + good + " " + taken.Addr().String() + " 10.0.0.1:80", "in use"},
	} {
		args := strings.Fields(c.args)
		p := start(t, args[0], args[1:]...)
		p.ends(1)
		if s := p.String(); !strings.Contains(s, args[0]+": ") || !strings.Contains(s, c.want) || strings.Count(s, "\n") != 1 {
			t.Errorf("%s printed\n%s\nwant one line with %q", c.args, s, c.want)
		}
	}
}

// TestLength checks that each example is one file of at most 60 lines.
func TestLength(t *testing.T) {
	files, err := filepath.Glob("*/*.go")
	if err != nil || len(files) < 7 {
		t.Fatalf("found %d examples, %v, want at least 7", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte("\n")); filepath.Base(file) != "main.go" || n > 60 {
			t.Errorf("%s has %d lines; want main.go, with at most 60 lines", file, n)
		}
	}
}
