package forms

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestParseKey checks that a key has one text form, and that an error never repeats the text.
func TestParseKey(t *testing.T) {
	want := [32]byte{31: 1}
	text := base64.StdEncoding.EncodeToString(want[:])
	var k [32]byte
	if err := ParseKey(&k, []byte(text), "key"); err != nil || k != want {
		t.Fatalf("ParseKey of %q returned the key %x, error %v", text, k, err)
	}
	for _, text := range []string{"", text[:43], text + "=", text + "\n", text[:42] + "F=", strings.Repeat("!", 44), base64.StdEncoding.EncodeToString(make([]byte, 33))} {
		if err := ParseKey(&k, []byte(text), "some key"); err == nil || !strings.HasPrefix(err.Error(), "wireguard: some key: ") || k != want ||
			text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("ParseKey of %q: error %v, want one that does not repeat the text; the key is %x, want it unchanged", text, err, k)
		}
	}
	if err := Key(&k, make([]byte, 31), "some key"); err == nil || k != want {
		t.Errorf("Key with 31 bytes: error %v, want one; the key is %x, want it unchanged", err, k)
	}
	if err := Key(&k, bytes.Repeat([]byte{7}, 32), "some key"); err != nil || k[31] != 7 {
		t.Errorf("Key with 32 bytes: error %v, want none; the key is %x", err, k)
	}
}

func TestNames(t *testing.T) {
	names := []string{"none", "one"}
	var v uint8
	for i, name := range names {
		if b, err := Name("number", names, uint8(i)); string(b) != name || err != nil {
			t.Errorf("Name of %d is %q, error %v", i, b, err)
		}
		if err := ParseName("number", names, &v, []byte(name)); int(v) != i || err != nil {
			t.Errorf("ParseName of %q returned %d, error %v", name, v, err)
		}
	}
	if b, err := Name("number", names, uint8(2)); err == nil {
		t.Errorf("Name of the unknown value 2 is %q, want an error", b)
	}
	if err := ParseName("number", names, &v, []byte("two")); err == nil || v != 1 {
		t.Errorf("ParseName of the unknown name two set %d, error %v; want 1 unchanged and an error", v, err)
	}
}

func TestParseEndpoint(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("[fe80::1%eth0]:1")
	for _, c := range []struct {
		text   string
		remote netip.AddrPort
		source string
		index  uint32
	}{
		{"", netip.AddrPort{}, "", 0},
		{"192.0.2.1:51820", v4, "", 0},
		{"192.0.2.1:51820 from 192.0.2.7", v4, "192.0.2.7", 0},
		{"192.0.2.1:51820 ifindex 2", v4, "", 2},
		{"[fe80::1%eth0]:1 from fe80::2 ifindex 4294967295", v6, "fe80::2", 1<<32 - 1},
	} {
		var source netip.Addr
		if c.source != "" {
			source = netip.MustParseAddr(c.source)
		}
		remote, from, index, err := ParseEndpoint(c.text)
		if err != nil || remote != c.remote || from != source || index != c.index {
			t.Errorf("ParseEndpoint(%q) returned %v, source %v, interface %d, error %v; want other values", c.text, remote, from, index, err)
		}
	}
	for _, text := range []string{
		"192.0.2.1", "192.0.2.1:0", "host:1", "192.0.2.1:1 from", "192.0.2.1:1 from x", "192.0.2.1:1 ifindex 4294967296",
		"192.0.2.1:1 ifindex 2 from 192.0.2.7", " ", "192.0.2.1:1 from 192.0.2.7 ifindex ",
	} {
		if _, _, _, err := ParseEndpoint(text); err == nil || !strings.Contains(err.Error(), strconv.Quote(text)) {
			t.Errorf("ParseEndpoint(%q): error %v, want one that contains the text", text, err)
		}
	}
}

// TestLabel checks Label with an example from the definition of TAI64: "4000000000000000 is 1970-01-01 00:00:00 TAI". That is
// 10 s before the same time of UTC, as WireGuard counts.
func TestLabel(t *testing.T) {
	for text, wall := range map[string]time.Time{
		"@400000000000000a00000000": time.Unix(0, 0),
		"@40000000000000093a000000": time.Unix(-1, 58<<24),
		"@400000000000000b01000000": time.Unix(1, 1<<24),
	} {
		b := Label(wall.Add(labelStep - 1))
		if got := "@" + hex.EncodeToString(b[:]); got != text || !LabelTime(b).Equal(wall) {
			t.Errorf("the label of %v is %s, and the time of this label is %v; want the label %s and the same time", wall, got, LabelTime(b), text)
		}
		var parsed [12]byte
		if err := ParseLabel(&parsed, []byte(text)); err != nil || parsed != b {
			t.Errorf("ParseLabel of %s returned %x, error %v", text, parsed, err)
		}
		for _, bad := range []string{text[1:], text[:24], text + "00", "@" + strings.Repeat("g", 24)} {
			if err := ParseLabel(&parsed, []byte(bad)); err == nil || parsed != b {
				t.Errorf("ParseLabel accepted %s, or changed the label", bad)
			}
		}
	}
	if !LabelTime([12]byte{}).IsZero() {
		t.Error("the time of the zero label is not the zero time")
	}
}
