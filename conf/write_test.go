package conf

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	wireguard "github.com/seed-86b749af/wireguard"
)

// TestTextUnchanged checks that a file that was read is written back byte by byte.
func TestTextUnchanged(t *testing.T) {
	for _, text := range []string{
		"", "\n", "# only a comment", full, strings.ReplaceAll(full, "\n", "\r\n"), "\ufeff[Interface]\nMTU = 1420",
		"[Interface]\n\n\n# a\n\n# b\n[Peer]", "[Interface]\nMTU =\nPostUp =\n[Peer]\n[Interface]\nMTU = 1400\nPostUp = a\n", "[Peer]\nAllowedIPs = +10.0.0.0/8,-10.0.0.0/9\nallowedips=1.2.3.4 # c\n[Peer]\n",
	} {
		if got := must(parse(t, text).Text()); string(got) != text {
			t.Errorf("Text wrote the unchanged file\n%q\nas\n%q", text, got)
		}
	}
}

// TestTextEdited checks that Text writes a changed value in place of the old one, and keeps the rest of the file.
func TestTextEdited(t *testing.T) {
	const file = `# mine
[Interface]
PrivateKey = ` + privateText + `
ListenPort = 1 # old
listenport =  51820   # port
Address = 10.0.0.2/24, fd00::2/64 # both
Address = 10.9.9.9

PostUp = one # first
PostUp = two # second
PostUp = three # third
Unknown = kept

# alice
[Peer]
PublicKey = ` + publicText + `
AllowedIPs = 10.0.0.0/24 # lan
AllowedIPs = 10.1.0.0/24 # lab

# bob
# of sales
[Peer]
PublicKey = ` + publicText2 + `
Endpoint = 192.0.2.1:51820
`
	third := must(wireguard.ParsePublicKey("gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA="))
	for _, c := range []struct {
		name      string
		edit      func(f *File)
		old, want string // a part of the text, and what replaces it
	}{
		{"of two lines, the last is edited", func(f *File) { f.Interface.ListenPort = 7 }, "  51820   #", "  7   #"},
		{"a removed value removes all its lines", func(f *File) { f.Interface.ListenPort = 0 },
			"ListenPort = 1 # old\nlistenport =  51820   # port\n", ""},
		{"a new key is written after the last line", func(f *File) { f.Interface.MTU = 1280 }, "kept\n", "kept\nMTU = 1280\n"},
		{"an element of a list is removed", func(f *File) { f.Interface.Addresses = slices.Delete(f.Interface.Addresses, 0, 1) },
			"10.0.0.2/24, fd00::2/64 # both", "fd00::2/64 # both"},
		{"a line of a list is removed", func(f *File) { f.Interface.Addresses = f.Interface.Addresses[:2] }, "Address = 10.9.9.9\n", ""},
		{"an element is added to a list", func(f *File) {
			f.Interface.Addresses = append(f.Interface.Addresses, netip.MustParsePrefix("10.8.8.8/30"))
		}, "Address = 10.9.9.9\n", "Address = 10.9.9.9/32, 10.8.8.8/30\n"},
		{"a list is removed", func(f *File) { f.Interface.Addresses = nil },
			"Address = 10.0.0.2/24, fd00::2/64 # both\nAddress = 10.9.9.9\n", ""},
		{"a hook is removed with its comment", func(f *File) { f.Interface.PostUp = slices.Delete(f.Interface.PostUp, 1, 2) }, "PostUp = two # second\n", ""},
		{"a hook is inserted in the middle", func(f *File) { f.Interface.PostUp = slices.Insert(f.Interface.PostUp, 1, "new") },
			"# first\n", "# first\nPostUp = new\n"},
		{"a hook changes", func(f *File) { f.Interface.PostUp[1] = "2" }, "two # s", "2 # s"},
		{"hooks are added at the end", func(f *File) { f.Interface.PostUp = append(f.Interface.PostUp, "4", "5") },
			"# third\n", "# third\nPostUp = 4\nPostUp = 5\n"},
		{"a peer is removed with its comments", func(f *File) { f.Peers = f.Peers[:1] },
			"# bob\n# of sales\n[Peer]\nPublicKey = " + publicText2 + "\nEndpoint = 192.0.2.1:51820\n", ""},
		{"peers in another order stay where they are", func(f *File) { slices.Reverse(f.Peers) }, "", ""},
		{"a peer's endpoint changes", func(f *File) { f.Peers[1].Endpoint = Endpoint{Host: "2001:db8::9", Port: 9} },
			"192.0.2.1:51820", "[2001:db8::9]:9"},
		{"a new key of a peer, before its blank line", func(f *File) { f.Peers[0].PersistentKeepalive = 25 * time.Second },
			"# lab\n", "# lab\nPersistentKeepalive = 25\n"},
		{"a changed prefix joins the lines of its list", func(f *File) { f.Peers[0].AllowedIPs[0] = netip.MustParsePrefix("10.7.0.0/16") },
			"10.0.0.0/24 # lan\nAllowedIPs = 10.1.0.0/24 # lab", "10.7.0.0/16, 10.1.0.0/24 # lan"},
		{"a new peer", func(f *File) {
			f.Peers = append(f.Peers, Peer{PublicKey: third, AllowedIPs: prefixes("10.3.0.0/16", "fd03::/64")})
		}, "192.0.2.1:51820\n", "192.0.2.1:51820\n\n[Peer]\nPublicKey = " + third.String() + "\nAllowedIPs = 10.3.0.0/16, fd03::/64\n"},
		{"a copy of a peer is written as a new peer", func(f *File) {
			p := f.Peers[1]
			p.PublicKey = third
			f.Peers = append(f.Peers, p)
		}, "192.0.2.1:51820\n", "192.0.2.1:51820\n\n[Peer]\nPublicKey = " + third.String() + "\nEndpoint = 192.0.2.1:51820\n"},
		{"all in CRLF", func(f *File) { f.Interface.MTU = 1280 }, "kept\n", "kept\nMTU = 1280\n"},
	} {
		text, want := file, strings.Replace(file, c.old, c.want, 1)
		if c.name == "all in CRLF" {
			text, want = strings.ReplaceAll(text, "\n", "\r\n"), strings.ReplaceAll(want, "\n", "\r\n")
		}
		f := parse(t, text)
		c.edit(f)
		got, err := f.Text()
		if err != nil || string(got) != want {
			t.Errorf("%s: Text returned error %v and\n%s\nwant\n%s", c.name, err, got, want)
		}
		if back := parse(t, string(got)); c.name != "peers in another order stay where they are" && !reflect.DeepEqual(values(back), values(f)) {
			t.Errorf("%s: Parse reads the result as\n%+v\nwant\n%+v", c.name, values(back), values(f))
		}
	}
}

// TestTextOfTwoInterfaces checks that Text writes a changed key in the first of several [Interface] sections, and keeps the other
// keys in their sections. Text does not edit a line without a value.
func TestTextOfTwoInterfaces(t *testing.T) {
	text := "[Interface]\nMTU = 1300\nPostUp =\nPostUp = a\n[Interface]\nMTU =\nPostUp = b\nListenPort = 7\n"
	f := parse(t, text)
	if i := f.Interface; i.MTU != 0 || i.ListenPort != 7 || !slices.Equal(i.PostUp, []string{"a", "b"}) {
		t.Fatalf("Parse read the [Interface] sections as %+v", i)
	}
	f.Interface.PostUp = []string{"c", "b"}
	if got, want := string(must(f.Text())), "[Interface]\nMTU = 1300\nPostUp =\nPostUp = c\nPostUp = b\n[Interface]\nMTU =\nListenPort = 7\n"; got != want {
		t.Errorf("after a change of PostUp, Text wrote\n%s\nwant\n%s", got, want)
	}
	f.Interface.MTU = 1400
	if got := parse(t, string(must(f.Text()))); !reflect.DeepEqual(values(got), values(f)) {
		t.Errorf("Parse reads the result as %+v, want the same values", values(got))
	}
}

// TestTextNew checks the text of a File that was not read from a text, and of a file whose program adds the [Interface] section.
func TestTextNew(t *testing.T) {
	f := parse(t, full)
	made := values(f) // as if a program had made it
	text, err := made.Text()
	if err != nil {
		t.Fatal(err)
	}
	want := `[Interface]
PrivateKey = ` + privateText + `
ListenPort = 51820
FwMark = 0xca6c
Address = 10.0.0.2/24, fd00::2/64, 192.168.7.1/32
DNS = 10.0.0.1, fd00::1, example.com, corp.example
MTU = 1280
Table = 1234
PreUp = echo pre; echo %i
PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo "a = b"
PostUp = echo second
PreDown = echo down
PostDown = echo gone
SaveConfig = true

[Peer]
PublicKey = ` + publicText + `
PresharedKey = ` + pskText + `
AllowedIPs = 10.0.0.0/24, fd00::/64, 0.0.0.0/0
Endpoint = vpn.example.com:51820
PersistentKeepalive = 25

[Peer]
PublicKey = ` + publicText2 + `
AllowedIPs = 10.0.1.7/32
Endpoint = [2001:db8::1]:1
`
	if string(text) != want {
		t.Errorf("Text of a new File wrote something else than wanted:\n%s", text)
	}

	f = parse(t, "# peers alone\n\n[Peer]\nPublicKey = "+publicText)
	f.Interface.ListenPort = 5
	f.Peers[0].AllowedIPs = prefixes("10.0.0.0/8")
	want = "# peers alone\n\n[Interface]\nListenPort = 5\n\n[Peer]\nPublicKey = " + publicText + "\nAllowedIPs = 10.0.0.0/8\n"
	if got := must(f.Text()); string(got) != want {
		t.Errorf("Text with an added [Interface] section wrote something else than wanted:\n%s", got)
	}
}

// TestTextRefuses checks that Text and Strip refuse a value that would be read back differently.
func TestTextRefuses(t *testing.T) {
	for name, f := range map[string]File{
		"a hook with a comment":    {Interface: Interface{PostUp: []string{"a # b"}}},
		"a hook of two lines":      {Interface: Interface{PostUp: []string{"a\nPrivateKey = x"}}},
		"an empty hook":            {Interface: Interface{PostUp: []string{""}}},
		"a space before a hook":    {Interface: Interface{PostUp: []string{" a"}}},
		"a table of two words":     {Interface: Interface{Table: "a b"}},
		"two domains in one":       {Interface: Interface{Search: []string{"a,b"}}},
		"an invalid address":       {Interface: Interface{Addresses: make([]netip.Prefix, 1)}},
		"a negative MTU":           {Interface: Interface{MTU: -1}},
		"an endpoint without host": {Peers: []Peer{{Endpoint: Endpoint{Port: 1}}}},
		"an endpoint with a line":  {Peers: []Peer{{Endpoint: Endpoint{Host: "a\nb", Port: 1}}}},
		"half a second":            {Peers: []Peer{{PersistentKeepalive: time.Second / 2}}},
		"a negative keepalive":     {Peers: []Peer{{PersistentKeepalive: -time.Second}}},
		"a mapped prefix":          {Peers: []Peer{{AllowedIPs: prefixes("::ffff:1.2.3.4/128")}}},
	} {
		if text, err := f.Text(); err == nil {
			t.Errorf("%s: Text accepted the value and wrote\n%s", name, text)
		}
		if _, err := f.Strip(); err == nil {
			t.Errorf("%s: Strip accepted the value", name)
		}
	}
}

// FuzzParse checks that Parse does not panic, and that Text returns an unchanged file byte for byte. It also checks that Parse
// reads the same values back after Text has written them as a new file or into another file.
func FuzzParse(f *testing.F) {
	for _, s := range []string{full, foreignFile, "[Interface]\nMTU=1\nPostUp=\n[Interface]\nMTU=\n[Peer]\nEndpoint=a:1\nEndpoint=[b]:2\n", "[Peer]\nAllowedIPs=+1.2.3.4,-::/0\nEndpoint=[fe80::1%x]]:1", "\ufeff[interface]\r\nPostUp=a\rb", "[x]\n[y"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse(text)
		if err != nil {
			if file != nil || len(Errors(err)) == 0 {
				t.Fatalf("Parse returned the File %v with error %v, want no File and at least one *Error", file, err)
			}
			return
		}
		if got, err := file.Text(); err != nil || string(got) != string(text) {
			t.Fatalf("Text of the unchanged file returned %q, error %v", got, err)
		}
		file.Unknown()
		file.Validate()
		file.Warnings()
		if other, err := proxySyntax.Parse(text); err == nil {
			lines := strings.Count(string(text), "\n") + 1
			for _, s := range other.Sections() {
				for _, e := range s.Entries {
					if e.Line <= s.Line || e.Line > lines || !proxySyntax.known(s.Name, e.Key) {
						t.Fatalf("%q: Sections returned %+v for a file of %d lines, with a wrong line or an undeclared key", text, s, lines)
					}
				}
			}
		}
		want := values(file)
		same := func(how string, written *File) {
			t.Helper()
			text, err := written.Text()
			if err != nil {
				t.Fatalf("%s: Text: %v", how, err)
			}
			back, err := Parse(text)
			if err != nil {
				t.Fatalf("%s: Parse of the written text: %v\n%q", how, err, text)
			}
			if got := values(back); !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: Parse reads the written text %q as\n%+v\nwant\n%+v", how, text, got, want)
			}
		}
		same("written as a new file", &want)
		// The values of the fuzzed file replace those of another file.
		other := must(Parse([]byte(full + "[Interface]\nMTU = 1300\nFwMark = off\nPostDown =\nPostDown = gone too\n")))
		home := other.Interface.from
		other.Interface = want.Interface
		other.Interface.from = home
		for i, p := range want.Peers {
			if i < 2 {
				p.from = other.Peers[i].from
				other.Peers[i] = p
			} else {
				other.Peers = append(other.Peers, p)
			}
		}
		if len(want.Peers) < 2 {
			other.Peers = other.Peers[:len(want.Peers)]
		}
		same("written into another file", other)
		if stripped, err := file.Strip(); err != nil || !reflect.DeepEqual(values(stripped).Peers, firstEndpoints(want.Peers)) {
			t.Fatalf("Strip returned error %v or other peers than wanted", err)
		}
	})
}

// firstEndpoints returns copies of the peers without MoreEndpoints, as Strip should return them.
func firstEndpoints(peers []Peer) (out []Peer) {
	for _, p := range peers {
		p.MoreEndpoints = nil
		out = append(out, p)
	}
	return out
}

// TestStripKeepsWhatFollowsAnEndpoint checks that Strip leaves out a second endpoint, and keeps the keys after it.
func TestStripKeepsWhatFollowsAnEndpoint(t *testing.T) {
	f := parse(t, `[Peer]
PublicKey = TYeVGkVjUXSL7uBfrr53gRr5hgHkZlRMmp1OSKJUjAc=
Endpoint = 192.0.2.1:1
Endpoint = 192.0.2.2:2
AllowedIPs = 10.0.0.0/8
PersistentKeepalive = 25
`)
	stripped, err := f.Strip()
	if err != nil {
		t.Fatal(err)
	}
	text, _ := stripped.Text()
	for _, key := range []string{"192.0.2.1:1", "AllowedIPs = 10.0.0.0/8", "PersistentKeepalive = 25"} {
		if !strings.Contains(string(text), key) {
			t.Errorf("Strip removed %q:\n%s", key, text)
		}
	}
	if strings.Contains(string(text), "192.0.2.2") {
		t.Errorf("Strip kept the second endpoint:\n%s", text)
	}
}

// TestClone checks that a change of a copy does not change the file.
func TestClone(t *testing.T) {
	f := must(Parse([]byte(full)))
	before := must(f.Text())
	g := f.Clone()
	i := &g.Interface
	i.ListenPort, i.Addresses[0] = 1, netip.MustParsePrefix("192.0.2.9/32")
	for k := range g.Peers {
		p := &g.Peers[k]
		p.AllowedIPs = append(p.AllowedIPs[:0], netip.MustParsePrefix("192.0.2.8/32"))
		p.Endpoint.Port++
	}
	if after := must(f.Text()); string(after) != string(before) {
		t.Errorf("a change of the copy changed the file to\n%s", after)
	}
	if text := must(g.Text()); !strings.Contains(string(text), "192.0.2.9") || !strings.Contains(string(text), "192.0.2.8") {
		t.Errorf("the copy does not have its changes:\n%s", text)
	}
}
