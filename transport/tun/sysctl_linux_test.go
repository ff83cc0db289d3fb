//go:build linux && !android

package tun

import (
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

func (n *namespace) sysctl(t testing.TB, name string, value ...string) string {
	t.Helper()
	var b []byte
	n.do(t, func() {
		file := "/proc/sys/net/" + name
		for _, v := range value {
			if err := os.WriteFile(file, []byte(v), 0); err != nil {
				t.Error(err)
			}
		}
		var err error
		if b, err = os.ReadFile(file); err != nil {
			t.Error(err)
		}
	})
	return strings.TrimSpace(string(b))
}

// TestSettingsOfTheModule checks that a hub that forwards packets from one peer to another sends no ICMP redirect. It also
// checks that an interface that is up has only the addresses that were added to it, and that the kernel sends no other packets
// through it.
//
//	10.88.0.2 ─▶ TUN 10.88.0.1 ─▶ 10.88.0.3, on the same interface
func TestSettingsOfTheModule(t *testing.T) {
	n := newNamespace(t)
	n.sysctl(t, "ipv4/ip_forward", "1")
	n.sysctl(t, "ipv4/conf/all/send_redirects", "1")
	n.sysctl(t, "ipv4/conf/default/send_redirects", "1")
	d := n.open(t, Config{Name: "hub"})
	for name, want := range map[string]string{
		"ipv4/conf/hub/send_redirects": "0",
		"ipv4/conf/all/send_redirects": "0",
		"ipv6/conf/hub/addr_gen_mode":  "1",
	} {
		if got := n.sysctl(t, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	n.ip(t, "address add 10.88.0.1/24 dev hub")
	n.ip(t, "link set hub up")
	if out := n.ip(t, "-6 address show dev hub"); strings.Contains(out, "inet6") {
		t.Errorf("the interface has an IPv6 address that was not added to it:\n%s", out)
	}
	const sent = 3
	forwarded := make(chan struct{}, sent)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer d.Close()
	reader.Go(func() {
		var b wireguard.Batch
		for d.sources()[0].ReadPackets(&b) == nil {
			for i := range b.Len() {
				switch p := b.Packet(i); {
				case p[0]>>4 == 4 && p[9] == 17:
					forwarded <- struct{}{}
				case p[0]>>4 == 4 && p[9] == 1:
					t.Errorf("the kernel sent an ICMP message of type %d, code %d", p[20], p[21])
				default:
					t.Errorf("the kernel sent a packet that is neither UDP nor ICMP: %x", p)
				}
			}
			b.Reset()
		}
	})
	for range sent {
		if _, err := d.WritePackets([][]byte{pipe.UDPPacket(netip.MustParseAddrPort("10.88.0.2:1"), netip.MustParseAddrPort("10.88.0.3:2"), []byte("x"))}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-forwarded: // the kernel would send a redirect before it forwards the packet that causes the redirect
		case <-time.After(20 * time.Second):
			t.Fatal("the kernel did not forward the packet within 20 s")
		}
	}
}

// TestInheritedKeepsItsSettings checks that Open does not change send_redirects of an inherited interface.
func TestInheritedKeepsItsSettings(t *testing.T) {
	n := newNamespace(t)
	f := inherit(t, n, tunFeatures)
	names := n.ip(t, "-o link show type tun")
	name := strings.TrimSuffix(strings.Fields(names)[1], ":")
	n.sysctl(t, "ipv4/conf/"+name+"/send_redirects", "1")
	n.open(t, Config{File: f})
	if got := n.sysctl(t, "ipv4/conf/"+name+"/send_redirects"); got != "1" {
		t.Errorf("send_redirects is %s after Open, want 1 as before", got)
	}
}
