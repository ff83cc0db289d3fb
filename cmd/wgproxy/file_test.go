package main

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// wireproxyFile has every section and key of wireproxy's documentation.
func wireproxyFile() string {
	return `[Interface]
Address = 10.200.200.2/32 # The subnet should be /32 and /128 for IPv4 and v6 respectively
MTU = 1420
PrivateKey = $WGPROXY_TEST_KEY
DNS = 10.200.200.1
CheckAlive = 10.200.200.1, 10.200.200.3
CheckAliveInterval = 3

[Peer]
PublicKey = ` + wireguard.NewPrivateKey().Public().String() + `
Endpoint = my.ddns.example:51820

; services
[Resolve]
ResolveStrategy = ipv4

[TCPClientTunnel]
BindAddress = 127.0.0.1:25565
Target = play.example:25565

[TCPServerTunnel]
ListenPort = 3422
Target = localhost:25545

[UDPProxyTunnel]
BindAddress = 127.0.0.1:5353
Target = 10.200.200.1:53
InactivityTimeout = 30

[UDPProxyTunnel]
BindAddress = 127.0.0.1:5354
Target = 10.200.200.1:53
InactivityTimeout = 0

[STDIOTunnel]
Target = ssh.example:22

[Socks5]
BindAddress = 127.0.0.1:25344
Username = $WGPROXY_TEST_USER
Password = "$$literal"

[http]
BindAddress = 127.0.0.1:25345
CertFile = cert.pem
KeyFile = key.pem

[SNI]
BindAddress = 127.0.0.1:25346
`
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWireproxyFile checks that a file of wireproxy has the same meaning here as in wireproxy.
func TestWireproxyFile(t *testing.T) {
	key := wireguard.NewPrivateKey()
	t.Setenv("WGPROXY_TEST_KEY", key.Text())
	t.Setenv("WGPROXY_TEST_USER", "alice # of sales")
	path := write(t, "a.conf", wireproxyFile())
	s, err := readSettings(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []service{
		{kind: kindClient, bind: "127.0.0.1:25565", target: "play.example:25565", idle: -1},
		{kind: kindServer, bind: ":3422", target: "localhost:25545", idle: -1},
		{kind: kindUDP, bind: "127.0.0.1:5353", target: "10.200.200.1:53", idle: 30 * time.Second},
		{kind: kindUDP, bind: "127.0.0.1:5354", target: "10.200.200.1:53", idle: -1},
		{kind: kindStdio, target: "ssh.example:22", idle: -1},
		{kind: kindSOCKS, bind: "127.0.0.1:25344", username: "alice # of sales", password: "$literal", idle: -1},
		{kind: kindHTTP, bind: "127.0.0.1:25345", certFile: "cert.pem", keyFile: "key.pem", idle: -1},
		{kind: kindSNI, bind: "127.0.0.1:25346", idle: -1},
	}
	if !slices.Equal(s.services, want) {
		t.Errorf("services\n%+v\nwant\n%+v", s.services, want)
	}
	if s.file.Interface.PrivateKey != key || s.family != "4" || s.every != 3*time.Second || len(s.alive) != 2 {
		t.Errorf("the file was read as %+v, want its key, address family, interval and pinged addresses", s)
	}
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	if got := s.file.Peers[0].AllowedIPs; !slices.Equal(got, all) {
		t.Errorf("a peer without AllowedIPs has %v, want all addresses", got)
	}
	for _, svc := range s.services {
		if text := svc.String(); strings.Contains(text, "literal") || strings.Contains(text, "alice") {
			t.Errorf("the text of a service contains a secret: %s", text)
		}
	}

	// A second file in the same folder takes the same tunnel from the first file with WGConfig.
	including := filepath.Join(filepath.Dir(path), "b.conf")
	if err := os.WriteFile(including, []byte("WGConfig = a.conf\n[Socks5]\nBindAddress = 127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = readSettings(including)
	if err != nil || s.file.Interface.PrivateKey != key || len(s.services) != 1 || len(s.alive) != 2 {
		t.Errorf("a file with WGConfig was read as %+v, %v; want the tunnel of the other file, and one service", s, err)
	}
}

// TestFileErrors checks that each error gives its line and says what to write instead.
func TestFileErrors(t *testing.T) {
	peer := wireguard.NewPrivateKey().Public().String()
	for text, want := range map[string]string{
		"[Socks5]\nBindAdress = 127.0.0.1:1\n":                               ": line 2: BindAdress: not a key of [Socks5]; write BindAddress if that is meant",
		"[Sock5]\n":                                                          ": line 1: [Sock5]: this section is unknown; write [Socks5] if that is meant",
		"[Socks5]\nUsername = a\n":                                           ": line 1: [Socks5]: BindAddress is missing",
		"[TCPClientTunnel]\nBindAddress = 1080\nTarget = a:1":                `: line 2: BindAddress: "1080": want host:port, such as 127.0.0.1:1080 or [::1]:1080`,
		"[TCPServerTunnel]\nListenPort = 65536\nTarget = a:1":                ": line 2: ListenPort: want a port from 0 to 65535",
		"[http]\nBindAddress = 127.0.0.1:1\nCertFile = a\n":                  ": line 1: [http]: CertFile and KeyFile belong together: give both or neither",
		"[Resolve]\nResolveStrategy = v4\n":                                  ": line 2: ResolveStrategy: want ipv4, ipv6 or auto",
		"[Interface]\nCheckAliveInterval = 5\n":                              ": CheckAliveInterval has no effect without CheckAlive",
		"[Interface]\nCheckAlive = host\n":                                   ": line 2: CheckAlive: want addresses to ping",
		"[Interface]\nPrivateKey = $WGPROXY_NOT_SET\n":                       ": line 2: PrivateKey: the variable $WGPROXY_NOT_SET is not set in the environment",
		"[Socks5]\nBindAddress = 127.0.0.1:1\nPassword = $WGPROXY_NOT_SET\n": ": line 3: Password: the variable $WGPROXY_NOT_SET is not set",
		"[Gateway]\nAlow = 10.0.0.1\n":                                       ": line 2: Alow: not a key of [Gateway]; write Allow if that is meant",
		"[Gatway]\n":                                                         ": line 1: [Gatway]: this section is unknown; write [Gateway] if that is meant",
		"[Gateway]\n[gateway]\n":                                             ": line 2: [Gateway]: a second section with this name",
		"[Gateway]\nAllow = 10.0.0.1, host\n":                                `: line 2: Allow: "host": want addresses or prefixes`,
		"[Gateway]\nAllow = 127.0.0.0/8\n":                                   ": line 2: Allow: 127.0.0.0/8: no packet of a peer may have a loopback address; to offer a service of this host, write a section [TCPServerTunnel]",
		"[Gateway]\nAllow = fe80::/64\n":                                     ": line 2: Allow: fe80::/64: routers do not forward",
		"[Gateway]\n[Peer]\nPublicKey = " + peer + "\n":                      ": the peer " + peer + " has no AllowedIPs, which [Gateway] needs",
		"[Gateway]\nMaxFlows = 4097\n":                                       ": line 2: MaxFlows: want the connections and UDP sockets that a peer may have at once, from 1 to 4096",
		"[Gateway]\nBytesPerSecond = 1M\n":                                   ": line 2: BytesPerSecond: want a number from 1",
		"[Interface]\nJc = 4\n":                                              "AmneziaWG",
		"[Socks5]\nBindAddress = 127.0.0.1:1\nPassword = \"a#b\"\n":          ": line 3: Password: the quote \" is not closed; # begins a comment",
		"[ Interface ]\nPrivateKey = $WGPROXY_NOT_SET\n":                     ": line 2: PrivateKey: the variable $WGPROXY_NOT_SET is not set in the environment",
		"WGConfig = nosuchfile.conf\n":                                       ": WGConfig: open ",
	} {
		path := write(t, "x.conf", text)
		if _, err := readSettings(path); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), path) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestArgs checks that flags may precede and follow the file, and that -L with a port alone listens on 127.0.0.1.
func TestArgs(t *testing.T) {
	o, err := parseArgs(strings.Fields("-s -socks 127.0.0.1:1080 office.conf -http [::1]:8080 -L 8080=10.7.0.1:80 -L 0.0.0.0:1=a:2 -R 2222=127.0.0.1:22 -status 127.0.0.1:9090 -n"), io.Discard)
	want := []service{
		{kind: kindSOCKS, bind: "127.0.0.1:1080", idle: -1}, {kind: kindHTTP, bind: "[::1]:8080", idle: -1},
		{kind: kindClient, bind: "127.0.0.1:8080", target: "10.7.0.1:80", idle: -1},
		{kind: kindClient, bind: "0.0.0.0:1", target: "a:2", idle: -1}, {kind: kindServer, bind: ":2222", target: "127.0.0.1:22", idle: -1},
	}
	if err != nil || o.path != "office.conf" || !o.test || !o.silent || o.status != "127.0.0.1:9090" || !slices.Equal(o.services, want) {
		t.Errorf("parseArgs returns %+v, %v; want the file, the flags and the services of the command line", o, err)
	}
	if o, err := parseArgs([]string{"-c", "x.conf", "-i", ":1"}, io.Discard); err != nil || o.path != "x.conf" || o.status != ":1" {
		t.Errorf("parseArgs with wireproxy's flags returns %+v, %v", o, err)
	}
	for _, args := range []string{"", "a -c b", "a b", "a -socks 1080", "a -L 80", "a -L 80=x", "a -R x=a:1", "a -nosuchflag", "-c a b"} {
		if o, err := parseArgs(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("parseArgs of %q returns %+v, want an error", args, o)
		}
	}
	o, _ = parseArgs([]string{write(t, "x.conf", "[Interface]\n")}, io.Discard)
	if _, err := o.settings(); err == nil || !strings.Contains(err.Error(), "nothing to serve") {
		t.Errorf("a file without a service: %v, want an error that says that there is nothing to serve", err)
	}
	o, _ = parseArgs([]string{write(t, "x.conf", "[Socks5]\nBindAddress = 127.0.0.1:1\n"), "-socks", "127.0.0.1:1"}, io.Discard)
	if _, err := o.settings(); err == nil || !strings.Contains(err.Error(), "is there twice") {
		t.Errorf("the same service twice: %v, want an error", err)
	}
}

// TestCheck checks that settings, and so the flag -n, finds what would keep wgproxy from starting.
func TestCheck(t *testing.T) {
	o, _ := parseArgs([]string{write(t, "x.conf", "[Interface]\n[SNI]\nBindAddress = 127.0.0.1:0\n[http]\nBindAddress = 127.0.0.1:0\n"+
		"[http]\nBindAddress = 127.0.0.1:1\nCertFile = nosuchfile.pem\nKeyFile = x\n"), "-socks", "127.0.0.1:1"}, io.Discard)
	_, err := o.settings()
	for _, want := range []string{"[Interface] has no PrivateKey", "[Interface] has no Address", "127.0.0.1:1 is also the address of [http]", "nosuchfile.pem"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("settings returned %v, want an error with %q", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "127.0.0.1:0 is also") {
		t.Errorf("settings returned %v; two services may have port 0", err)
	}
}

// FuzzFile checks that no file causes a panic, and that each service has the addresses that it needs.
func FuzzFile(f *testing.F) {
	f.Add(wireproxyFile())
	f.Add("WGConfig = x\n[SOCKS5]\nbindaddress=:0\npassword='$HOME'\n[Interface]\nMTU=$$\n")
	f.Add("[Gateway]\nAllow = 10.0.0.1, fd00::/64\nMaxFlows = 5\nBytesPerSecond = 7\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := parseFile(text)
		if err != nil {
			return
		}
		p := parser{settings: &settings{file: file}}
		for _, s := range file.Sections() {
			p.section(s)
		}
		if p.routeAll() != nil || len(p.errs) > 0 {
			return
		}
		for _, s := range p.services {
			if s.kind != kindStdio && address(s.bind) != nil || slices.Contains([]string{kindClient, kindServer, kindUDP, kindStdio}, s.kind) && address(s.target) != nil {
				t.Fatalf("%q: the service %+v lacks an address that it needs", text, s)
			}
		}
	})
}
