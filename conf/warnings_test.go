package conf

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	wireguard "github.com/seed-86b749af/wireguard"
)

// TestWarnings checks that Warnings reports likely mistakes in the order of their lines, and that Parse and Validate accept these
// mistakes.
func TestWarnings(t *testing.T) {
	own := must(wireguard.ParsePrivateKey(privateText)).Public().String()
	zero := strings.Repeat("A", 43) + "="
	text := strings.Join([]string{
		/* 1 */ "\ufeff[Interface]",
		/* 2 */ "PrivateKey = " + privateText,
		/* 3 */ "MTU = 1400",
		/* 4 */ "PostUp = a",
		/* 5 */ "PostUp = a",
		/* 6 */ "[Peer]",
		/* 7 */ "PublicKey = " + publicText,
		/* 8 */ "AllowedIPs = 10.0.0.0/24, 10.0.1.7/24",
		/* 9 */ "Endpoint = fe80::1:1234",
		/* 10 */ "Endpoint = [vpn.example.com]:2",
		/* 11 */ "[Interface]",
		/* 12 */ "MTU =",
		/* 13 */ "[Peer]",
		/* 14 */ "PublicKey = " + own,
		/* 15 */ "[Peer]",
		/* 16 */ "PublicKey = " + zero,
		/* 17 */ "[Peer]",
		/* 18 */ "PublicKey = " + publicText,
		/* 19 */ "AllowedIPs =",
		/* 20 */ "[Peer]",
		/* 21 */ "PublicKey = " + publicText2,
		/* 22 */ "AllowedIPs = 10.0.0.0/24",
	}, "\n")
	want := []string{
		"line 1: wg(8) refuses the byte order mark before this line; save the file as UTF-8 without one",
		"line 8: AllowedIPs: 10.0.1.7/24 means 10.0.1.0/24; write that",
		"line 9: Endpoint: 1234 is taken as the port; write [fe80::1]:1234",
		"line 10: Endpoint: wg(8) uses the last Endpoint alone; here line 9 is tried first",
		"line 12: MTU: this replaces line 3; remove one of the two",
		"line 14: PublicKey: this is the interface's own key, so this peer is left out; write the other end's",
		"line 16: PublicKey: the key is all zero, so this peer never has a session; give the key that wg pubkey prints at the other end",
		"line 18: PublicKey: the peer of line 7 has the same key; this section's AllowedIPs replace those there; join the two sections",
		"line 19: AllowedIPs: wg(8) refuses an empty value; remove the line",
		"line 22: AllowedIPs: this takes 10.0.0.0/24 from the peer of line 8; remove it from one of the two",
	}
	f := parse(t, text)
	var got []string
	for _, e := range f.Warnings() {
		got = append(got, e.Error())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := f.Validate(); err != nil {
		t.Errorf("Validate refused a file that has only warnings: %v", err)
	}
	if got := parse(t, full).Warnings(); got != nil {
		t.Errorf("Warnings of a correct file: %v, want none", got)
	}
	made := File{Peers: make([]Peer, 2)}
	for i := range made.Peers {
		made.Peers[i] = Peer{PublicKey: f.Peers[0].PublicKey}
	}
	if got := made.Warnings(); len(got) != 1 || got[0].Line != 0 || !strings.Contains(got[0].Error(), "another peer has the same key") {
		t.Errorf("two peers with the same key, made by a program: warnings %v, want one without a line", got)
	}
}

// TestJoined checks that sections with the same PublicKey make one peer, as they do in wg setconf.
func TestJoined(t *testing.T) {
	const a, b = "[Peer]\nPublicKey = " + publicText + "\n", "[Peer]\nPublicKey = " + publicText2 + "\n"
	f := parse(t, a+"PresharedKey = "+pskText+"\nPersistentKeepalive = 9\nEndpoint = 192.0.2.1:1\nAllowedIPs = 10.0.0.0/24, 10.0.1.0/24\n"+
		b+"AllowedIPs = 10.2.0.0/24\n"+
		a+"PersistentKeepalive = off\nAllowedIPs = +10.0.2.0/24, -10.0.0.0/24\n"+
		b+"AllowedIPs = 10.3.0.0/24\nEndpoint = 192.0.2.2:2\nPresharedKey = "+pskText+"\n")
	c := must(f.Config())
	psk := must(wireguard.ParsePresharedKey(pskText))
	if len(c.Peers) != 2 {
		t.Fatalf("Config returned %d peers, want 2", len(c.Peers))
	}
	for i, want := range []struct {
		endpoint string
		prefixes []netip.Prefix
	}{{"192.0.2.1:1", prefixes("10.0.1.0/24", "10.0.2.0/24")}, {"192.0.2.2:2", prefixes("10.3.0.0/24")}} {
		p := c.Peers[i]
		if p.PresharedKey != psk || p.PersistentKeepalive != 0 || p.Endpoint.Addr.String() != want.endpoint || !slices.Equal(p.AllowedIPs, want.prefixes) {
			t.Errorf("peer %d is %+v, want the values of its sections joined", i, p)
		}
	}
	if change := must(f.Change()); len(change.Peers) != 2 || !slices.Equal(change.Peers[1].AllowedIPs, prefixes("10.3.0.0/24")) {
		t.Errorf("Change has the peers %+v, want 2 joined peers", change.Peers)
	}
}

// TestMoreEndpoints checks that a peer's initial endpoint is the first one that has an address, and that a name without an
// address is an error only if the peer has no other endpoint.
func TestMoreEndpoints(t *testing.T) {
	const peer = "[Peer]\nPublicKey = " + publicText + "\n"
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	names := func() Resolution {
		return Resolution{Resolver: resolver{"a": {a}, "b": {b}, "gone": {notFound}, "slow": {timeout, a}}}
	}
	for endpoints, want := range map[string]string{
		"a:1 b:2":                "192.0.2.1:1",
		"gone:1 b:2":             "[2001:db8::1]:2",
		"gone:1 192.0.2.9:2 b:3": "192.0.2.9:2",
		"slow:1 b:3":             "[2001:db8::1]:3",
		"gone:1 gone:2":          "line 3: Endpoint: ",
	} {
		f := parse(t, peer+"Endpoint = "+strings.ReplaceAll(endpoints, " ", "\nEndpoint = ")+"\n")
		if got := len(f.Peers[0].Endpoints()); got != len(strings.Fields(endpoints)) {
			t.Errorf("%s: the peer has %d endpoints, want all of them", endpoints, got)
		}
		r := names()
		r.Waiting = func(host string, _ error, _ time.Duration) {
			t.Errorf("%s: Resolve waited for %s, although the peer has another endpoint", endpoints, host)
		}
		err := f.Resolve(t.Context(), r)
		if err != nil {
			if !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "correct the name") {
				t.Errorf("%s: Resolve returned %v, want an error for line 3 only if no endpoint has an address", endpoints, err)
			}
			continue
		}
		if c := must(f.Config()); c.Peers[0].Endpoint.Addr.String() != want {
			t.Errorf("%s: the initial endpoint is %v, want %s", endpoints, c.Peers[0].Endpoint, want)
		}
	}
	all, err := Resolution{Resolver: resolver{"a": {a}}}.LookupAll(t.Context(), "a")
	if err != nil || !slices.Equal(all, []netip.Addr{a, netip.MustParseAddr("198.51.100.99")}) {
		t.Errorf("LookupAll returned %v, error %v; want both addresses", all, err)
	}
}
