// Package forms reads and writes keys, endpoints, timestamps and names in the forms that users see. Its errors begin with
// "wireguard: " and say what failed.
package forms

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Format prints a value of the type name: as its text, or as its bytes b for verbs that print bytes, such as %x.
func Format(f fmt.State, verb rune, name string, b []byte, text string) {
	format := fmt.FormatString(f, verb)
	switch {
	case verb == 'v' && f.Flag('#'):
		fmt.Fprint(f, name, strings.TrimPrefix(fmt.Sprintf("%#v", b), "[]byte"))
	case strings.ContainsRune("vsq", verb):
		fmt.Fprintf(f, format, text)
	default:
		fmt.Fprintf(f, format, b)
	}
}

// Hide prints the text sharp for %#v, and the text plain for all other verbs.
func Hide(f fmt.State, verb rune, plain, sharp string) {
	if verb == 'v' && f.Flag('#') {
		plain = sharp
	}
	f.Write([]byte(plain))
}

var errKeyText = errors.New("want 32 bytes in base64: 44 characters that end in =, as wg genkey prints them")

// ParseKey decodes the base64 text into k. It accepts only the canonical form, so that each key has one text. The error names the
// key with the string what, and never repeats the text.
func ParseKey(k *[32]byte, text []byte, what string) error {
	b, err := base64.StdEncoding.Strict().AppendDecode(make([]byte, 0, 33), text)
	if err != nil || len(text) != 44 || len(b) != len(k) {
		return fmt.Errorf("wireguard: %s: %w", what, errKeyText)
	}
	*k = [32]byte(b)
	return nil
}

// Key sets k to the bytes b. The error names the key with the string what.
func Key(k *[32]byte, b []byte, what string) error {
	if len(b) != len(k) {
		return fmt.Errorf("wireguard: %s: want 32 bytes, not %d", what, len(b))
	}
	*k = [32]byte(b)
	return nil
}

// Name returns names[v], the name of v. If there is no such element, Name returns an error, in which the string what says what
// kind of value v is.
func Name[T ~uint8](what string, names []string, v T) ([]byte, error) {
	if int(v) >= len(names) {
		return nil, fmt.Errorf("wireguard: %s %d is not known", what, v)
	}
	return []byte(names[v]), nil
}

// ParseName sets v to the index of text in names. If text is not in names, ParseName returns an error, in which the string what
// says what kind of name was expected.
func ParseName[T ~uint8](what string, names []string, v *T, text []byte) error {
	i := slices.Index(names, string(text))
	if i < 0 {
		return fmt.Errorf("wireguard: %s %q is not known", what, text)
	}
	*v = T(i)
	return nil
}
