package conf

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	wireguard "github.com/seed-86b749af/wireguard"
)

// Keys from the documentation of wg(8).
const (
	privateText = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	pskText     = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="
	publicText  = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
	publicText2 = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
)

// full has every key, and the comments and white space that people put around keys.
const full = `# the office
[Interface] # home
PrivateKey = ` + privateText + ` # never share
 listen port=51820
FWMARK = 0xca6c
Address = 10.0.0.2/24, fd00::2/64   # two
Address = 192.168.7.1
DNS = 10.0.0.1, example.com
dns = fd00::1 corp.example
MTU = 1280
Table = 1234
PreUp = echo pre; echo %i
PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo "a = b"
PostUp = echo second
PreDown = echo down
PostDown = echo gone
SaveConfig = true
Jc = 4

# the gateway
[Peer]
PublicKey = ` + publicText + `
PresharedKey = ` + pskText + `
AllowedIPs = 10.0.0.0/24, fd00::/64
AllowedIPs = 0.0.0.0/0
Endpoint = vpn.example.com:51820
PersistentKeepalive = 25

[peer]
PublicKey=` + publicText2 + `
ALLOWEDIPS=10.0.1.7
Endpoint=[2001:db8::1]:1
PersistentKeepalive=OFF
`

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// values returns the values of f, without its text.
func values(f *File) File {
	v := File{Interface: f.Interface}
	v.Interface.from = 0
	for _, p := range f.Peers {
		p.from = 0
		v.Peers = append(v.Peers, p)
	}
	return v
}

func TestParseFull(t *testing.T) {
	got := values(parse(t, full))
	want := File{
		Interface: Interface{
			PrivateKey: must(wireguard.ParsePrivateKey(privateText)), ListenPort: 51820, FwMark: 0xca6c,
			Addresses: prefixes("10.0.0.2/24", "fd00::2/64", "192.168.7.1/32"),
			DNS:       []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			Search:    []string{"example.com", "corp.example"},
			MTU:       1280, Table: "1234", SaveConfig: true,
			PreUp:   []string{"echo pre; echo %i"},
			PostUp:  []string{`iptables -A FORWARD -i %i -j ACCEPT; echo "a = b"`, "echo second"},
			PreDown: []string{"echo down"}, PostDown: []string{"echo gone"},
		},
		Peers: []Peer{{
			PublicKey: must(wireguard.ParsePublicKey(publicText)), PresharedKey: must(wireguard.ParsePresharedKey(pskText)),
			AllowedIPs: prefixes("10.0.0.0/24", "fd00::/64", "0.0.0.0/0"),
			Endpoint:   Endpoint{Host: "vpn.example.com", Port: 51820}, PersistentKeepalive: 25 * time.Second,
		}, {
			PublicKey: must(wireguard.ParsePublicKey(publicText2)), AllowedIPs: prefixes("10.0.1.7/32"),
			Endpoint: Endpoint{Host: "2001:db8::1", Port: 1},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestParseValues checks that Parse reads single lines as wg(8) and wg-quick(8) do.
func TestParseValues(t *testing.T) {
	for _, c := range []struct {
		line string
		get  func(*File) any
		want any
	}{
		{"FwMark = off", func(f *File) any { return f.Interface.FwMark }, uint32(0)},
		{"FwMark = 010", func(f *File) any { return f.Interface.FwMark }, uint32(10)},
		{"FwMark = 4294967295", func(f *File) any { return f.Interface.FwMark }, uint32(1<<32 - 1)},
		{"ListenPort = 0", func(f *File) any { return f.Interface.ListenPort }, uint16(0)},
		{"ListenPort = 1\nListenPort = 2", func(f *File) any { return f.Interface.ListenPort }, uint16(2)},
		{"Table = OFF", func(f *File) any { return f.Interface.Table }, "off"},
		{"Table = my.table", func(f *File) any { return f.Interface.Table }, "my.table"},
		{"SaveConfig = True\nsaveconfig = FALSE", func(f *File) any { return f.Interface.SaveConfig }, false},
		{"PostUp = a ; b # c", func(f *File) any { return f.Interface.PostUp }, []string{"a ; b"}},
		{"DNS = ~.", func(f *File) any { return f.Interface.Search }, []string{"~."}},
		{"MTU = 1420\r", func(f *File) any { return f.Interface.MTU }, 1420},
	} {
		if got := c.get(parse(t, "[Interface]\n"+c.line+"\n")); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: got %v, want %v", c.line, got, c.want)
		}
	}
	for _, c := range []struct {
		line          string
		add, remove   string
		isIncremental bool
	}{
		{line: "AllowedIPs =", add: "[]", remove: "[]"},
		{line: "AllowedIPs = 10.0.0.0 /24 ,10.1.1.1", add: "[10.0.0.0/24 10.1.1.1/32]", remove: "[]"},
		{line: "AllowedIPs = +10.0.0.0/24, -10.1.0.0/16", add: "[10.0.0.0/24]", remove: "[10.1.0.0/16]", isIncremental: true},
		{line: "AllowedIPs = 10.0.0.1/24\nAllowedIPs = -10.0.0.0/24", add: "[]", remove: "[10.0.0.0/24]", isIncremental: true},
		{line: "AllowedIPs = -10.0.0.0/24, 10.0.0.9/24", add: "[10.0.0.9/24]", remove: "[]", isIncremental: true},
	} {
		p := parse(t, "[Peer]\n"+c.line+"\n").Peers[0]
		if fmt.Sprint(p.AllowedIPs) != c.add || fmt.Sprint(p.RemoveAllowedIPs) != c.remove || p.Incremental != c.isIncremental {
			t.Errorf("%q: AllowedIPs %v, RemoveAllowedIPs %v, Incremental %v; this differs from the table", c.line, p.AllowedIPs, p.RemoveAllowedIPs, p.Incremental)
		}
	}
}

func TestParseEndpoint(t *testing.T) {
	for _, c := range []struct{ text, host, back string }{
		{"192.0.2.1:51820", "192.0.2.1", "192.0.2.1:51820"},
		{"[2001:db8::1]:51820", "2001:db8::1", "[2001:db8::1]:51820"},
		{"[fe80::1%eth0]:51820", "fe80::1%eth0", "[fe80::1%eth0]:51820"},
		{"fe80::1:51820", "fe80::1", "[fe80::1]:51820"}, // wg(8) accepts this; 51820 is too long to be a part of the address
		{"a_b.example.com.:51820", "a_b.example.com.", "a_b.example.com.:51820"},
		{"[name]:51820", "name", "name:51820"},
		{"2001:db8::1:51820", "2001:db8::1", "[2001:db8::1]:51820"},
	} {
		e, err := ParseEndpoint(c.text)
		if err != nil || e.Host != c.host || e.Port != 51820 || e.String() != c.back {
			t.Errorf("ParseEndpoint(%s) returned %+v, written as %v, error %v; this differs from the table", c.text, e, e.String(), err)
		}
	}
	for _, s := range []string{
		"", ":", ":1", "a", "a:", "a:0", "a:65536", "a:http", "a:+1", "[::1]", "[::1:51820", "[]:1", "2001:db8::1", "[fe80::1:1]",
		"0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[ff02::1]:1", "1.2.3:1", "a b:1", "-a:1", "a/b:1", "[::ffff:0.0.0.0]:1",
	} {
		if e, err := ParseEndpoint(s); err == nil {
			t.Errorf("ParseEndpoint accepted %q as %+v, want an error", s, e)
		}
	}
}

// TestErrors checks that Parse reports all errors, each with its line and key, and that none contains a secret or a part of one.
func TestErrors(t *testing.T) {
	const misplaced = "qM3vY1S9ZK4bZ0wT8pJ5m9VdLx2rUe7oNc6yHiGfAkE="
	text := strings.Join([]string{
		/* 1 */ "ListenPort = 1",
		/* 2 */ "[Interface]",
		/* 3 */ "PrivateKey = " + misplaced[1:],
		/* 4 */ misplaced,
		/* 5 */ misplaced[:43],
		/* 6 */ "ListenPort = 65536",
		/* 7 */ "FwMark = 0xfffffffff",
		/* 8 */ "Address = 10.0.0.1/33, hello, fe80::1%eth0/64",
		/* 9 */ "DNS = 1.2.3.4.5, fd00:::1",
		/* 10 */ "MTU = 67",
		/* 11 */ "Table = a b",
		/* 12 */ "SaveConfig = yes",
		/* 13 */ "PostUp =",
		/* 14 */ "[Peer]",
		/* 15 */ "PublicKey = " + misplaced[:43] + "F",
		/* 16 */ "PresharedKey = " + misplaced + "A",
		/* 17 */ "AllowedIPs = 10.0.0.0/24,, ::ffff:1.2.3.4/128, 10.0.0.0/-1",
		/* 18 */ "Endpoint = " + misplaced,
		/* 19 */ "PersistentKeepalive = 65536",
		/* 20 */ "[Interface]",
		/* 21 */ "Address =",
		/* 22 */ "ListenPort = \x00",
		/* 23 */ "MTU = " + misplaced,
	}, "\n")
	f, err := Parse([]byte(text))
	if f != nil || err == nil {
		t.Fatalf("Parse returned %v, error %v; want no File and an error", f, err)
	}
	var got []string
	for _, e := range Errors(err) {
		got = append(got, fmt.Sprintf("%d %s", e.Line, e.Key))
	}
	want := []string{
		"1 ListenPort", "3 PrivateKey", "5 ", "6 ListenPort", "7 FwMark", "8 Address", "8 Address", "8 Address", "9 DNS", "9 DNS",
		"10 MTU", "11 Table", "12 SaveConfig", "15 PublicKey", "16 PresharedKey", "17 AllowedIPs", "17 AllowedIPs", "17 AllowedIPs",
		"18 Endpoint", "19 PersistentKeepalive", "22 ", "23 MTU",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q\n%v", got, want, err)
	}
	if len(strings.Split(err.Error(), "\n")) != len(want) {
		t.Errorf("the text does not have one line per error:\n%v", err)
	}
	if leaks(err.Error(), misplaced) {
		t.Fatalf("an error contains a part of a key:\n%v", err)
	}
}

// leaks reports whether a text contains eight consecutive characters of a key.
func leaks(text, key string) bool {
	for i := range len(key) - 7 {
		if strings.Contains(text, key[i:i+8]) {
			return true
		}
	}
	return false
}

// TestBrokenKeys checks that no error contains a part of a secret, wherever the secret is broken into lines, and whatever name is
// before it.
func TestBrokenKeys(t *testing.T) {
	before := []string{"", "[Interface]\n", "[Peer]\n", "[Interface]\nJc = ", "[Interface]\nUnknown"}
	for _, n := range new(Syntax).keys(sectionInterface) {
		before = append(before, "[Interface]\n"+n+" = ", "[Interface]\n"+n)
	}
	for _, n := range new(Syntax).keys(sectionPeer) {
		before = append(before, "[Peer]\n"+n+" = ", n+" = ")
	}
	breaks := []string{"", "\n", "\r\n", "\n\n ", " ", "\t", ",", ", ", "=", " = ", "\n= ", "#", "\n# ", "-", "\nDNS = ", "\n[Peer]\nEndpoint = ", "\\\n", `"`, "\x00"}
	after := []string{"", "\n", " # home", " \nMTU = 1420\n", ":51820", "/24"}
	rapid.Check(t, func(t *rapid.T) {
		var secret [32]byte
		rand.NewChaCha8([32]byte{byte(rapid.Uint16().Draw(t, "seed")), byte(rapid.Uint16().Draw(t, "more of it"))}).Read(secret[:])
		key := base64.StdEncoding.EncodeToString(secret[:])
		head, tail := rapid.SampledFrom(before).Draw(t, "before"), rapid.SampledFrom(after).Draw(t, "after")
		first, second := rapid.SampledFrom(breaks).Draw(t, "break"), rapid.SampledFrom(breaks).Draw(t, "second break")
		apart := rapid.IntRange(0, len(key)).Draw(t, "apart")
		for i := range len(key) + 1 {
			j := min(i+apart, len(key))
			text := head + key[:i] + first + key[i:j] + second + key[j:] + tail
			f, err := Parse([]byte(text))
			var said strings.Builder
			if f != nil {
				for _, e := range f.Unknown() {
					fmt.Fprintln(&said, e)
				}
				fmt.Fprintln(&said, f.Validate())
			}
			fmt.Fprintln(&said, err)
			if leaks(said.String(), key) {
				t.Fatalf("errors for %q contain a part of the key:\n%s", text, &said)
			}
		}
	})
}

// TestPrintable checks that errors contain misspelt names and the names of other programs' keys, but not the second half of a
// broken secret.
func TestPrintable(t *testing.T) {
	for line, want := range map[string]string{
		"PersistantKeepalive = 25": "PersistantKeepalive", "Adress = 10.0.0.1": "Adress", "Allowed IP = ::/0": "AllowedIP", "Jmin = 8": "Jmin",
		"S1 = 3": "S1", "DNS =": "DNS", "endpoint =": "endpoint", "abcdefgh =": "", "abc =": "", "abc = # d": "", "SomethingElse = 1": "",
		"S_1 = 3": "", "Jc = = ": "Jc",
	} {
		name, value, _ := cut(strings.Split(line, "#")[0])
		if got := new(Syntax).printable(name, value); got != want {
			t.Errorf("%q: printable returned %q, want %q", line, got, want)
		}
	}
	for value, quoted := range map[string]bool{
		"70000": true, "123456789": true, "0xfffffffff": true, "hello": true, "vpn.mycompany.example": true, "[2001:db8::1]": true,
		"10.0.0.0/33": true, "2001:db8:0000:0000:1111:2222:3333:4444": true, "a b": true, "-1": true,
		"sometimes": false, "yAnz5TF+": false, "yAnz5TF.lXXJte14": false, "aaaaaaaaaaaaaaaaaaaa.example": false, "-yAnz5TFa": false, "m6s15aby,bomjec=:51820": false, "2001:db8::1111/129": true, "a.b/abcdefgh": false,
	} {
		if got := quote(value) != "the value"; got != quoted {
			t.Errorf("%q: quote quoted the value: %v, want %v", value, got, quoted)
		}
	}
}

// TestUnknown checks that unknown keys and sections are kept and reported, with the nearest known name and without the value.
func TestUnknown(t *testing.T) {
	text := "[Interface]\nPrivteKey = " + privateText + "\nPublicKey = x\nJx = 4\n" + pskText + "\n[Peer]\n" +
		"PublicKey = " + publicText + "\nAllowedIP = 10.0.0.0/8\n[Wireguard]\nMTU = 1\n"
	f := parse(t, text)
	var got []string
	for _, e := range f.Unknown() {
		got = append(got, e.Error())
	}
	want := []string{
		"line 2: PrivteKey: not a key of [Interface]; write PrivateKey if that is meant",
		"line 3: PublicKey: not a key of [Interface], but a key of [Peer]; move it there",
		"line 4: Jx: not a key of [Interface]; the keys are PrivateKey, ListenPort, FwMark, Address, DNS, MTU, Table, PreUp, PostUp, PreDown, PostDown, SaveConfig",
		"line 5: not a key of [Interface]; the keys are PrivateKey, ListenPort, FwMark, Address, DNS, MTU, Table, PreUp, PostUp, PreDown, PostDown, SaveConfig",
		"line 8: AllowedIP: not a key of [Peer]; write AllowedIPs if that is meant",
		"line 9: this section is unknown; want [Interface] or [Peer]",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Unknown returned other errors than wanted:\n%s", strings.Join(got, "\n"))
	}
	if back := must(f.Text()); string(back) != text {
		t.Errorf("Text changed the unknown keys:\n%s", back)
	}
}

// TestNothingPrintsKeys checks that fmt does not print the keys of a File, and that encoding/json refuses them.
func TestNothingPrintsKeys(t *testing.T) {
	f := parse(t, full)
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&out, verb+"\n", f)
		fmt.Fprintf(&out, verb+"\n", f.Interface)
		fmt.Fprintf(&out, verb+"\n", f.Peers)
	}
	if j, err := json.Marshal(f); err == nil {
		t.Errorf("json.Marshal wrote a File, want an error, because it contains keys: %s", j)
	}
	private, psk := must(wireguard.ParsePrivateKey(privateText)), must(wireguard.ParsePresharedKey(pskText))
	for _, secret := range []string{privateText, pskText, fmt.Sprintf("%x", private[:]), fmt.Sprintf("%x", psk[:])} {
		if strings.Contains(out.String(), secret[:20]) {
			t.Errorf("fmt printed a key:\n%s", out.String())
		}
	}
}

func TestValidate(t *testing.T) {
	f := parse(t, "[Interface]\nPrivateKey = "+privateText+"\n[Peer]\nAllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = "+publicText+"\n")
	want := "line 3: PublicKey: this peer has no key; give the key that wg pubkey prints at the other end"
	if got := f.Validate(); got == nil || got.Error() != want {
		t.Errorf("Validate returned another error than wanted:\n%v", got)
	}
	if _, err := f.Config(); err == nil {
		t.Error("Config succeeded for a peer without a key")
	}
	if _, err := f.Text(); err != nil {
		t.Errorf("Text failed for an unchanged file: %v", err)
	}
	if err := parse(t, full).Validate(); err != nil {
		t.Errorf("Validate refused a correct file: %v", err)
	}
}

// TestErrorsOfOthers checks that Errors finds nothing in an error of another package, and finds a single *Error.
func TestErrorsOfOthers(t *testing.T) {
	if es := Errors(errors.New("x")); es != nil {
		t.Errorf("Errors found %v in an error of another package", es)
	}
	one := &Error{Line: 3, Key: "MTU", Err: errors.ErrUnsupported}
	if es := Errors(one); len(es) != 1 || !errors.Is(es[0], errors.ErrUnsupported) {
		t.Errorf("Errors returned %v, want the one error", es)
	}
}

func TestExpandHook(t *testing.T) {
	if got := ExpandHook("ip link show %i; echo %i %%i", "wg0"); got != "ip link show wg0; echo wg0 %wg0" {
		t.Error("ExpandHook returned a wrong command:", got)
	}
}

func TestReadFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "wg0.conf")
	if _, err := ReadFile(name); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), name) {
		t.Errorf("ReadFile of a file that does not exist: error %v, want fs.ErrNotExist and the file's name", err)
	}
	for text, lines := range map[string][]int{full: nil, "[Interface]\nMTU = 9\n[Peer]\nEndpoint = x\n": {2, 4}} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := ReadFile(name)
		var got []int
		for _, e := range Errors(err) {
			got = append(got, e.Line)
		}
		if !slices.Equal(got, lines) || (f == nil) != (lines != nil) || err != nil && !strings.HasPrefix(err.Error(), name+": line 2: MTU: ") {
			t.Errorf("ReadFile returned %v, with errors in the lines %v, want them in %v", err, got, lines)
		}
	}
}

func TestAddrs(t *testing.T) {
	f := must(Parse([]byte("[Interface]\nAddress = 10.0.0.2/24, fd00::2/64\nAddress = 192.168.7.1, 10.0.0.2/16\n")))
	if got := fmt.Sprint(f.Addrs()); got != "[10.0.0.2 fd00::2 192.168.7.1]" {
		t.Errorf("Addrs returned %s, want each address once, without lengths", got)
	}
	if got := new(File).Addrs(); got != nil {
		t.Errorf("Addrs of an empty File returned %v", got)
	}
}

// TestNoKey checks that a line with a value but without a key is an error that does not quote the value.
func TestNoKey(t *testing.T) {
	for _, line := range []string{"=", "= secret", " \t= secret", "=PostUp"} {
		_, err := Parse([]byte("[Interface]\nMTU = 1300\n" + line + "\n"))
		if es := Errors(err); len(es) != 1 || es[0].Line != 3 || strings.Contains(err.Error(), "secret") {
			t.Errorf("Parse of the line %q returned %v, want one error about line 3 without the value", line, err)
		}
	}
}
