package conf

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	wireguard "github.com/seed-86b749af/wireguard"
)

func TestConfig(t *testing.T) {
	f := must(Syntax{AllowUnknown: true}.Parse([]byte(full)))
	if _, err := f.Config(); err == nil || !strings.HasPrefix(err.Error(), "line 26: Endpoint: ") {
		t.Errorf("Config with a name that was not resolved: error %v, want one for line 26", err)
	}
	f.Peers[0].Endpoint.Addr = netip.MustParseAddr("192.0.2.1")
	c, err := f.Config()
	if err != nil {
		t.Fatal(err)
	}
	want := wireguard.Config{
		PrivateKey: f.Interface.PrivateKey, ListenPort: 51820, FirewallMark: 0xca6c,
		Peers: []wireguard.PeerConfig{{
			PublicKey: f.Peers[0].PublicKey, PresharedKey: f.Peers[0].PresharedKey,
			Endpoint:            wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.1:51820")),
			AllowedIPs:          prefixes("10.0.0.0/24", "fd00::/64", "0.0.0.0/0"),
			PersistentKeepalive: 25 * time.Second,
		}, {
			PublicKey:  f.Peers[1].PublicKey,
			Endpoint:   wireguard.EndpointOf(netip.MustParseAddrPort("[2001:db8::1]:1")),
			AllowedIPs: prefixes("10.0.1.7/32"),
		}},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

// TestChangeAndAddition checks what Change and Addition set, and what they leave as it is.
func TestChangeAndAddition(t *testing.T) {
	const peer = "[Peer]\nPublicKey = " + publicText + "\n"
	for _, c := range []struct {
		text                      string
		change, addition          wireguard.Change
		changePeer, additionPeers func(p *wireguard.PeerChange)
	}{
		{text: peer,
			change: wireguard.Change{PrivateKey: new(wireguard.PrivateKey), FirewallMark: new(uint32), ReplacePeers: true},
			changePeer: func(p *wireguard.PeerChange) {
				p.PresharedKey, p.PersistentKeepalive = new(wireguard.PresharedKey), new(time.Duration)
			},
		},
		{text: "[Interface]\nListenPort = 0\nFwMark = off\n" + peer + "PersistentKeepalive = off\nPresharedKey = " + strings.Repeat("A", 43) + "=\n",
			change:   wireguard.Change{PrivateKey: new(wireguard.PrivateKey), FirewallMark: new(uint32), ListenPort: new(uint16), ReplacePeers: true},
			addition: wireguard.Change{FirewallMark: new(uint32), ListenPort: new(uint16)},
			changePeer: func(p *wireguard.PeerChange) {
				p.PresharedKey, p.PersistentKeepalive = new(wireguard.PresharedKey), new(time.Duration)
			},
			additionPeers: func(p *wireguard.PeerChange) {
				p.PresharedKey, p.PersistentKeepalive = new(wireguard.PresharedKey), new(time.Duration)
			},
		},
		{text: "[Interface]\nPrivateKey = " + privateText + "\nListenPort = 7\nFwMark = 9\n" + peer + "PersistentKeepalive = 5\nPresharedKey = " + pskText +
			"\nEndpoint = 192.0.2.1:5\nAllowedIPs = +10.0.0.0/8, -10.0.0.0/9\n",
			change:        wireguard.Change{PrivateKey: new(must(wireguard.ParsePrivateKey(privateText))), FirewallMark: new(uint32(9)), ListenPort: new(uint16(7)), ReplacePeers: true},
			addition:      wireguard.Change{PrivateKey: new(must(wireguard.ParsePrivateKey(privateText))), FirewallMark: new(uint32(9)), ListenPort: new(uint16(7))},
			changePeer:    fullPeer,
			additionPeers: fullPeer,
		},
	} {
		f := parse(t, c.text)
		key := must(wireguard.ParsePublicKey(publicText))
		for _, side := range []struct {
			name string
			get  func() (wireguard.Change, error)
			want wireguard.Change
			peer func(*wireguard.PeerChange)
		}{{"change", f.Change, c.change, c.changePeer}, {"addition", f.Addition, c.addition, c.additionPeers}} {
			p := wireguard.PeerChange{PublicKey: key, ReplaceAllowedIPs: true}
			if side.peer != nil {
				side.peer(&p)
			}
			side.want.Peers = []wireguard.PeerChange{p}
			got, err := side.get()
			if err != nil || !reflect.DeepEqual(got, side.want) {
				t.Errorf("%s of\n%s: error %v\n%+v\nwant\n%+v", side.name, c.text, err, got, side.want)
			}
		}
	}
}

func fullPeer(p *wireguard.PeerChange) {
	p.PresharedKey, p.PersistentKeepalive = new(must(wireguard.ParsePresharedKey(pskText))), new(5*time.Second)
	p.Endpoint = new(wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.1:5")))
	p.ReplaceAllowedIPs, p.AllowedIPs, p.RemoveAllowedIPs = false, prefixes("10.0.0.0/8"), prefixes("10.0.0.0/9")
}

// TestAddressesTwice checks that a repeated address is an error with its line only if the system would refuse it.
func TestAddressesTwice(t *testing.T) {
	for text, want := range map[string]string{
		"Address = 10.0.0.1/24, fd00::1/64\nAddress = 10.0.0.2/24":          "",
		"Address = 10.0.0.1/24\nAddress = 10.0.0.1/32":                      "",
		"Address = 10.0.0.1/24\nMTU = 1400\nAddress = fd00::1, 10.0.0.1/24": "line 4: Address: line 2 has 10.0.0.1 already; remove one of the two",
		"MTU = 1400\nAddress = 10.0.0.1/24, 10.0.0.1/24":                    "line 3: Address: 10.0.0.1 appears twice; remove one of the two",
		"Address = fd00::1/64\nAddress = fd00:0::1/128":                     "line 3: Address: line 2 has fd00::1 already; remove one of the two",
	} {
		err := parse(t, "[Interface]\n"+text+"\n").Validate()
		if err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("%q: Validate returned %v, want %q", text, err, want)
		}
	}
	f := new(File)
	f.Interface.Addresses = prefixes("10.0.0.1/24", "10.0.0.1/24")
	if err := f.Validate(); err == nil || err.Error() != "Address: 10.0.0.1 appears twice; remove one of the two" {
		t.Errorf("a repeated address in a File made by a program: error %v, want one without a line", err)
	}
	f = parse(t, "[Interface]\nAddress = 10.0.0.1/24\n")
	f.Interface.Addresses = prefixes("10.0.0.3/24", "10.0.0.3/24")
	if err := f.Validate(); err == nil || err.Error() != "line 2: Address: 10.0.0.3 appears twice; remove one of the two" {
		t.Errorf("a repeated address set by a program in a parsed File: error %v, want one for line 2", err)
	}
}
