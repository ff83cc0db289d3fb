package uapi

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// newSession returns a device that has a session with its only peer, and that peer's key:
//
//	what Set configures ─── device ─── 127.0.0.1 ─── peer
func newSession(t testing.TB) (d *wireguard.Device, peer wireguard.PublicKey) {
	t.Helper()
	d, other := newDevice(t), newDevice(t)
	key, otherKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	set(t, other, fmt.Sprintf("private_key=%s\npublic_key=%s\nallowed_ip=10.0.0.1/32\n", hexOf(otherKey), hexOf(key.Public())))
	set(t, d, fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%v\nallowed_ip=10.0.0.2/32\n",
		hexOf(key), hexOf(otherKey.Public()), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), other.Status().ListenPort)))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := d.Handshake(ctx, otherKey.Public()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the initiation and the keepalive are counted", func() bool {
		s, _ := d.Peer(otherKey.Public())
		return s.Sent.Bytes == 148+32
	})
	return d, otherKey.Public()
}

// TestSetKeepsSession checks that an update of a peer keeps its session and its counters. With replace_peers the peer is
// removed and added again, as in the kernel, even if the request names it several times.
func TestSetKeepsSession(t *testing.T) {
	d, peer := newSession(t)
	before, _ := d.Peer(peer)
	block := "public_key=" + hexOf(peer) + "\n"
	for _, request := range []string{
		block,
		block + "allowed_ip=10.0.0.3/32\n" + block + "allowed_ip=-10.0.0.3/32\n",
		block + "replace_allowed_ips=true\nallowed_ip=10.0.0.2/32\n",
		block + "persistent_keepalive_interval=25\n" + block + "update_only=true\npersistent_keepalive_interval=0\n",
		block + "preshared_key=" + hexKey(0) + "\n",
		"public_key=" + hexKey(1) + "\n" + block + "public_key=" + hexKey(1) + "\nremove=true\n",
		"private_key=" + hexOf(d.PrivateKey()) + "\n", // the same key is not a change
	} {
		set(t, d, request)
		if after, _ := d.Peer(peer); !after.Session || !after.LastHandshake.Equal(before.LastHandshake) || after.Received.Bytes < before.Received.Bytes {
			t.Fatalf("the peer was %+v and is %+v, want its session and counters kept by the request\n%s", before, after, request)
		}
	}
	if err := Set(strings.NewReader("replace_peers=true\n"+block+"allowed_ip=10.0.0.2/32\nallowed_ip=x\n"), d); err == nil {
		t.Error("Set accepted a request with a bad line")
	}
	if after, _ := d.Peer(peer); !after.Session {
		t.Fatal("a refused request ended the session")
	}

	set(t, d, "replace_peers=true\n"+block+fmt.Sprintf("endpoint=%v\n", before.Endpoint.Addr)+block+"allowed_ip=10.0.0.2/32\n")
	after, ok := d.Peer(peer)
	if !ok || after.Session || !after.LastHandshake.IsZero() || after.Received.Bytes != 0 || after.Sent.Bytes != 0 {
		t.Fatalf("a replaced peer is %+v, want no session and zero counters", after)
	}
	set(t, d, "replace_peers=true\n"+block+"update_only=true\n")
	if d.Status().Peers != 0 {
		t.Error("update_only added a peer that replace_peers had removed")
	}
}

// TestGetSession checks that a get shows the time of the last handshake in seconds and nanoseconds of the wall clock,
// and the bytes that wg(8) shows as transfer.
func TestGetSession(t *testing.T) {
	d, peer := newSession(t)
	s, _ := d.Peer(peer)
	for _, line := range []string{
		fmt.Sprintf("last_handshake_time_sec=%d\n", s.LastHandshake.Unix()),
		fmt.Sprintf("last_handshake_time_nsec=%d\n", s.LastHandshake.Nanosecond()),
		fmt.Sprintf("tx_bytes=%d\n", s.Sent.Bytes),
		fmt.Sprintf("rx_bytes=%d\n", s.Received.Bytes),
	} {
		if got := get(t, d); !strings.Contains(got, line) {
			t.Errorf("the answer of Get has no line %q:\n%s", line, got)
		}
	}
	if age := time.Since(s.LastHandshake); age < 0 || age > time.Minute || s.Received.Bytes != 92 {
		t.Errorf("the handshake was %v ago, with %d bytes sent and %d received; want less than a minute and 92 received", age, s.Sent.Bytes, s.Received.Bytes)
	}
}

// TestGetLink checks that Get writes no line for an endpoint without an address, because wg(8) could not read the line.
func TestGetLink(t *testing.T) {
	d := newDown(t)
	if err := d.SetPeer(wireguard.PeerConfig{PublicKey: public(1), Endpoint: wireguard.Endpoint{Link: relay{}}}); err != nil {
		t.Fatal(err)
	}
	if got := get(t, d); strings.Contains(got, "endpoint") {
		t.Errorf("Get wrote a line for an endpoint without an address:\n%s", got)
	}
}

type relay struct{}

func (relay) Key() (k [16]byte) { return k }
func (relay) String() string    { return "a relay" }
