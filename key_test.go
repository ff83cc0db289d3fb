package wireguard

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestKeyVectors checks two test vectors of RFC 7748: Bob's key pair (section 6.1) and the first vector of section 5.2.
func TestKeyVectors(t *testing.T) {
	bob := PrivateKey(key32(t, "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
	public := bob.Public()
	wantHex(t, "public key", public[:], "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
	if bob.clamped().Public() != public {
		t.Error("clamping changes the public key")
	}
	scalar := PrivateKey(key32(t, "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"))
	point := PublicKey(key32(t, "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"))
	s, err := scalar.shared(&point)
	if err != nil {
		t.Fatal(err)
	}
	wantHex(t, "shared secret", s[:], "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
}

func TestNewKeys(t *testing.T) {
	a, b := NewPrivateKey(), NewPrivateKey()
	if a == b || a.IsZero() || samePresharedKeys() {
		t.Error("new keys are zero or equal, want random keys")
	}
	if a != a.clamped() || a[0]&7 != 0 || a[31]&0xc0 != 0x40 {
		t.Error("a new private key is not clamped, want the form that wg(8) stores")
	}
}

func TestZeroKeys(t *testing.T) {
	if !(PrivateKey{}).IsZero() || !(PublicKey{}).IsZero() || !(PresharedKey{}).IsZero() {
		t.Error("IsZero is false for a zero key")
	}
	if !(PrivateKey{}).Public().IsZero() || !(PrivateKey{}).clamped().IsZero() {
		t.Error("the zero private key has a public key that is not zero, or clamping changes it")
	}
	for i := range 32 {
		var b [32]byte
		b[i] = 1
		if PrivateKey(b).IsZero() || PublicKey(b).IsZero() || PresharedKey(b).IsZero() {
			t.Errorf("IsZero is true for a key whose byte %d is not zero", i)
		}
	}
}

// A textKey is a key of any of the three types, so that one test can cover all types.
type textKey interface {
	UnmarshalText([]byte) error
	bytes() []byte
}

type (
	privateText   struct{ *PrivateKey }
	publicText    struct{ *PublicKey }
	presharedText struct{ *PresharedKey }
)

func (k privateText) bytes() []byte   { return k.PrivateKey[:] }
func (k publicText) bytes() []byte    { return k.PublicKey[:] }
func (k presharedText) bytes() []byte { return k.PresharedKey[:] }

func textKeys() map[string]textKey {
	return map[string]textKey{
		"private key": privateText{new(PrivateKey)}, "public key": publicText{new(PublicKey)},
		"preshared key": presharedText{new(PresharedKey)},
	}
}

func TestKeyText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key")
		text := base64.StdEncoding.EncodeToString(raw)
		for what, k := range textKeys() {
			if err := k.UnmarshalText([]byte(text)); err != nil || !bytes.Equal(k.bytes(), raw) {
				t.Fatalf("%s: UnmarshalText did not return the key (error %v)", what, err)
			}
		}
		private, err1 := ParsePrivateKey(text)
		public, err2 := ParsePublicKey(text)
		preshared, err3 := ParsePresharedKey(text)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		marshalled, _ := public.MarshalText()
		if private.Text() != text || public.String() != text || preshared.Text() != text || string(marshalled) != text {
			t.Fatal("a key does not have the text from which it was parsed")
		}
	})
}

// TestKeyTextRefused checks that a key has only one valid text form. The error about an invalid text must not contain that text,
// because the text may be a secret.
func TestKeyTextRefused(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, 32))
	for name, text := range map[string]string{
		"empty":                  "",
		"31 bytes":               base64.StdEncoding.EncodeToString(make([]byte, 31)),
		"33 bytes":               base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 33)),
		"without padding":        good[:43],
		"one character more":     good + "=",
		"line end":               good + "\n",
		"line end inside":        good[:20] + "\n" + good[20:43],
		"space in front":         " " + good[:43],
		"URL alphabet":           strings.ReplaceAll(good, "+", "-"),
		"hexadecimal":            hex.EncodeToString(make([]byte, 32)),
		"bits beyond the end":    good[:42] + "t=",
		"padding in the middle":  good[:20] + "=" + good[21:],
		"two characters padding": good[:42] + "==",
	} {
		for what, k := range textKeys() {
			copy(k.bytes(), "unchanged")
			before := bytes.Clone(k.bytes())
			err := k.UnmarshalText([]byte(text))
			if err == nil {
				t.Errorf("%s, %s: UnmarshalText accepted the text, want an error", what, name)
				continue
			}
			if !bytes.Equal(k.bytes(), before) {
				t.Errorf("%s, %s: UnmarshalText failed, but changed the key", what, name)
			}
			if m := err.Error(); !strings.HasPrefix(m, "wireguard: "+what+": ") || len(text) > 3 && strings.Contains(m, text) {
				t.Errorf("%s, %s: the error is %q, want one that names the kind of key and does not contain the text", what, name, m)
			}
		}
	}
}

// leaks returns a part of testSecretKey or testSecretPSK that out contains, in any form that fmt can print. It returns an empty
// string if out contains no such part.
func leaks(out string) string {
	for _, k := range [][32]byte{testSecretKey, testSecretPSK} {
		for _, form := range []string{
			base64.StdEncoding.EncodeToString(k[:])[:8], hex.EncodeToString(k[:4]), strings.ToUpper(hex.EncodeToString(k[:4])),
			fmt.Sprintf("%d", k[:4])[1:12], fmt.Sprintf("%d", k[:4])[1:8], fmt.Sprintf("%#x", k[0]) + ", " + fmt.Sprintf("%#x", k[1]),
			fmt.Sprintf("%b", k[:2])[1:16], fmt.Sprintf("%o", k[:3])[1:10], string(k[:4]), fmt.Sprintf("%U", k[:2])[1:10],
		} {
			if strings.Contains(out, form) {
				return form
			}
		}
	}
	return ""
}

var (
	testSecretKey = [32]byte(bytes.Repeat([]byte{0xc1, 0xd2, 0xe3, 0xf4}, 8))
	testSecretPSK = [32]byte(bytes.Repeat([]byte{0xa9, 0xb8, 0xc7, 0xd6}, 8))
)

func TestKeyRedaction(t *testing.T) {
	private, preshared := PrivateKey(testSecretKey), PresharedKey(testSecretPSK)
	if fmt.Sprint(private, preshared) != "(private key) (preshared key)" {
		t.Errorf("the keys print as %v %v, want them redacted", private, preshared)
	}
	if got := fmt.Sprintf("%#v %#v", private, preshared); got != "wireguard.PrivateKey(hidden) wireguard.PresharedKey(hidden)" {
		t.Errorf("%%#v prints %s, want hidden keys", got)
	}
	for _, verb := range []string{"%v", "%d", "%x", "%X", "%#x", "%#v", "%o", "%b", "%s", "%U"} {
		if leaks(fmt.Sprintf(verb, testSecretKey)) == "" {
			t.Fatalf("the test's function leaks does not recognize a key that is printed with %s", verb)
		}
	}
	type inside struct {
		K PrivateKey
		P *PrivateKey
		S PresharedKey
		M map[string]PresharedKey
		L []PrivateKey
		A any
	}
	in := inside{private, &private, preshared, map[string]PresharedKey{"k": preshared}, []PrivateKey{private}, preshared}
	config := Config{PrivateKey: private, Peers: []PeerConfig{{PresharedKey: preshared}}}
	change := Change{PrivateKey: &private, Peers: []PeerChange{{PresharedKey: &preshared}}}
	values := map[string]any{
		"PrivateKey": private, "*PrivateKey": &private, "PresharedKey": preshared, "*PresharedKey": &preshared,
		"struct": in, "*struct": &in, "slice": []any{private, preshared}, "Config": config, "*Config": &config,
		"PeerConfig": config.Peers[0], "Change": change,
		"error": fmt.Errorf("with %v and %w", private, errors.New(preshared.String())),
	}
	for name, v := range values {
		// %p and %T are not tested, because fmt calls no method of a value for them.
		for _, verb := range "vsqxXdboOcUteEfFgGz" {
			for _, flags := range []string{"", "#", "+", " ", "-", "0", "40", ".4", "+#"} {
				format := "%" + flags + string(verb)
				if form := leaks(fmt.Sprintf(format, v)); form != "" {
					t.Errorf("%s with %s shows %q: %s", name, format, form, fmt.Sprintf(format, v))
				}
			}
		}
		if form := leaks(fmt.Sprint(v) + fmt.Sprintln(v) + string(fmt.Append(nil, v))); form != "" {
			t.Errorf("%s printed shows %q", name, form)
		}
		var b bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			slog.New(h).Info("m", "v", v, slog.Group("g", "v", v), slog.Any("list", []any{v}))
		}
		if form := leaks(b.String()); form != "" {
			t.Errorf("%s logged shows %q: %s", name, form, &b)
		}
	}
}

func TestKeyJSON(t *testing.T) {
	private, preshared := PrivateKey(testSecretKey), PresharedKey(testSecretPSK)
	type dump struct {
		Private   PrivateKey
		Preshared PresharedKey
		Public    PublicKey
	}
	if out, err := json.Marshal(dump{Public: PublicKey{1}}); err == nil {
		t.Errorf("a struct with zero secret keys is marshalled to %s, want an error: the result could not be unmarshalled", out)
	}
	var in dump
	text := `{"Private":"` + private.Text() + `","Preshared":"` + preshared.Text() + `"}`
	if err := json.Unmarshal([]byte(text), &in); err != nil || in.Private != private || in.Preshared != preshared {
		t.Errorf("the keys are not unmarshalled from JSON (error %v)", err)
	}
	out, err := json.Marshal(map[PublicKey]PublicKey{{1}: {2}})
	want := `{"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=":"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`
	if err != nil || string(out) != want {
		t.Errorf("public keys as JSON are %s, want %s (%v)", out, want, err)
	}
}

func samePresharedKeys() bool {
	a, b := NewPresharedKey(), NewPresharedKey()
	return a == b
}
