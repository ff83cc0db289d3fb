package forms

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
)

// A key has one text form, and an error never repeats the text.
func TestParseKey(t *testing.T) {
	want := [32]byte{31: 1}
	text := base64.StdEncoding.EncodeToString(want[:])
	var k [32]byte
	if err := ParseKey(&k, []byte(text), "key"); err != nil || k != want {
		t.Fatalf("%q is %x, %v", text, k, err)
	}
	for _, text := range []string{"", text[:43], text + "=", text + "\n", text[:42] + "F=", strings.Repeat("!", 44), base64.StdEncoding.EncodeToString(make([]byte, 33))} {
		if err := ParseKey(&k, []byte(text), "some key"); err == nil || !strings.HasPrefix(err.Error(), "wireguard: some key: ") || k != want ||
			text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, and the key is %x", text, err, k)
		}
	}
	if err := Key(&k, make([]byte, 31), "some key"); err == nil || k != want {
		t.Errorf("31 bytes: %v, and the key is %x", err, k)
	}
	if err := Key(&k, bytes.Repeat([]byte{7}, 32), "some key"); err != nil || k[31] != 7 {
		t.Errorf("32 bytes: %v, and the key is %x", err, k)
	}
}

func TestNames(t *testing.T) {
	names := []string{"none", "one"}
	var v uint8
	for i, name := range names {
		if b, err := Name("number", names, uint8(i)); string(b) != name || err != nil {
			t.Errorf("%d is %q, %v", i, b, err)
		}
		if err := ParseName("number", names, &v, []byte(name)); int(v) != i || err != nil {
			t.Errorf("%q is %d, %v", name, v, err)
		}
	}
	if b, err := Name("number", names, uint8(2)); err == nil {
		t.Errorf("2 is %q", b)
	}
	if err := ParseName("number", names, &v, []byte("two")); err == nil || v != 1 {
		t.Errorf("two is %d, %v", v, err)
	}
}
