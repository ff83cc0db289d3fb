package wireguard

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"

	"github.com/cloudflare/circl/dh/x25519"
)

// A PrivateKey is a Curve25519 private key. It prints as "(private key)" everywhere; its text form, base64 as wg(8)
// writes it, comes from Text alone. (Package fmt cannot be kept from printing the bytes of a key in an unexported field
// of a struct that it prints.) The zero value is no key.
type PrivateKey [32]byte

// A PublicKey is a Curve25519 public key: the name of a device or a peer. It prints as base64.
type PublicKey [32]byte

// A PresharedKey is a symmetric key that two peers share beside their key pairs. It prints as "(preshared key)"
// everywhere. The zero value means that there is none.
type PresharedKey [32]byte

// NewPrivateKey makes a private key from the system's randomness.
func NewPrivateKey() PrivateKey {
	var k PrivateKey
	rand.Read(k[:]) // never fails
	return k.clamped()
}

// NewPresharedKey makes a preshared key from the system's randomness.
func NewPresharedKey() PresharedKey {
	var k PresharedKey
	rand.Read(k[:])
	return k
}

// clamped is k in the form in which the curve uses it (RFC 7748, section 5), as wg(8) stores it. Zero stays zero.
func (k PrivateKey) clamped() PrivateKey {
	if k.IsZero() {
		return k
	}
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// Public is the public key of k. The zero key has the zero public key.
func (k PrivateKey) Public() PublicKey {
	if k.IsZero() {
		return PublicKey{}
	}
	secret, public := x25519.Key(k), x25519.Key{}
	x25519.KeyGen(&public, &secret)
	clear(secret[:])
	return PublicKey(public)
}

// IsZero reports whether k is no key, in constant time.
func (k PrivateKey) IsZero() bool { return subtle.ConstantTimeCompare(k[:], make([]byte, 32)) == 1 }

// IsZero reports whether k is no key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// after orders public keys, for where one of two ends has to give way.
func (k PublicKey) after(l PublicKey) bool { return bytes.Compare(k[:], l[:]) > 0 }

// IsZero reports whether k is no key, in constant time.
func (k PresharedKey) IsZero() bool { return subtle.ConstantTimeCompare(k[:], make([]byte, 32)) == 1 }

// String hides the key.
func (PrivateKey) String() string { return "(private key)" }

// String is the key in base64, as wg(8) writes it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String hides the key.
func (PresharedKey) String() string { return "(preshared key)" }

// GoString hides the key from %#v.
func (PrivateKey) GoString() string { return "wireguard.PrivateKey(hidden)" }

// GoString hides the key from %#v.
func (PresharedKey) GoString() string { return "wireguard.PresharedKey(hidden)" }

// Format hides the key from every verb, %x and %d among them.
func (k PrivateKey) Format(f fmt.State, verb rune) { formatHidden(f, verb, k.String(), k.GoString()) }

// Format hides the key from every verb, %x and %d among them.
func (k PresharedKey) Format(f fmt.State, verb rune) { formatHidden(f, verb, k.String(), k.GoString()) }

func formatHidden(f fmt.State, verb rune, plain, sharp string) {
	if verb == 'v' && f.Flag('#') {
		plain = sharp
	}
	f.Write([]byte(plain))
}

// LogValue hides the key from log/slog.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// LogValue hides the key from log/slog.
func (k PresharedKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalJSON hides the key: a secret does not belong into a dump of a struct. Use Text to store it.
func (k PrivateKey) MarshalJSON() ([]byte, error) { return []byte(`"` + k.String() + `"`), nil }

// MarshalJSON hides the key: a secret does not belong into a dump of a struct. Use Text to store it.
func (k PresharedKey) MarshalJSON() ([]byte, error) { return []byte(`"` + k.String() + `"`), nil }

var errMarshalSecret = errors.New("wireguard: a secret key is not marshalled by itself: store what its method Text returns")

// MarshalText fails: an encoder that goes through a struct should not come upon a secret. Use Text to store it.
func (k PrivateKey) MarshalText() ([]byte, error) { return nil, errMarshalSecret }

// MarshalText fails: an encoder that goes through a struct should not come upon a secret. Use Text to store it.
func (k PresharedKey) MarshalText() ([]byte, error) { return nil, errMarshalSecret }

// Text is the secret itself, in base64 as wg(8) writes it.
func (k PrivateKey) Text() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Text is the secret itself, in base64 as wg(8) writes it.
func (k PresharedKey) Text() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText is the key in base64.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses base64 as wg(8) writes it. An error never repeats the text.
func (k *PrivateKey) UnmarshalText(text []byte) error {
	return unmarshalKey((*[32]byte)(k), text, "private key")
}

// UnmarshalText parses base64 as wg(8) writes it.
func (k *PublicKey) UnmarshalText(text []byte) error {
	return unmarshalKey((*[32]byte)(k), text, "public key")
}

// UnmarshalText parses base64 as wg(8) writes it. An error never repeats the text.
func (k *PresharedKey) UnmarshalText(text []byte) error {
	return unmarshalKey((*[32]byte)(k), text, "preshared key")
}

// ParsePrivateKey parses base64 as wg(8) writes it. An error never repeats the text.
func ParsePrivateKey(s string) (k PrivateKey, err error) {
	err = k.UnmarshalText([]byte(s))
	return k, err
}

// ParsePublicKey parses base64 as wg(8) writes it.
func ParsePublicKey(s string) (k PublicKey, err error) {
	err = k.UnmarshalText([]byte(s))
	return k, err
}

// ParsePresharedKey parses base64 as wg(8) writes it. An error never repeats the text.
func ParsePresharedKey(s string) (k PresharedKey, err error) {
	err = k.UnmarshalText([]byte(s))
	return k, err
}

var errKeyText = errors.New("want 32 bytes in base64: 44 characters that end in =, as wg genkey prints them")

// unmarshalKey accepts the one canonical form alone: a key has one name.
func unmarshalKey(k *[32]byte, text []byte, what string) error {
	var b [33]byte
	if len(text) != 44 {
		return fmt.Errorf("wireguard: %s: %w", what, errKeyText)
	}
	n, err := base64.StdEncoding.Strict().Decode(b[:], text)
	if err != nil || n != 32 {
		return fmt.Errorf("wireguard: %s: %w", what, errKeyText)
	}
	copy(k[:], b[:])
	return nil
}
