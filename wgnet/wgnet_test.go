package wgnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
	"github.com/seed-86b749af/wireguard/wgnet"
)

const loopback = "127.0.0.1"

// A names is a resolver that knows only the names in the map. It fails for all other names.
type names map[string][]netip.Addr

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if as, ok := n[host]; ok {
		return as, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// A noAnswer is a resolver that does not answer.
type noAnswer struct{}

func (noAnswer) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
}

func parse(t *testing.T, format string, args ...any) *conf.File {
	t.Helper()
	f, err := conf.Parse(fmt.Appendf(nil, format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func openFile(t *testing.T, f *conf.File, c wgnet.Config) *wgnet.Tunnel {
	t.Helper()
	tunnel, err := wgnet.OpenFile(t.Context(), f, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tunnel.Close(); err != nil {
			t.Error(err)
		}
	})
	return tunnel
}

// ends returns two tunnels: a at 10.0.0.1 and b at 10.0.0.2. The Endpoint of b's peer is the name of a's host.
func ends(t *testing.T) (a, b *wgnet.Tunnel) {
	t.Helper()
	keyA, keyB := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	a = openFile(t, parse(t, "[Interface]\nPrivateKey=%s\nAddress=10.0.0.1/24\n[Peer]\nPublicKey=%v\nAllowedIPs=10.0.0.2\n", keyA.Text(), keyB.Public()), wgnet.Config{})
	b = openFile(t, parse(t, "[Interface]\nPrivateKey=%s\nAddress=10.0.0.2/24\nMTU=1300\n[Peer]\nPublicKey=%v\nAllowedIPs=0.0.0.0/0\nEndpoint=vpn.example.com:%d\n",
		keyB.Text(), keyA.Public(), a.Device().Status().ListenPort),
		wgnet.Config{
			Resolution: conf.Resolution{Resolver: names{"vpn.example.com": {netip.MustParseAddr(loopback)}}},
			Net:        netstack.Config{DNS: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		})
	return a, b
}

// TestConnections checks each kind of connection between two tunnels, in both directions.
func TestConnections(t *testing.T) {
	testkit.NoLeaks(t)
	a, b := ends(t)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	if err := b.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Wait(ctx); err != nil {
		t.Errorf("Wait of a, whose file has no Endpoint and whose peer has sent packets: %v", err)
	}
	if got := b.Net().MTU(); got != 1300 {
		t.Errorf("the MTU is %d, want 1300 as in the file", got)
	}

	l, err := b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	for _, dial := range []func() (net.Conn, error){
		func() (net.Conn, error) { return a.Dial("tcp", "10.0.0.2:80") },
		func() (net.Conn, error) { return a.DialContext(ctx, "tcp", "10.0.0.2:80") },
	} {
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("the connection read %q, error %v; want what the other end sent", got, err)
		}
		c.Close()
	}

	p, err := a.ListenPacket("udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Dial("udp", "10.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "ping")
	buf := make([]byte, 100)
	p.SetReadDeadline(time.Now().Add(testkit.Patience))
	if n, _, err := p.ReadFrom(buf); string(buf[:n]) != "ping" || err != nil {
		t.Errorf("the connection read %q, error %v; want what the other end sent", buf[:n], err)
	}
	p.Close()

	// The resolver sends its query through the tunnel, where no server answers on port 53.
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if as, err := b.LookupHost(short, "example.com"); err == nil || !strings.Contains(err.Error(), "10.0.0.1:53") {
		t.Errorf("LookupHost returned %v, error %v; want an error that names the DNS server in the tunnel", as, err)
	}
	if as, err := b.Resolver().LookupHost(short, "example.com"); err == nil {
		t.Errorf("the Resolver returned %v, although no DNS server answers", as)
	}

	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close, Accept returns %v, want net.ErrClosed", err)
	}
	if _, err := b.Dial("tcp", "10.0.0.1:80"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close, Dial returns %v, want net.ErrClosed", err)
	}
	if err := b.Wait(ctx); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close, Wait returns %v, want net.ErrClosed", err)
	}
}

// TestClose checks that Close leaves no goroutine and no socket. It also checks this for an OpenFile that fails after it has made
// a network stack.
func TestClose(t *testing.T) {
	testkit.NoLeaks(t)
	a, b := ends(t)
	port := a.Device().Status().ListenPort
	taken := fmt.Sprintf("[Interface]\nPrivateKey=%s\nAddress=10.0.0.9\nListenPort=%d\n", wireguard.NewPrivateKey().Text(), port)
	if _, err := wgnet.OpenFile(t.Context(), parse(t, "%s", taken), wgnet.Config{}); err == nil {
		t.Error("OpenFile succeeded with a port that is in use")
	}
	for range 2 {
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	}
	again := openFile(t, parse(t, "%s", taken), wgnet.Config{})
	if got := again.Device().Status().ListenPort; got != port {
		t.Errorf("the port is %d, want %d again", got, port)
	}
}

// TestOpenErrors checks that each error names the file and says what to do.
func TestOpenErrors(t *testing.T) {
	testkit.NoLeaks(t)
	key, peer := wireguard.NewPrivateKey(), wireguard.NewPrivateKey().Public()
	i := fmt.Sprintf("[Interface]\nPrivateKey=%s\nAddress=10.0.0.2\n", key.Text())
	for name, c := range map[string]struct{ text, want string }{
		"no key":        {"[Interface]\nAddress=10.0.0.2\n", "wg genkey"},
		"no address":    {"[Interface]\nPrivateKey=" + key.Text() + "\n", "Address = 10.0.0.2"},
		"misspelt":      {i + "[Peer]\nPublicKey=" + peer.String() + "\nAllowedIP=10.0.0.1\n", "AllowedIPs"},
		"not a file":    {"hello\n", "line 1"},
		"DNS is local":  {i + "DNS=127.0.0.53\n", "behind the tunnel"},
		"small for IP6": {i + "Address=fd00::2\nMTU=1200\n", "1280"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "office.conf")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
			defer cancel()
			tunnel, err := wgnet.Open(ctx, path)
			if err == nil {
				tunnel.Close()
				t.Fatal("Open accepted the file, want an error")
			}
			if s := err.Error(); !strings.HasPrefix(s, "wgnet: "+path) || !strings.Contains(s, c.want) || strings.Contains(s, key.Text()) {
				t.Errorf("the error is %q; want it to contain the file's name and %q, and not the key", s, c.want)
			}
		})
	}
	if _, err := wgnet.Open(t.Context(), "/does/not/exist.conf"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/does/not/exist.conf") {
		t.Errorf("Open of a file that does not exist: error %v, want fs.ErrNotExist and the file's name", err)
	}
	f := parse(t, "%s[Peer]\nPublicKey=%v\nEndpoint=vpn.example.com:1\n", i, peer)
	if _, err := wgnet.OpenFile(t.Context(), f, wgnet.Config{Resolution: conf.Resolution{Resolver: names{}}}); err == nil ||
		!strings.Contains(err.Error(), "vpn.example.com") || !strings.Contains(err.Error(), "write an address") {
		t.Errorf("OpenFile with a name that does not exist: error %v, want one that contains the name and the advice to write an address", err)
	}
	slow := wgnet.Config{Resolution: conf.Resolution{Resolver: noAnswer{}}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := wgnet.OpenFile(ctx, f, slow); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "line 6: Endpoint") ||
		!strings.Contains(err.Error(), "write an address") {
		t.Errorf("OpenFile with a resolver that does not answer in time: error %v, want DeadlineExceeded, the line and the advice to write an address", err)
	}
	for name, c := range map[string]wireguard.Config{
		"PrivateKey": {PrivateKey: key}, "ListenPort": {ListenPort: 1}, "FirewallMark": {FirewallMark: 1},
		"Peers": {Peers: []wireguard.PeerConfig{}}, "Tunnel": {Tunnel: new(netstack.Net)},
	} {
		if _, err := wgnet.OpenFile(t.Context(), f, wgnet.Config{Device: c}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("OpenFile with %s in Config.Device: error %v, want one that contains the field's name", name, err)
		}
	}
}

// TestWaitErrors checks that the error of Wait says which endpoint did not answer, why, and what to check.
func TestWaitErrors(t *testing.T) {
	testkit.NoLeaks(t)
	silent, err := net.ListenPacket("udp", loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	key, peer := wireguard.NewPrivateKey(), wireguard.NewPrivateKey().Public()
	tunnel := openFile(t, parse(t, "[Interface]\nPrivateKey=%s\nAddress=10.0.0.2\n[Peer]\nPublicKey=%v\nEndpoint=%v\nAllowedIPs=10.0.0.1\n",
		key.Text(), peer, silent.LocalAddr()), wgnet.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = tunnel.Wait(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Wait returned %v, want DeadlineExceeded", err)
	}
	for _, want := range []string{silent.LocalAddr().String(), peer.String(), key.Public().String(), "check the endpoint"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in the error %q", want, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tunnel.Wait(ended); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "check the endpoint") {
		t.Errorf("Wait with a cancelled context: error %v, want context.Canceled without advice", err)
	}
}

// A lost is a Bind whose sockets fail to send.
type lost struct{ wireguard.Bind }

var errLost = errors.New("the network is down today")

type lostSocket struct{ wireguard.Socket }

func (b lost) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.Bind.Listen(port)
	return lostSocket{s}, err
}

func (lostSocket) Send(ts []wireguard.Train) {
	for i := range ts {
		ts[i].Err = errLost
	}
}

// TestWaitSendError checks that the error of Wait contains the error of the failed send.
func TestWaitSendError(t *testing.T) {
	testkit.NoLeaks(t)
	tunnel := openFile(t, parse(t, "[Interface]\nPrivateKey=%s\nAddress=10.0.0.2\n[Peer]\nPublicKey=%v\nEndpoint=192.0.2.1:1\nAllowedIPs=10.0.0.1\n",
		wireguard.NewPrivateKey().Text(), wireguard.NewPrivateKey().Public()), wgnet.Config{Device: wireguard.Config{Bind: lost{new(udp.Bind)}}})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := tunnel.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errLost) {
		t.Errorf("Wait returned %v; want the deadline and the error of the send", err)
	}
}

// TestReload checks that Reload adds a peer to an open tunnel, and keeps the session of the peer that the tunnel already had.
func TestReload(t *testing.T) {
	testkit.NoLeaks(t)
	a, b := ends(t)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	if err := b.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	var peer wireguard.PeerStatus
	for p := range a.Device().Peers() {
		peer = p
	}
	text := fmt.Sprintf("[Interface]\nPrivateKey=%s\nAddress=10.0.0.1/24\n[Peer]\nPublicKey=%v\nAllowedIPs=10.0.0.2\n[Peer]\nPublicKey=%v\n",
		a.Device().PrivateKey().Text(), peer.PublicKey, wireguard.NewPrivateKey().Public())
	for range 2 {
		p, err := a.Reload(ctx, parse(t, "%s", text))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(p.Added) + len(p.Kept); n != 2 || len(p.Changed)+len(p.Removed)+len(p.Interface)+len(p.Reopen) != 0 {
			t.Errorf("the plan must only add or keep the two peers, but is\n%v", p)
		}
	}
	if p, _ := a.Device().Peer(peer.PublicKey); !p.Session || p.Endpoint != peer.Endpoint || a.Device().Status().Peers != 2 {
		t.Errorf("the peer was %+v and is %+v, want its session and endpoint kept", peer, p)
	}
	if _, err := a.Reload(ctx, parse(t, "[Interface]\n[Peer]\n")); err == nil || !strings.HasPrefix(err.Error(), "wgnet: reload: ") {
		t.Errorf("Reload of a file with an error returned %v, want an error that begins with wgnet: reload:", err)
	}
}

// TestReloadOfTheSameFile checks that a program may change the File that it gave to OpenFile, and give it to Reload. It also checks
// that a second Reload still reports what the tunnel has left as it was.
func TestReloadOfTheSameFile(t *testing.T) {
	testkit.NoLeaks(t)
	f := parse(t, "[Interface]\nPrivateKey=%s\nAddress=10.0.0.1\n[Peer]\nPublicKey=%v\nEndpoint=127.0.0.1:9\n",
		wireguard.NewPrivateKey().Text(), wireguard.NewPrivateKey().Public())
	tunnel, err := wgnet.OpenFile(t.Context(), f, wgnet.Config{Changes: func(context.Context, func()) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	f.Peers[0].Endpoint.Port = 10
	f.Peers = append(f.Peers, conf.Peer{PublicKey: wireguard.NewPrivateKey().Public(), Endpoint: conf.Endpoint{Host: "127.0.0.1", Port: 11}})
	f.Interface.MTU = 1300
	p, err := tunnel.Reload(t.Context(), f)
	if err != nil || len(p.Added) != 1 || len(p.Changed) != 1 || len(p.Reopen) != 1 {
		t.Errorf("the plan of the first Reload is\n%vwith error %v; want one peer added, one changed, and MTU left", p, err)
	}
	for peer := range tunnel.Device().Peers() {
		if port := peer.Endpoint.Addr.Port(); port != 10 && port != 11 {
			t.Errorf("a peer has the endpoint %v, want that of the changed file", peer.Endpoint)
		}
	}
	if p, err = tunnel.Reload(t.Context(), f); err != nil || len(p.Kept) != 2 || len(p.Reopen) != 1 {
		t.Errorf("the plan of the second Reload is\n%vwith error %v; want both peers kept, and MTU left", p, err)
	}
}

// TestFollow checks that a Tunnel over UDP sockets finds a server at the second Endpoint of a file. The first attempt takes 5 s,
// so the test runs only with WGNET_SLOW=1.
func TestFollow(t *testing.T) {
	if os.Getenv("WGNET_SLOW") != "1" {
		t.Skip("takes 5 s; set WGNET_SLOW=1")
	}
	testkit.NoLeaks(t)
	silent, err := net.ListenPacket("udp", loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	serverKey, key := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	server := openFile(t, parse(t, "[Interface]\nPrivateKey=%s\nAddress=10.0.0.1\n[Peer]\nPublicKey=%v\nAllowedIPs=10.0.0.2\n", serverKey.Text(), key.Public()), wgnet.Config{})
	client := openFile(t, parse(t, "[Interface]\nPrivateKey=%s\nAddress=10.0.0.2\n[Peer]\nPublicKey=%v\nAllowedIPs=10.0.0.1\nEndpoint=%v\nEndpoint=%s:%d\n",
		key.Text(), serverKey.Public(), silent.LocalAddr(), loopback, server.Device().Status().ListenPort), wgnet.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	start := time.Now()
	if err := client.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the client has a session after %v", time.Since(start))
}
