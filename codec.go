package wireguard

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard/internal/forms"
)

// Each encoding of a value of this package (text, JSON, gob) keeps the whole value. Encoding or decoding fails if that is not
// possible. The one exception is the Err of an Event, of which only the text is kept.

// ParseEndpoint parses an endpoint as [Endpoint.UnmarshalText] does, and refuses empty text.
func ParseEndpoint(s string) (e Endpoint, err error) {
	if err = e.UnmarshalText([]byte(s)); err == nil && !e.IsValid() {
		err = forms.ErrEndpoint(s)
	}
	return e, err
}

// LogValue returns what String returns. Without this method, log/slog would call MarshalText, which fails if e has a Link.
func (e Endpoint) LogValue() slog.Value { return slog.StringValue(e.String()) }

// MarshalText returns all of e in the form that UnmarshalText parses. It fails if e has a Link, or an Addr without a
// port. The zero Endpoint is empty text.
func (e Endpoint) MarshalText() ([]byte, error) {
	if e == (Endpoint{}) {
		return []byte{}, nil
	}
	text := e.Addr.String()
	if e.Source.IsValid() {
		text += " from " + e.Source.String()
	}
	if e.Interface != 0 {
		text += " ifindex " + strconv.FormatUint(uint64(e.Interface), 10)
	}
	if back, err := ParseEndpoint(text); err != nil || back != e {
		return nil, fmt.Errorf("wireguard: endpoint %v has no text form: want an address with a port, and no Link", e)
	}
	return []byte(text), nil
}

// UnmarshalText parses "192.0.2.1:51820" or "[fe80::1%eth0]:51820". Source and Interface may follow, in this order:
// "192.0.2.1:51820 from 192.0.2.7 ifindex 2". Empty text is the zero Endpoint. UnmarshalText refuses port 0 and
// host names. Resolve a host name first.
func (e *Endpoint) UnmarshalText(text []byte) error {
	remote, source, index, err := forms.ParseEndpoint(strings.TrimSpace(string(text)))
	if err == nil {
		*e = EndpointOf(remote)
		e.Source, e.Interface = source, index
	}
	return err
}

// Format prints k in base64. For the verbs that print bytes, such as %x, it prints the bytes of k.
func (k PublicKey) Format(f fmt.State, verb rune) {
	forms.Format(f, verb, "wireguard.PublicKey", k[:], k.String())
}

// Format prints what String returns. For the verbs that print bytes, such as %x, it prints the bytes of t.
func (t Timestamp) Format(f fmt.State, verb rune) {
	forms.Format(f, verb, "wireguard.Timestamp", t[:], t.String())
}

var errEncodeSecret = errors.New("wireguard: a secret key is not encoded by itself: store what its method Text returns")

// MarshalText fails, and so do encoders that call it, such as encoding/json. Store what Text returns.
func (k PrivateKey) MarshalText() ([]byte, error) { return nil, errEncodeSecret }

// MarshalText fails, and so do encoders that call it, such as encoding/json. Store what Text returns.
func (k PresharedKey) MarshalText() ([]byte, error) { return nil, errEncodeSecret }

// MarshalBinary fails, and so do encoders that call it, such as encoding/gob. Store what Text returns.
func (k PrivateKey) MarshalBinary() ([]byte, error) { return nil, errEncodeSecret }

// MarshalBinary fails, and so do encoders that call it, such as encoding/gob. Store what Text returns.
func (k PresharedKey) MarshalBinary() ([]byte, error) { return nil, errEncodeSecret }

// UnmarshalBinary sets k to the 32 bytes b.
func (k *PrivateKey) UnmarshalBinary(b []byte) error {
	return forms.Key((*[32]byte)(k), b, "private key")
}

// UnmarshalBinary sets k to the 32 bytes b.
func (k *PresharedKey) UnmarshalBinary(b []byte) error {
	return forms.Key((*[32]byte)(k), b, "preshared key")
}

// TimestampOf returns the timestamp for an initiation that is made at the wall-clock time wall. The timestamp is rounded down to a
// multiple of 2^24 ns (17 ms), which is fine enough for 50 initiations per second. A finer timestamp would reveal more of the
// sender's clock.
func TimestampOf(wall time.Time) Timestamp { return forms.Label(wall) }

// String returns t in the external form of TAI64N: "@" and 24 hexadecimal digits.
func (t Timestamp) String() string { return "@" + hex.EncodeToString(t[:]) }

// Time returns the wall time of t, or the zero Time if t is zero.
func (t Timestamp) Time() time.Time { return forms.LabelTime(t) }

// MarshalText returns what String returns.
func (t Timestamp) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses "@" and 24 hexadecimal digits.
func (t *Timestamp) UnmarshalText(text []byte) error { return forms.ParseLabel((*[12]byte)(t), text) }

// MarshalText returns what String returns. It fails if k is not a known kind.
func (k EventKind) MarshalText() ([]byte, error) { return forms.Name("event kind", eventNames[:], k) }

// UnmarshalText parses what String returns.
func (k *EventKind) UnmarshalText(text []byte) error {
	return forms.ParseName("event kind", eventNames[:], k, text)
}

// MarshalText returns what String returns. It fails if r is not a known reason.
func (r DropReason) MarshalText() ([]byte, error) { return forms.Name("drop reason", dropNames[:], r) }

// UnmarshalText parses what String returns.
func (r *DropReason) UnmarshalText(text []byte) error {
	return forms.ParseName("drop reason", dropNames[:], r, text)
}

// MarshalJSON returns an object with the counts other than 0. The key of each count is the name of its DropReason.
func (d Drops) MarshalJSON() ([]byte, error) {
	counts := maps.Collect(d.All())
	maps.DeleteFunc(counts, func(_ DropReason, n uint64) bool { return n == 0 })
	return json.Marshal(counts)
}

// UnmarshalJSON parses what MarshalJSON returns.
func (d *Drops) UnmarshalJSON(b []byte) error {
	var counts map[DropReason]uint64
	if err := json.Unmarshal(b, &counts); err != nil {
		return err
	}
	*d = Drops{}
	for r, n := range counts {
		d[r] = n
	}
	return nil
}

// GobEncode encodes c as JSON. Without this method, encoding/gob would turn a pointer to a zero value into nil. But in a Change, a
// pointer to a zero value sets the field to zero, and a nil pointer leaves the field unchanged.
func (c Change) GobEncode() ([]byte, error) { return json.Marshal(c) }

// GobDecode decodes what GobEncode returns.
func (c *Change) GobDecode(b []byte) error { return json.Unmarshal(b, c) }

// GobEncode encodes c as JSON, as [Change.GobEncode] does.
func (c PeerChange) GobEncode() ([]byte, error) { return json.Marshal(c) }

// GobDecode decodes what GobEncode returns.
func (c *PeerChange) GobDecode(b []byte) error { return json.Unmarshal(b, c) }

// MarshalJSON returns an object of the fields of e. Of Err, it keeps only the text.
func (e Event) MarshalJSON() ([]byte, error) {
	type fields Event
	var text *string
	if e.Err != nil {
		text = new(e.Err.Error())
	}
	return json.Marshal(struct {
		fields
		Err *string
	}{fields(e), text})
}

// UnmarshalJSON parses what MarshalJSON returns. Err is a new error with the same text.
func (e *Event) UnmarshalJSON(b []byte) error {
	type fields Event
	v := struct {
		*fields
		Err *string
	}{fields: (*fields)(e)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	e.Err = nil
	if v.Err != nil {
		e.Err = errors.New(*v.Err)
	}
	return nil
}
