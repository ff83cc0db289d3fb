package wireguard

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"

	"github.com/seed-86b749af/wireguard/internal/forms"
)

// NewPrivateKey makes a private key from the system's randomness. It never fails.
func NewPrivateKey() PrivateKey {
	var k PrivateKey
	rand.Read(k[:])
	return k.clamped()
}

// NewPresharedKey makes a preshared key from the system's randomness. It never fails.
func NewPresharedKey() PresharedKey {
	var k PresharedKey
	rand.Read(k[:])
	return k
}

// String returns "(private key)".
func (PrivateKey) String() string { return "(private key)" }

// String returns the key in base64, as wg(8) writes it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String returns "(preshared key)".
func (PresharedKey) String() string { return "(preshared key)" }

// GoString hides the key from %#v.
func (PrivateKey) GoString() string { return "wireguard.PrivateKey(hidden)" }

// GoString hides the key from %#v.
func (PresharedKey) GoString() string { return "wireguard.PresharedKey(hidden)" }

// Format hides the key from every verb, including %x and %d.
func (k PrivateKey) Format(f fmt.State, verb rune) { forms.Hide(f, verb, k.String(), k.GoString()) }

// Format hides the key from every verb, including %x and %d.
func (k PresharedKey) Format(f fmt.State, verb rune) { forms.Hide(f, verb, k.String(), k.GoString()) }

// LogValue hides the key from log/slog.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// LogValue hides the key from log/slog.
func (k PresharedKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Text returns the secret itself, in base64 as wg(8) writes it.
func (k PrivateKey) Text() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Text returns the secret itself, in base64 as wg(8) writes it.
func (k PresharedKey) Text() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText returns what String returns.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses what Text returns. An error never repeats the text.
func (k *PrivateKey) UnmarshalText(text []byte) error {
	return forms.ParseKey((*[32]byte)(k), text, "private key")
}

// UnmarshalText parses what String returns.
func (k *PublicKey) UnmarshalText(text []byte) error {
	return forms.ParseKey((*[32]byte)(k), text, "public key")
}

// UnmarshalText parses what Text returns. An error never repeats the text.
func (k *PresharedKey) UnmarshalText(text []byte) error {
	return forms.ParseKey((*[32]byte)(k), text, "preshared key")
}

// ParsePrivateKey parses what Text returns. An error never repeats the text.
func ParsePrivateKey(s string) (k PrivateKey, err error) {
	err = k.UnmarshalText([]byte(s))
	return k, err
}

// ParsePublicKey parses what String returns.
func ParsePublicKey(s string) (k PublicKey, err error) {
	err = k.UnmarshalText([]byte(s))
	return k, err
}

// ParsePresharedKey parses what Text returns. An error never repeats the text.
func ParsePresharedKey(s string) (k PresharedKey, err error) {
	err = k.UnmarshalText([]byte(s))
	return k, err
}
