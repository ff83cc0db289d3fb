package uapi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	goconn "golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"pgregory.net/rapid"

	"github.com/seed-86b749af/wireguard"
)

// A muteBind is a bind whose sends fail, so that no handshake changes the counters.
type muteBind struct{ goconn.Bind }

func (muteBind) Send([][]byte, goconn.Endpoint) error { return errors.New("mute") }

// newTheirs returns a device of wireguard-go.
func newTheirs(t interface{ Cleanup(func()) }) *device.Device {
	d := device.NewDevice(tuntest.NewChannelTUN().TUN(), muteBind{goconn.NewDefaultBind()}, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(d.Close)
	return d
}

// canonical returns the answer to a get with the peers sorted by key, and with the allowed IPs of each peer sorted, because
// wireguard-go returns them in no particular order. It leaves out listen_port, which the system chose.
func canonical(get string) string {
	var own []string
	peers := make(map[string][]string)
	key := ""
	for line := range strings.Lines(get) {
		switch {
		case strings.HasPrefix(line, "public_key="):
			key = line
			peers[key] = nil
		case strings.HasPrefix(line, "listen_port="):
		case key == "":
			own = append(own, line)
		default:
			peers[key] = append(peers[key], line)
		}
	}
	var b strings.Builder
	b.WriteString(strings.Join(own, ""))
	for _, key := range slices.Sorted(maps.Keys(peers)) {
		slices.SortStableFunc(peers[key], func(a, b string) int {
			if strings.HasPrefix(a, "allowed_ip=") && strings.HasPrefix(b, "allowed_ip=") {
				return strings.Compare(a, b)
			}
			return 0 // the other lines keep their order
		})
		b.WriteString(key + strings.Join(peers[key], ""))
	}
	return b.String()
}

// TestLikeWireguardGo checks that after any sequence of requests that both implementations accept, wireguard-go's get and ours
// show the same keys and values in the same order. TestRefusedLikeWireguardGo has the requests that are refused, because
// wireguard-go carries out a part of such a request.
func TestLikeWireguardGo(t *testing.T) {
	oneOf := func(t *rapid.T, values ...string) string { return rapid.SampledFrom(values).Draw(t, "value") }
	theirs := newTheirs(t) // one device for all sequences, because a device takes 16 MiB
	rapid.Check(t, func(t *rapid.T) {
		ours := newDownIn(t)
		if err := theirs.IpcSet("private_key=" + hexKey(0) + "\nfwmark=0\nreplace_peers=true\n"); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 4).Draw(t, "requests") {
			var b strings.Builder
			for range rapid.IntRange(0, 2).Draw(t, "device lines") {
				b.WriteString(oneOf(t, "replace_peers=true", "fwmark=0", "fwmark=51820", "listen_port=0") + "\n")
			}
			// The request has at most one private_key. If it had two, this package would apply only the second, and keep a peer
			// with the first key.
			b.WriteString(oneOf(t, "", "private_key="+hexKey(0x11)+"\n", "private_key="+hexKey(0x33)+"\n", "private_key="+hexKey(0)+"\n"))
			for range rapid.IntRange(0, 5).Draw(t, "blocks") {
				b.WriteString("public_key=" + oneOf(t, hexKey(1), hexKey(2), hexOf(wireguard.PrivateKey(public(0x33)).Public())) + "\n")
				for range rapid.IntRange(0, 5).Draw(t, "peer lines") {
					b.WriteString(oneOf(t, "remove=true", "update_only=true", "replace_allowed_ips=true", "protocol_version=1",
						"preshared_key="+hexKey(0), "preshared_key="+hexKey(7), "endpoint=192.0.2.1:1", "endpoint=[2001:db8::1]:65535",
						"persistent_keepalive_interval=0", "persistent_keepalive_interval=25",
						"allowed_ip=0.0.0.0/0", "allowed_ip=10.0.0.1/8", "allowed_ip=-10.0.0.0/8", "allowed_ip=10.1.0.0/16", "allowed_ip=-10.1.0.0/16",
						"allowed_ip=::/0", "allowed_ip=fd00::1/128", "allowed_ip=-fd00::1/128") + "\n")
				}
			}
			request := b.String()
			if !flagsFirst(request) {
				continue
			}
			err, theirErr := Set(strings.NewReader(request), ours), theirs.IpcSet(request)
			if err != nil || theirErr != nil {
				t.Fatalf("our Set returned %v and wireguard-go's IpcSet returned %v, want no error for\n%s", err, theirErr, request)
			}
			got, want := getIn(t, ours), getTheirs(t, theirs)
			if canonical(got) != canonical(want) {
				t.Fatalf("our Get answers\n%s\nwireguard-go answers\n%s\nafter the request\n%s", canonical(got), canonical(want), request)
			}
		}
	})
}

// flagsFirst reports whether remove and update_only precede a peer's prefixes. In wireguard-go, prefixes before these flags move
// from other peers to this peer, even if this peer does not exist in the end. In this package, as in the kernel, the prefixes do
// not move then.
func flagsFirst(request string) bool {
	for _, block := range strings.Split(request, "public_key=") {
		last := max(strings.LastIndex(block, "remove="), strings.LastIndex(block, "update_only="))
		if first := strings.Index(block, "allowed_ip="); first >= 0 && first < last {
			return false
		}
	}
	return true
}

// A rapidT has the methods that the helpers below need. The type rapid.T has these methods, but is not a testing.TB.
type rapidT interface {
	Cleanup(func())
	Fatal(...any)
}

func newDownIn(t rapidT) *wireguard.Device {
	d, err := wireguard.New(downConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func getIn(t rapidT, d *wireguard.Device) string {
	var b strings.Builder
	if err := Get(&b, d); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func getTheirs(t rapidT, d *device.Device) string {
	s, err := d.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRefusedLikeWireguardGo checks that both implementations refuse a line with the same error number. If wireguard-go returns
// another number or accepts the line, the table lists the difference.
func TestRefusedLikeWireguardGo(t *testing.T) {
	differs := map[string]string{
		"public_key=" + hexKey(0):                    "accepted, as a peer that no handshake can reach",
		"endpoint=192.0.2.1:0":                       "accepted",
		"endpoint=0.0.0.0:1":                         "accepted",
		"endpoint=[::]:1":                            "accepted",
		"endpoint=224.0.0.1:1":                       "accepted",
		"allowed_ip=::ffff:10.0.0.0/104":             "accepted",
		strings.Repeat("x", maxLine):                 "its lines may have 64 KiB",
		"public_key=" + strings.Repeat(secret, 2000): "its lines may have 64 KiB",
	}
	check := func(request, line string) {
		t.Helper()
		if _, ok := differs[line]; ok {
			return
		}
		var e *Error
		if err := Set(strings.NewReader(request), newDown(t)); !errors.As(err, &e) {
			t.Fatalf("our Set returned %v, want an *Error for %s", err, request)
		}
		theirs := newTheirs(t)
		defer theirs.Close()
		var their *device.IPCError
		if err := theirs.IpcSet(request); !errors.As(err, &their) || their.ErrorCode() != -int64(e.Errno) {
			t.Errorf("our errno is %d, but wireguard-go returned %v, for %.60q", e.Errno, err, line)
		}
	}
	for _, bad := range badLines {
		check("fwmark=1\n"+bad.line+"\n", bad.line)
	}
	for _, bad := range badDeviceLines {
		check(bad+"\n", bad)
	}
	for _, bad := range badPeerLines {
		check("public_key="+hexKey(1)+"\n"+bad+"\n", bad)
	}
}

// TestPortLikeWireguardGo checks that both implementations return the same error number for a port in use.
func TestPortLikeWireguardGo(t *testing.T) {
	taken := newDevice(t)
	request := fmt.Sprintf("listen_port=%d\n", taken.Status().ListenPort)
	var e *Error
	if err := Set(strings.NewReader(request), newDevice(t)); !errors.As(err, &e) {
		t.Fatalf("our Set with a port in use returned %v, want an *Error", err)
	}
	theirs := newTheirs(t)
	if err := theirs.Up(); err != nil {
		t.Fatal(err)
	}
	var their *device.IPCError
	if err := theirs.IpcSet(request); !errors.As(err, &their) || their.ErrorCode() != -int64(e.Errno) {
		t.Errorf("our errno is %d, but wireguard-go returned %v", e.Errno, err)
	}
}

// TestGetIntoWireguardGo checks that wireguard-go's set accepts the answer of our get, and that our set accepts the answer of
// wireguard-go's get. The test removes the keys that only a get has. Afterwards both return the same answer.
func TestGetIntoWireguardGo(t *testing.T) {
	ours, theirs := newDown(t), newTheirs(t)
	set(t, ours, before)
	if err := theirs.IpcSet(settable(get(t, ours))); err != nil {
		t.Fatal(err)
	}
	if got, want := canonical(getTheirs(t, theirs)), canonical(get(t, ours)); got != want {
		t.Errorf("wireguard-go, set from our Get, answers\n%s\nwant\n%s", got, want)
	}
	again := newDown(t)
	set(t, again, settable(getTheirs(t, theirs)))
	if got, want := get(t, again), get(t, ours); canonical(got) != canonical(want) {
		t.Errorf("a device of ours, set from wireguard-go's answer, answers\n%s\nwant\n%s", got, want)
	}
}

// settable returns the answer to a get as a set request that replaces everything, without the keys that a set does not
// accept.
func settable(get string) string {
	var b strings.Builder
	if !strings.Contains(get, "private_key=") {
		b.WriteString("private_key=" + hexKey(0) + "\n")
	}
	if !strings.Contains(get, "fwmark=") {
		b.WriteString("fwmark=0\n")
	}
	b.WriteString("replace_peers=true\n")
	for line := range strings.Lines(get) {
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "last_handshake_time_sec", "last_handshake_time_nsec", "rx_bytes", "tx_bytes":
		default:
			b.WriteString(line)
		}
	}
	return b.String()
}
