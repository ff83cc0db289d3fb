package uapi

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// newDown returns a device that was never up.
func newDown(t testing.TB) *wireguard.Device {
	t.Helper()
	d, err := wireguard.New(downConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func downConfig() wireguard.Config {
	return wireguard.Config{Tunnel: pipe.NewTunnel(1420), Bind: &udp.Bind{}}
}

// hexKey returns a key whose bytes are all b, in hexadecimal. It can be the public key of a peer.
func hexKey(b byte) string { return strings.Repeat(fmt.Sprintf("%02x", b), 32) }

func hexOf(k [32]byte) string { return hex.EncodeToString(k[:]) }

func public(b byte) (k wireguard.PublicKey) {
	for i := range k {
		k[i] = b
	}
	return k
}

// secret is a value that no error and no log may contain.
var secret = strings.Repeat("5ec7e7", 10) + "5ec7"

// badLines are lines that Set refuses both before the first public_key line and after it, with the error number that wg(8) gets.
var badLines = []struct {
	line  string
	errno int
}{
	{"nonsense", errnoProtocol},
	{secret, errnoProtocol},
	{" ", errnoProtocol},
	{"=", errnoInvalid},
	{"=1", errnoInvalid},
	{secret + "=private_key", errnoInvalid},
	{"Private_Key=" + secret, errnoInvalid},
	{"errno=0", errnoInvalid},
	{"get=1", errnoInvalid},
	{"set=1", errnoInvalid},
	{"public_key=", errnoInvalid},
	{"public_key=" + secret + "0", errnoInvalid},
	{"public_key=" + secret[1:], errnoInvalid},
	{"public_key=x" + secret[1:], errnoInvalid},
	{"public_key= " + secret, errnoInvalid},
	{strings.Repeat("x", maxLine), errnoProtocol},
	{"public_key=" + strings.Repeat(secret, 2000), errnoProtocol},
}

var badDeviceLines = []string{
	"private_key=", "private_key=" + secret + "00", "private_key=z" + secret[1:], "private_key=(none)",
	"listen_port=", "listen_port=-1", "listen_port=65536", "listen_port=1x", "listen_port= 1", "listen_port=+1", "listen_port=" + secret,
	"fwmark=", "fwmark=-1", "fwmark=4294967296", "fwmark=0x10", "fwmark=off", "fwmark=" + secret,
	"replace_peers=", "replace_peers=false", "replace_peers=1", "replace_peers=" + secret,
	"remove=true", "endpoint=192.0.2.1:1", "allowed_ip=10.0.0.0/8", "preshared_key=" + secret,
}

var badPeerLines = []string{
	"preshared_key=", "preshared_key=" + secret + "00", "preshared_key=z" + secret[1:],
	"endpoint=", "endpoint=192.0.2.1", "endpoint=192.0.2.1:0", "endpoint=192.0.2.1:65536", "endpoint=example.com:1",
	"endpoint=2001:db8::1:1", "endpoint=0.0.0.0:1", "endpoint=[::]:1", "endpoint=224.0.0.1:1", "endpoint=" + secret,
	"endpoint= 192.0.2.1:1", "endpoint=192.0.2.1:1 ", "endpoint=192.0.2.1:1 from 192.0.2.2",
	"persistent_keepalive_interval=", "persistent_keepalive_interval=-1", "persistent_keepalive_interval=65536",
	"persistent_keepalive_interval=off", "persistent_keepalive_interval=" + secret,
	"remove=", "remove=false", "update_only=false", "update_only=" + secret, "replace_allowed_ips=false",
	"allowed_ip=", "allowed_ip=10.0.0.1", "allowed_ip=10.0.0.0/33", "allowed_ip=::/129", "allowed_ip=--10.0.0.0/8",
	"allowed_ip=+", "allowed_ip=fe80::%1/64", "allowed_ip=::ffff:10.0.0.0/104", "allowed_ip=10.0.0.0/8,10.1.0.0/16", "allowed_ip=" + secret,
	"protocol_version=", "protocol_version=2", "protocol_version=" + secret,
	"private_key=" + secret, "listen_port=1", "fwmark=1", "replace_peers=true",
}

// before is a request that gives a device two peers. TestSetRefuses puts bad lines into the request of halfDevice and halfPeers.
// Without a bad line, that second request would change every value that the request before has set.
var before = fmt.Sprintf(`private_key=%s
fwmark=7
public_key=%s
preshared_key=%s
endpoint=192.0.2.1:1
persistent_keepalive_interval=5
allowed_ip=10.0.0.0/8
public_key=%s
allowed_ip=fd00::/8
`, hexKey(0x11), hexKey(1), hexKey(9), hexKey(2))

var halfDevice = fmt.Sprintf("private_key=%s\nlisten_port=9\nfwmark=8\nreplace_peers=true\n", hexKey(0x22))

var halfPeers = fmt.Sprintf(`public_key=%s
endpoint=[2001:db8::1]:2
allowed_ip=-10.0.0.0/8
public_key=%s
remove=true
public_key=%s
preshared_key=%s
allowed_ip=10.0.0.0/8
`, hexKey(1), hexKey(2), hexKey(3), hexKey(8))

// TestSetRefuses checks the error number for each bad line, among the lines of the device and among those of a peer. It also
// checks that the error gives the number of the line and no value, and that the device does not change. (In another
// implementation, an error in the middle of a peer's block once left a half-made peer.)
func TestSetRefuses(t *testing.T) {
	d := newDown(t)
	set(t, d, before)
	want := get(t, d)
	check := func(request string, errno, line int) {
		t.Helper()
		err := Set(strings.NewReader(request), d)
		var e *Error
		if !errors.As(err, &e) || e.Errno != errno {
			t.Fatalf("Set returned %v, want errno %d, for the request\n%s", err, errno, request)
		}
		if place := fmt.Sprintf("line %d: ", line); !strings.Contains(err.Error(), place) {
			t.Errorf("the error is %v, want it to contain %q", err, place)
		}
		if strings.Contains(err.Error(), "5ec7") || strings.Contains(err.Error(), "\n") {
			t.Errorf("the error contains a value or a second line: %v", err)
		}
		if got := get(t, d); got != want {
			t.Fatalf("a refused request changed the device:\n%s", request)
		}
	}
	rest := "allowed_ip=10.7.0.0/16\n\n"
	inDevice, inPeer := strings.Count(halfDevice, "\n")+1, strings.Count(halfDevice+halfPeers, "\n")+1
	for _, bad := range badLines {
		check(halfDevice+bad.line+"\n"+halfPeers, bad.errno, inDevice)
		check(halfDevice+halfPeers+bad.line+"\n"+rest, bad.errno, inPeer)
		check(halfDevice+halfPeers+bad.line, bad.errno, inPeer)
	}
	for _, bad := range badDeviceLines {
		check(halfDevice+bad+"\n"+halfPeers, errnoInvalid, inDevice)
	}
	for _, bad := range badPeerLines {
		check(halfDevice+halfPeers+bad+"\n"+rest, errnoInvalid, inPeer)
	}
}

// TestSetTooBig checks that a request above the size limit is refused as a whole.
func TestSetTooBig(t *testing.T) {
	d := newDown(t)
	line := "persistent_keepalive_interval=" + strings.Repeat("0", 400) + "1\n"
	r := io.MultiReader(strings.NewReader(before), io.LimitReader(repeat(line), maxRequest))
	var e *Error
	if err := Set(r, d); !errors.As(err, &e) || e.Errno != errnoTooBig {
		t.Fatalf("Set returned %v, want errno %d", err, errnoTooBig)
	}
	if n := d.Status().Peers; n != 0 {
		t.Errorf("the device has %d peers after a refused request, want none", n)
	}
}

type repeat string

func (s repeat) Read(p []byte) (n int, err error) {
	for n+len(s) <= len(p) {
		n += copy(p[n:], s)
	}
	return n, nil
}

// TestSetReadFails checks that Set carries out nothing if the reader fails in the middle of the request.
func TestSetReadFails(t *testing.T) {
	d := newDown(t)
	broken := errors.New("broken")
	err := Set(io.MultiReader(strings.NewReader(before), errReader{broken}), d)
	var e *Error
	if !errors.Is(err, broken) || !errors.As(err, &e) || e.Errno != errnoIO {
		t.Errorf("Set returned %v, want an error that wraps the reader's, with errno %d", err, errnoIO)
	}
	if d.Status().Peers != 0 {
		t.Error("Set carried out half a request")
	}
}

type errReader struct{ error }

func (e errReader) Read([]byte) (int, error) { return 0, e.error }

// TestSetConfigureFails checks that a request that Device.Configure refuses gets the system's error number, and changes nothing.
func TestSetConfigureFails(t *testing.T) {
	d, other := newDevice(t), newDevice(t)
	want := get(t, d)
	request := fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\n", hexKey(1), other.Status().ListenPort, hexKey(2))
	var e *Error
	if err := Set(strings.NewReader(request), d); !errors.As(err, &e) || e.Errno != errnoAddressInUse {
		t.Errorf("Set with a port in use returned %v, want errno %d", err, errnoAddressInUse)
	}
	if got := get(t, d); got != want {
		t.Errorf("a refused request changed the device to\n%s", got)
	}
	d.Close()
	if err := Set(strings.NewReader(before), d); !errors.As(err, &e) || e.Errno != errnoNoDevice || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Set on a closed device returned %v, want errno %d", err, errnoNoDevice)
	}
}

// TestErrnoOf checks the error numbers of errors that a test of Set cannot cause on every system.
func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err   error
		taken bool
		want  int
	}{
		{errors.New("no number"), false, errnoInvalid},
		{errors.New("no number, but a port was asked for"), true, errnoAddressInUse},
		{fmt.Errorf("mark: %w", errors.ErrUnsupported), true, errnoUnsupported},
		{fmt.Errorf("mark: %w", syscall.EPERM), true, errnoOfSystem(syscall.EPERM)},
	} {
		if got := errnoOf(c.err, c.taken); got != c.want {
			t.Errorf("errnoOf(%v) is %d, want %d", c.err, got, c.want)
		}
	}
}

// TestSetOrder checks that a line of a request overrides an earlier line in the same block, or in another block of the same peer.
func TestSetOrder(t *testing.T) {
	a, b := hexKey(1), hexKey(2)
	for _, c := range []struct{ why, request, a, b string }{
		{"add", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\nallowed_ip=+10.1.0.0/16\n", "10.0.0.0/8 10.1.0.0/16", "-"},
		{"bits beyond the prefix", "public_key=" + a + "\nallowed_ip=10.1.2.3/8\nallowed_ip=-10.9.9.9/8\nallowed_ip=fd00::1/64\n", "fd00::/64", "-"},
		{"add, remove", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\nallowed_ip=-10.0.0.0/8\n", "", "-"},
		{"remove, add", "public_key=" + a + "\nallowed_ip=-10.0.0.0/8\nallowed_ip=10.0.0.0/8\n", "10.0.0.0/8", "-"},
		{"add, replace", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=10.1.0.0/16\n", "10.1.0.0/16", "-"},
		{"add, replace by the same", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n", "10.0.0.0/8", "-"},
		{"two blocks", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\npublic_key=" + b + "\npublic_key=" + a + "\nallowed_ip=-10.0.0.0/8\nallowed_ip=10.2.0.0/16\n", "10.2.0.0/16", ""},
		{"added to two peers", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\npublic_key=" + b + "\nallowed_ip=10.0.0.0/8\n", "", "10.0.0.0/8"},
		{"removed from a peer that does not have it", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\npublic_key=" + b + "\nallowed_ip=-10.0.0.0/8\n", "10.0.0.0/8", ""},
		{"moved to another peer and removed there", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\npublic_key=" + b + "\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\n", "", ""},
		{"peer added and removed", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\nremove=true\n", "-", "-"},
		{"peer added, removed and added", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\npublic_key=" + a + "\nremove=true\npublic_key=" + a + "\n", "", "-"},
		{"update_only for a new peer", "public_key=" + a + "\nupdate_only=true\nallowed_ip=10.0.0.0/8\n", "-", "-"},
		{"update_only for a new peer, after its prefix", "public_key=" + a + "\nallowed_ip=10.0.0.0/8\nupdate_only=true\n", "-", "-"},
		{"update_only for a peer of the same request", "public_key=" + a + "\npublic_key=" + a + "\nupdate_only=true\nallowed_ip=10.0.0.0/8\n", "10.0.0.0/8", "-"},
		{"two private keys", "private_key=" + hexKey(3) + "\nprivate_key=" + hexKey(4) + "\npublic_key=" + a + "\n", "", "-"},
		{"empty request", "", "-", "-"},
		{"replace_peers without peers", "replace_peers=true\n", "-", "-"},
	} {
		for _, end := range []string{"", "\n", "\nnonsense of the next request"} {
			d := newDown(t)
			set(t, d, c.request+end)
			for key, want := range map[wireguard.PublicKey]string{public(1): c.a, public(2): c.b} {
				got := "-" // there is no such peer
				if _, ok := d.Peer(key); ok {
					got = strings.Trim(fmt.Sprint(slices.Collect(d.AllowedIPs(key))), "[]")
				}
				if got != want {
					t.Errorf("%s: peer %v has the allowed IPs %q, want %q", c.why, key, got, want)
				}
			}
		}
	}
}

// TestSetUpdates checks that an update of an existing peer changes only the values that it names. (In another implementation,
// such an update once replaced the peer.)
func TestSetUpdates(t *testing.T) {
	d := newDown(t)
	set(t, d, before)
	type peer struct {
		wireguard.PeerStatus
		PresharedKey wireguard.PresharedKey
		allowed      []netip.Prefix
	}
	get := func() (p peer) {
		p.PeerStatus, _ = d.Peer(public(1))
		p.PresharedKey, _ = d.PresharedKey(public(1))
		p.allowed = slices.Collect(d.AllowedIPs(public(1)))
		return p
	}
	want := get()
	for _, c := range []struct {
		line  string
		alter func(s *peer)
	}{
		{"update_only=true", func(s *peer) {}},
		{"protocol_version=1", func(s *peer) {}},
		{"preshared_key=" + hexKey(7), func(s *peer) { s.PresharedKey = wireguard.PresharedKey(public(7)) }},
		{"preshared_key=" + hexKey(0), func(s *peer) { s.PresharedKey = wireguard.PresharedKey{} }},
		{"endpoint=[fe80::1%lo]:51820", func(s *peer) {
			s.Endpoint = wireguard.EndpointOf(netip.MustParseAddrPort("[fe80::1%lo]:51820"))
		}},
		{"endpoint=[::ffff:192.0.2.9]:5", func(s *peer) {
			s.Endpoint = wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.9:5"))
		}},
		{"persistent_keepalive_interval=65535", func(s *peer) { s.PersistentKeepalive = 65535 * time.Second }},
		{"persistent_keepalive_interval=0", func(s *peer) { s.PersistentKeepalive = 0 }},
		{"allowed_ip=10.1.0.0/16", func(s *peer) {
			s.allowed = append(s.allowed, netip.MustParsePrefix("10.1.0.0/16"))
			slices.SortFunc(s.allowed, netip.Prefix.Compare)
			s.AllowedIPs++
		}},
		{"replace_allowed_ips=true\nallowed_ip=::/0", func(s *peer) {
			s.allowed, s.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("::/0")}, 1
		}},
	} {
		set(t, d, "public_key="+hexKey(1)+"\n"+c.line+"\n")
		c.alter(&want)
		if got := get(); !reflect.DeepEqual(got, want) {
			t.Fatalf("after %s, the peer is\n%+v\nwant\n%+v", c.line, got, want)
		}
	}
	s := d.Status()
	if s.Peers != 2 || s.FirewallMark != 7 || s.PublicKey != wireguard.PrivateKey(public(0x11)).Public() {
		t.Errorf("an update of a peer changed the device: %+v", s)
	}
}

// TestSetOwnKey checks that a peer with the device's own key is ignored, even if the same request sets that key or
// replaces the peers. A peer whose key becomes the device's key is removed.
func TestSetOwnKey(t *testing.T) {
	d := newDown(t)
	key, other := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	peers := func(want ...wireguard.PublicKey) {
		t.Helper()
		n := 0
		for p := range d.Peers() {
			if n++; !slices.Contains(want, p.PublicKey) {
				t.Errorf("the device has the peer %v, want it ignored or removed", p.PublicKey)
			}
		}
		if n != len(want) {
			t.Errorf("the device has %d peers, want %d", n, len(want))
		}
	}
	self := "public_key=" + hexOf(key.Public()) + "\nallowed_ip=10.0.0.0/8\n"
	set(t, d, "private_key="+hexOf(key)+"\n"+self+"public_key="+hexKey(1)+"\nallowed_ip=10.0.0.0/8\n"+self)
	peers(public(1))
	if k, ok := d.Route(netip.MustParseAddr("10.0.0.1")); !ok || k != public(1) {
		t.Error("the ignored peer got a prefix of another peer")
	}
	set(t, d, "replace_peers=true\n"+self+"public_key="+hexKey(2)+"\n")
	peers(public(2))
	set(t, d, self+"remove=true\n")
	set(t, d, "public_key="+hexOf(other.Public())+"\n")
	peers(public(2), other.Public())
	set(t, d, "private_key="+hexOf(other)+"\n"+self) // a peer may have the device's old key
	peers(public(2), key.Public())
	if d.Status().PublicKey != other.Public() {
		t.Error("the device does not have the new private key")
	}
	set(t, d, "private_key="+hexKey(0)+"\n")
	if !d.PrivateKey().IsZero() {
		t.Error("a private key of zeros did not remove the device's private key")
	}
	peers(public(2), key.Public())
}

// TestSetZeroKey checks that a peer with the zero key is accepted, as the kernel's module accepts it, and is ignored.
func TestSetZeroKey(t *testing.T) {
	d := newDown(t)
	set(t, d, "public_key="+hexKey(1)+"\nallowed_ip=10.0.0.0/8\n")
	for _, request := range []string{
		"public_key=" + hexKey(0) + "\nallowed_ip=10.0.0.0/8\npersistent_keepalive_interval=1\n",
		"public_key=" + hexKey(0) + "\nremove=true\n",
	} {
		set(t, d, request)
		if k, ok := d.Route(netip.MustParseAddr("10.0.0.1")); !ok || k != public(1) {
			t.Errorf("the prefix is routed to %v (found: %t) after\n%swant it routed to its peer", k, ok, request)
		}
		if n := d.Status().Peers; n != 1 {
			t.Errorf("the device has %d peers after\n%swant 1", n, request)
		}
	}
	set(t, d, "replace_peers=true\npublic_key="+hexKey(0)+"\n")
	if n := d.Status().Peers; n != 0 {
		t.Errorf("replace_peers left %d peers, want none", n)
	}
}

// TestSetReadsNoFurther checks that Set reads one request from a bufio.Reader and nothing after it. (In another
// implementation, a second pipelined request got lost.)
func TestSetReadsNoFurther(t *testing.T) {
	d := newDown(t)
	r := bufio.NewReader(strings.NewReader("fwmark=1\n\nfwmark=2\npublic_key=" + hexKey(1) + "\n\nrest"))
	for want := uint32(1); want <= 2; want++ {
		if err := Set(r, d); err != nil {
			t.Fatal(err)
		}
		if got := d.Status().FirewallMark; got != want {
			t.Errorf("the mark is %d after request %d, want the number of the request", got, want)
		}
	}
	if rest, _ := io.ReadAll(r); string(rest) != "rest" {
		t.Errorf("%q is left in the reader, want %q", rest, "rest")
	}
}

// TestGetWriteFails checks that Get returns the writer's error.
func TestGetWriteFails(t *testing.T) {
	d := newDown(t)
	set(t, d, before)
	r, w := io.Pipe()
	r.CloseWithError(io.ErrNoProgress)
	var e *Error
	if err := Get(w, d); !errors.Is(err, io.ErrNoProgress) || !errors.As(err, &e) || e.Errno != errnoIO {
		t.Errorf("Get returned %v, want an *Error that wraps the writer's error", err)
	}
}
