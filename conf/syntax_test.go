package conf

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// proxySyntax declares what a proxy might keep in the file.
var proxySyntax = Syntax{
	Sections: map[string][]string{
		"":          {"WGConfig"},
		"Interface": {"CheckAlive", "CheckAliveInterval"},
		"Peer":      {"Name"},
		"Socks5":    {"BindAddress", "Username", "Password"},
		"http":      {"BindAddress"},
	},
	Semicolons: true,
}

const foreignFile = `WGConfig = other.conf # beside this file
; ini
[Interface]
MTU = 1400
checkalive = 10.0.0.1, 10.0.0.2

# a proxy
[socks5]
BindAddress = 127.0.0.1:1080
; another comment
PASSWORD = a = b

[HTTP]
[Peer]
PublicKey = ` + publicText + `
name = gateway
Endpoint = 192.0.2.1:1
Endpoint = [2001:db8::1]:2
`

// TestSections checks that a program gets the sections and keys that it declares, in order and with their line numbers. It also
// checks that these sections and keys are not unknown.
func TestSections(t *testing.T) {
	f := must(proxySyntax.Parse([]byte(foreignFile)))
	want := []Section{
		{"", 0, []Entry{{"WGConfig", "other.conf", 1}}},
		{"Interface", 3, []Entry{{"CheckAlive", "10.0.0.1, 10.0.0.2", 5}}},
		{"Socks5", 8, []Entry{{"BindAddress", "127.0.0.1:1080", 9}, {"Password", "a = b", 11}}},
		{"http", 13, nil},
		{"Peer", 14, []Entry{{"Name", "gateway", 16}}},
	}
	if got := f.Sections(); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if es := f.Unknown(); es != nil {
		t.Errorf("Unknown reports keys or sections that the Syntax declares: %v", es)
	}
	if _, err := f.Config(); err != nil {
		t.Errorf("Config: %v", err)
	}
	if got := must(f.Text()); string(got) != foreignFile {
		t.Errorf("Text changed the file:\n%s", got)
	}
	stripped := string(must(must(f.Strip()).Text()))
	if want := "; ini\n[Interface]\n\n[Peer]\nPublicKey = " + publicText + "\nEndpoint = 192.0.2.1:1\n"; stripped != want {
		t.Errorf("Strip returned\n%s\nwant\n%s", stripped, want)
	}
	if _, err := Parse([]byte(foreignFile)); err == nil || len(Errors(err)) != 3 {
		t.Errorf("Parse without the Syntax returned %v, want three errors, for the first key and two comments", err)
	}
	if parse(t, full).Sections() != nil {
		t.Error("Sections of a file parsed without a Syntax is not nil")
	}
}

// TestRefusesUnknown checks that Config, Change and Addition refuse unknown keys and sections and name the nearest known one,
// unless AllowUnknown is set.
func TestRefusesUnknown(t *testing.T) {
	const peer = "[Peer]\nPublicKey = " + publicText + "\n"
	for text, want := range map[string]string{
		peer + "AllowedIP = ::/0\n":                        "line 3: AllowedIP: not a key of [Peer]; write AllowedIPs if that is meant",
		peer + "PersistantKeepalive = 25\n":                "line 3: PersistantKeepalive: not a key of [Peer]; write PersistentKeepalive if that is meant",
		"[Interface]\nAdress = 10.0.0.1\n":                 "line 2: Adress: not a key of [Interface]; write Address if that is meant",
		"[Interface]\nPostup2 = x\n":                       "line 2: Postup2: not a key of [Interface]; write PostUp if that is meant",
		"[Interface]\nCheckAlives = 10.0.0.1\n":            "line 2: CheckAlives: not a key of [Interface]; write CheckAlive if that is meant",
		"[Interface]\nBindAddress = 10.0.0.1:1\n":          "line 2: BindAddress: not a key of [Interface], but a key of [Socks5]; move it there",
		"[Socks5]\nBindAdress = 127.0.0.1:1\n":             "line 2: BindAdress: not a key of [Socks5]; write BindAddress if that is meant",
		"[Sock5]\nBindAddress = 127.0.0.1:1\n":             "line 1: [Sock5]: this section is unknown; write [Socks5] if that is meant",
		"[Peers]\n":                                        "line 1: [Peers]: this section is unknown; write [Peer] if that is meant",
		"[SNI]\n":                                          "line 1: [SNI]: this section is unknown; want [Interface], [Peer], [Socks5] or [http]",
		"[" + privateText[:20] + "]\n":                     "line 1: this section is unknown; want [Interface], [Peer], [Socks5] or [http]",
		"[Interface]\n[Peer\n":                             "line 2: [Peer]: this section is unknown; write [Peer] if that is meant",
		peer + "Reserved = 1, 2, 3\n":                      "line 3: Reserved: not a key of [Peer], but the client identifier of Cloudflare WARP",
		"[Interface]\nH1 = 1\n":                            "line 2: H1: not a key of [Interface], but one of AmneziaWG, which disguises its packets",
		"[Interface]\nI1 = <b 0xc0000000010897a297ecc34c>": "line 2: I1: not a key of [Interface], but one of AmneziaWG",
	} {
		f := must(proxySyntax.Parse([]byte(text)))
		for how, get := range map[string]func() error{
			"Config":   func() error { _, err := f.Config(); return err },
			"Change":   func() error { _, err := f.Change(); return err },
			"Addition": func() error { _, err := f.Addition(); return err },
		} {
			if err := get(); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %s returned %v, want an error that begins with %s", text, how, err, want)
			}
		}
		lax := proxySyntax
		lax.AllowUnknown = true
		f = must(lax.Parse([]byte(text)))
		if _, err := f.Config(); err != nil || len(f.Unknown()) != 1 {
			t.Errorf("%q: with AllowUnknown, Config returned %v and Unknown returned %v, want no error and one unknown", text, err, f.Unknown())
		}
	}
}

// TestAmnezia checks that the error for each key of AmneziaWG names AmneziaWG, and that no key of WireGuard is mistaken for a key
// of AmneziaWG.
func TestAmnezia(t *testing.T) {
	names := []string{"Jc", "Jmin", "Jmax", "Itime"}
	for n := range 5 {
		names = append(names, fmt.Sprintf("I%d", n+1), fmt.Sprintf("J%d", n+1))
	}
	for n := range 4 {
		names = append(names, fmt.Sprintf("S%d", n+1), fmt.Sprintf("H%d", n+1))
	}
	for _, n := range names {
		f := parse(t, "[Interface]\n"+n+" = 5\n")
		if _, err := f.Config(); err == nil || !strings.Contains(err.Error(), "line 2: "+n+": ") || !strings.Contains(err.Error(), "AmneziaWG") {
			t.Errorf("%s: Config returned %v, want an error that names the key and AmneziaWG", n, err)
		}
	}
	for _, n := range append(new(Syntax).keys(sectionInterface), new(Syntax).keys(sectionPeer)...) {
		if foreign(strings.ToLower(n)) != "" {
			t.Errorf("%s, a key of WireGuard, is mistaken for another program's key", n)
		}
	}
}

// TestNearest checks that nearest returns the most similar name, and returns no name for a word that resembles none of them.
func TestNearest(t *testing.T) {
	for word, want := range map[string]string{
		"postupp": "PostUp", "predwn": "PreDown", "mt": "MTU", "dn": "DNS", "x": "", "s1": "", "tables": "Table", "publickeyy": "PublicKey",
		"listen_port": "ListenPort", "allowedipss": "AllowedIPs", "": "",
	} {
		names := append(new(Syntax).keys(sectionInterface), new(Syntax).keys(sectionPeer)...)
		if got := nearest(names, word); got != want {
			t.Errorf("%q: nearest returned %q, want %q", word, got, want)
		}
	}
}
