package wireguard

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// A codec encodes a value, and decodes the encoded form into the variable to which the parameter into points.
type codec struct {
	encode func(v any) ([]byte, error)
	decode func(b []byte, into any) error
}

var errNoForm = errors.New("the type has no such form")

// codecs has one codec for each encoding that programs use to store values. codec_jsonv2_test.go adds encoding/json/v2 if that
// package is enabled.
var codecs = map[string]codec{
	"text": {
		func(v any) ([]byte, error) {
			if m, ok := v.(encoding.TextMarshaler); ok {
				return m.MarshalText()
			}
			return nil, errNoForm
		},
		func(b []byte, into any) error { return into.(encoding.TextUnmarshaler).UnmarshalText(b) },
	},
	"binary": {
		func(v any) ([]byte, error) {
			if m, ok := v.(encoding.BinaryMarshaler); ok {
				return m.MarshalBinary()
			}
			return nil, errNoForm
		},
		func(b []byte, into any) error { return into.(encoding.BinaryUnmarshaler).UnmarshalBinary(b) },
	},
	"json": {json.Marshal, json.Unmarshal},
	"gob": {
		func(v any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(v)
			return b.Bytes(), err
		},
		func(b []byte, into any) error { return gob.NewDecoder(bytes.NewReader(b)).Decode(into) },
	},
}

// These lists name the codecs that must encode and decode a value without loss. Any other codec may return an error instead.
const (
	kText  = "text json gob jsonv2"
	kPlain = "json gob jsonv2"
	kNone  = ""
)

var (
	testPublic = PublicKey(bytes.Repeat([]byte{0xfb}, 32))
	testWall   = time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	testLabel  = TimestampOf(testWall)
	testSticky = Endpoint{
		Addr:   netip.MustParseAddrPort("[2001:db8::1%eth 0]:51820"),
		Source: netip.MustParseAddr("fe80::7%eth0"), Interface: 1<<32 - 1,
	}
)

// filled returns a T in which each exported field has a value other than zero, except errors and secrets. So the tests also cover
// fields that are added to T later.
func filled[T any]() (t T) {
	fill(reflect.ValueOf(&t).Elem())
	return t
}

func fill(v reflect.Value) {
	for _, sample := range []any{testPublic, testWall, testLabel, testSticky, EventHandshake, netip.MustParsePrefix("10.0.0.0/24"), Drops{DropReplayed: 2}} {
		if v.Type() == reflect.TypeOf(sample) {
			v.Set(reflect.ValueOf(sample))
			return
		}
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(time.Second))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(200)
	case reflect.String:
		v.SetString("rekey")
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
		fill(v.Index(1))
	case reflect.Pointer:
		if t := v.Type().Elem(); t != reflect.TypeFor[PrivateKey]() && t != reflect.TypeFor[PresharedKey]() {
			v.Set(reflect.New(t))
			fill(v.Elem())
		}
	case reflect.Struct:
		for f, value := range v.Fields() {
			if fill(value); value.IsZero() && f.Type.Kind() != reflect.Interface && !strings.HasSuffix(f.Name, "Key") {
				panic("fill does not know the type of " + v.Type().String() + "." + f.Name)
			}
		}
	}
}

// codecValues are values of every exported type. Each key begins with the name of the value's type. The field kept lists the
// codecs that must keep the value.
var codecValues = map[string]struct {
	v    any
	kept string
}{
	"PrivateKey":                   {PrivateKey(testSecretKey), kNone},
	"PrivateKey zero":              {PrivateKey{}, kNone},
	"PresharedKey":                 {PresharedKey(testSecretPSK), kNone},
	"PresharedKey zero":            {PresharedKey{}, kNone},
	"PublicKey":                    {testPublic, kText},
	"PublicKey zero":               {PublicKey{}, kText},
	"Endpoint":                     {EndpointOf(netip.MustParseAddrPort("192.0.2.1:51820")), kText},
	"Endpoint zero":                {Endpoint{}, kText},
	"Endpoint with a source":       {testSticky, kText},
	"Endpoint with a source alone": {Endpoint{Source: netip.MustParseAddr("192.0.2.7")}, "gob"},
	"Endpoint with an interface":   {Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:1"), Interface: 2}, kText},
	"Endpoint without a port":      {Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:0")}, "gob"},
	"Endpoint mapped":              {Endpoint{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:5")}, "gob"},
	"Endpoint with a Link":         {Endpoint{Link: testLink{"relay", 7}}, kNone},
	"Endpoint with both":           {Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:1"), Link: testLink{"relay", 7}}, kNone},
	"Endpoint with a hostile zone": {Endpoint{Addr: netip.MustParseAddrPort("[fe80::1%a from b]:1")}, "gob"},
	"Timestamp":                    {testLabel, kText},
	"Timestamp zero":               {Timestamp{}, kText},
	"EventKind":                    {EventPeerForgotten, kText},
	"EventKind zero":               {EventKind(0), kText},
	"EventKind unknown":            {EventKind(200), "gob"},
	"DropReason":                   {DropLookupFull, kText},
	"DropReason unknown":           {dropReasons, "gob"},
	"Drops":                        {Drops{DropDown: 1, DropReplayed: 1<<64 - 1}, kPlain},
	"Drops zero":                   {Drops{}, kPlain},
	"IndexPrefix":                  {IndexPrefix{5, 16}, kPlain},
	"Traffic":                      {filled[Traffic](), kPlain},
	"Event":                        {filled[Event](), kPlain},
	"Event zero":                   {Event{}, kPlain},
	"Event with an error":          {Event{Kind: EventBindTrouble, Err: errors.New("no buffer space")}, "json jsonv2"},
	"Train":                        {filled[Train](), kPlain},
	"Train with an error":          {Train{Data: []byte{1}, Err: errors.New("no buffer space")}, kNone},
	"Status":                       {filled[Status](), kPlain},
	"PeerStatus":                   {filled[PeerStatus](), "json gob"}, // encoding/json/v2 refuses a Duration
	"PeerConfig":                   {filled[PeerConfig](), "gob"},
	"PeerConfig with a secret":     {PeerConfig{PublicKey: testPublic, PresharedKey: PresharedKey(testSecretPSK)}, kNone},
	"PeerChange":                   {filled[PeerChange](), "json gob"},
	"PeerChange to zero": {PeerChange{
		PublicKey: testPublic, Endpoint: new(Endpoint), PersistentKeepalive: new(time.Duration), Timestamp: new(Timestamp),
	}, "json gob"},
	"PeerChange with a secret":    {PeerChange{PresharedKey: (*PresharedKey)(&testSecretPSK)}, kNone},
	"PeerChange without a secret": {PeerChange{PresharedKey: new(PresharedKey)}, kNone},
	"Change":                      {filled[Change](), "json gob"},
	"Change to zero":              {Change{ListenPort: new(uint16), FirewallMark: new(uint32), Peers: []PeerChange{{PublicKey: testPublic, PersistentKeepalive: new(time.Duration)}}}, "json gob"},
	"Change with a secret":        {Change{PrivateKey: (*PrivateKey)(&testSecretKey)}, kNone},
	"Change without a secret":     {Change{PrivateKey: new(PrivateKey)}, kNone},
	"Config":                      {Config{PrivateKey: PrivateKey(testSecretKey)}, kNone},
	"Config zero":                 {Config{}, kNone},
}

// notValues are the exported types that programs cannot store: they have no exported fields, because their values are live
// objects and not data.
var notValues = []string{"Device", "Batch", "Subscription"}

// TestCodecs checks that each codec keeps each value, or returns an error. No codec may leave out or redact a part of a value.
func TestCodecs(t *testing.T) {
	for name, c := range codecValues {
		for form, codec := range codecs {
			mustKeep := strings.Contains(" "+c.kept+" ", " "+form+" ")
			b, err := codec.encode(c.v)
			into := reflect.New(reflect.TypeOf(c.v))
			if err == nil {
				err = codec.decode(b, into.Interface())
			}
			got := into.Elem().Interface()
			switch {
			case err != nil && mustKeep:
				t.Errorf("%s as %s: encoding or decoding returned the error %v", name, form, err)
			case err == nil && !same(got, c.v):
				t.Errorf("%s as %s: %+v was decoded as %+v, from %q", name, form, c.v, got, b)
			case err == nil && leaks(string(b)) != "":
				t.Errorf("%s as %s shows a secret: %q", name, form, b)
			}
		}
	}
}

// same reports whether a and b are equal. It compares the errors in events by their text, and everything else like
// reflect.DeepEqual. An empty list equals nil.
func same(a, b any) bool {
	if x, ok := a.(Event); ok && x.Err != nil {
		y := b.(Event)
		ok = y.Err != nil && x.Err.Error() == y.Err.Error()
		x.Err, y.Err = nil, nil
		return ok && x == y
	}
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	null := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("null"), []byte("[]")) }
	return len(x) > 0 && bytes.Equal(null(x), null(y))
}

// TestCodecsKnowEveryType checks that each exported type is in codecValues or in notValues.
func TestCodecsKnowEveryType(t *testing.T) {
	known := make(map[string]bool)
	for name, c := range codecValues {
		known[reflect.TypeOf(c.v).Name()] = true
		if word, _, _ := strings.Cut(name, " "); word != reflect.TypeOf(c.v).Name() {
			t.Errorf("the key %q has a value of type %T", name, c.v)
		}
	}
	for _, name := range notValues {
		known[name] = true
	}
	_, files := rootFiles(t)
	seen := 0
	look := func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if _, isFunc := n.(*ast.FuncDecl); !ok || !spec.Name.IsExported() {
			return !isFunc
		}
		switch spec.Type.(type) {
		case *ast.InterfaceType, *ast.FuncType:
		default:
			if seen++; !known[spec.Name.Name] {
				t.Errorf("neither codecValues nor notValues has the type %s", spec.Name.Name)
			}
		}
		return true
	}
	for _, f := range files {
		ast.Inspect(f, look)
	}
	if seen != len(known) {
		t.Errorf("the package has %d exported types, but codecValues and notValues have %d", seen, len(known))
	}
}

// TestSecretsAreNotEncoded checks that encoding a secret key fails, even if the key is inside another value. The error of
// encoding/json must say what to store instead.
func TestSecretsAreNotEncoded(t *testing.T) {
	private, preshared := PrivateKey(testSecretKey), PresharedKey(testSecretPSK)
	for name, v := range map[string]any{
		"private": private, "preshared": preshared, "pointer": &private, "map": map[string]PresharedKey{"k": preshared},
		"key of a map": map[PrivateKey]int{private: 1}, "list": []PrivateKey{private},
		"struct": struct{ K any }{private}, "peer": PeerConfig{PresharedKey: preshared}, "change": Change{PrivateKey: &private},
	} {
		for form, codec := range codecs {
			b, err := codec.encode(v)
			if err == nil {
				t.Errorf("%s as %s was encoded as %q, want an error", name, form, b)
			}
			if form == "json" && (err == nil || !strings.Contains(err.Error(), "store what its method Text returns")) {
				t.Errorf("%s as %s: got the error %v, want one that says what to store instead", name, form, err)
			}
		}
	}
	var k PrivateKey
	if err := k.UnmarshalBinary(private[:]); err != nil || k != private {
		t.Errorf("UnmarshalBinary did not accept the 32 bytes of a key: %v", err)
	}
	if err := k.UnmarshalBinary(private[:31]); err == nil || k != private {
		t.Errorf("UnmarshalBinary accepted 31 bytes, or changed the key: %v", err)
	}
}

// TestEndpointLog checks that a log shows the address or the Link of every endpoint, even of an endpoint that has no text form.
func TestEndpointLog(t *testing.T) {
	for _, e := range []Endpoint{{}, testSticky, {Link: testLink{"relay 7", 7}}} {
		var text, js bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("m", "at", e)
		slog.New(slog.NewJSONHandler(&js, nil)).Info("m", "at", e)
		for _, out := range []string{text.String(), js.String()} {
			if !strings.Contains(out, e.String()) || strings.Contains(out, "ERROR") || strings.Contains(out, "ifindex") {
				t.Errorf("%v is logged as %s", e, out)
			}
		}
	}
}

func TestDropsAll(t *testing.T) {
	d := Drops{DropNoRoute: 1, DropReplayed: 3}
	next, total := DropReason(0), uint64(0)
	for r, n := range d.All() {
		if r != next || n != d[r] {
			t.Errorf("All yields the reason %v with the count %d, want %v with %d", r, n, next, d[next])
		}
		next++
		total += n
	}
	if next != dropReasons || total != 4 {
		t.Errorf("All yields %d reasons and %d drops in total, want %d reasons and 4 drops", next, total, dropReasons)
	}
	for r := range d.All() {
		if r == DropReplayed {
			break
		}
	}
}

func TestDropsJSON(t *testing.T) {
	b, err := json.Marshal(Drops{DropReplayed: 3, DropNoRoute: 1})
	if want := `{"no route":1,"replayed":3}`; err != nil || string(b) != want {
		t.Errorf("the JSON is %s (error %v), want %s", b, err, want)
	}
	for _, text := range []string{`{"nonsense":1}`, `{"replayed":-1}`, `[1]`} {
		d := Drops{DropForged: 1}
		if err := json.Unmarshal([]byte(text), &d); err == nil || d != (Drops{DropForged: 1}) {
			t.Errorf("%s is decoded as %v (error %v), want an error and an unchanged value", text, d, err)
		}
	}
}

func TestNamesRefused(t *testing.T) {
	for _, text := range []string{"", "Replayed", "replayed ", "unknown", "nonsense"} {
		r, k := DropForged, EventHandshake
		if err := r.UnmarshalText([]byte(text)); err == nil || r != DropForged || !strings.Contains(err.Error(), fmt.Sprintf("%q", text)) {
			t.Errorf("%q is decoded as the reason %v (error %v), want an error with the text and an unchanged value", text, r, err)
		}
		if err := k.UnmarshalText([]byte(text)); err == nil || k != EventHandshake {
			t.Errorf("%q is decoded as the kind %v (error %v), want an error and an unchanged value", text, k, err)
		}
	}
}

func TestTimestampText(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	label := TimestampOf(at)
	const text = "@4000000070dd552f00000000"
	if label.String() != text || fmt.Sprint(label) != text || fmt.Sprintf("%x", label) != text[1:] {
		t.Errorf("the label of %v is %v, want %s", at, label, text)
	}
	if !label.Time().Equal(at) || !(Timestamp{}).Time().IsZero() {
		t.Errorf("%v has the time %v, and the zero label has the time %v", label, label.Time(), Timestamp{}.Time())
	}
	for _, text := range []string{"", "@", text[1:], text + "0", text[:24], "@" + strings.Repeat("g", 24), " " + text, strings.Repeat("@", 25)} {
		got := label
		if err := got.UnmarshalText([]byte(text)); err == nil || got != label {
			t.Errorf("%q is decoded as %v (error %v), want an error and an unchanged value", text, got, err)
		}
	}
}

// TestPublicKeyFormat checks how fmt prints a public key. For example, %x prints the bytes of the key itself, not the bytes of
// its base64 text.
func TestPublicKeyFormat(t *testing.T) {
	k := PublicKey{1, 0xab}
	zeros := strings.Repeat("00", 30)
	for _, c := range []struct{ format, want string }{
		{"%v", k.String()}, {"%s", k.String()}, {"%+v", k.String()}, {"%q", `"` + k.String() + `"`}, {"%.4s", k.String()[:4]},
		{"%x", "01ab" + zeros}, {"%X", "01AB" + zeros}, {"%#x", "0x01ab" + zeros}, {"% x", "01 ab" + strings.Repeat(" 00", 30)},
		{"%d", fmt.Sprint([32]byte(k))}, {"%#v", "wireguard.PublicKey{0x1, 0xab" + strings.Repeat(", 0x0", 30) + "}"},
		{"%46s", "  " + k.String()},
	} {
		if got := fmt.Sprintf(c.format, k); got != c.want {
			t.Errorf("%s prints %s, want %s", c.format, got, c.want)
		}
	}
}
