package wireguard

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"pgregory.net/rapid"

	"github.com/seed-86b749af/wireguard/internal/noise"
)

// TestHandshakeTranscript compares both messages of a handshake and the keys of the session with fixed bytes. TestWireGuardGo
// checks the same functions against another implementation.
func TestHandshakeTranscript(t *testing.T) {
	for _, c := range []struct {
		name                                   string
		psk                                    PresharedKey
		initiation, response, fromInit, toInit string
	}{
		{name: "without preshared key", initiation: goldenInitiation, response: goldenResponse, fromInit: goldenSend, toInit: goldenReceive},
		{name: "with preshared key", psk: PresharedKey(testKey(5)), initiation: goldenInitiation, response: goldenResponsePSK, fromInit: goldenSendPSK, toInit: goldenReceivePSK},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newExchange(t, c.psk)
			hi, m1 := x.initiate(t)
			wantHex(t, "initiation", m1, c.initiation)
			hr := x.consume(t, m1)
			m2, kr := x.respond(t, hr)
			wantHex(t, "response", m2, c.response)
			before := *hi
			ki, index, err := hi.consumeResponse(m2, &x.psk)
			if err != nil || index != 0x0a0b0c0d {
				t.Fatalf("consumeResponse returned the index %#x and the error %v, want 0x0a0b0c0d and no error", index, err)
			}
			if *hi != before {
				t.Error("consumeResponse changed the handshake, so a forged response would end it")
			}
			if ki.send != kr.receive || ki.receive != kr.send {
				t.Error("the initiator and the responder have different keys")
			}
			wantHex(t, "key from the initiator", ki.send[:], c.fromInit)
			wantHex(t, "key to the initiator", ki.receive[:], c.toInit)
			if !(&cookieChecker{}).validMAC1(m1, x.responder) || !(&cookieChecker{}).validMAC1(m2, x.initiator) {
				t.Error("mac1 is not valid")
			}
		})
	}
}

func TestHandshakeResponseLeavesStateUnchanged(t *testing.T) {
	x := newExchange(t, PresharedKey{})
	_, m := x.initiate(t)
	h := x.consume(t, m)
	before := *h
	one, _ := x.respond(t, h)
	if *h != before {
		t.Fatal("createResponse changed the handshake, so its result cannot be discarded")
	}
	if two, _ := x.respond(t, h); !bytes.Equal(one, two) {
		t.Fatal("a second call of createResponse returned a different response")
	}
}

func TestHandshakePresharedKeyMismatch(t *testing.T) {
	x := newExchange(t, PresharedKey{1})
	hi, m1 := x.initiate(t)
	m2, _ := x.respond(t, x.consume(t, m1))
	for _, psk := range []PresharedKey{{}, {2}} {
		if _, _, err := hi.consumeResponse(m2, &psk); reasonOf(err) != DropForged {
			t.Errorf("a response with another preshared key: got the error %v, want %v", err, refusal(DropForged))
		}
	}
}

// TestHandshakeForgeries changes one byte of an initiation or a response, and checks that the handshake fails. It does so for
// each byte that the handshake itself authenticates. These are all bytes except the macs, the type and the sender's index, which
// mac1 covers, and the receiver's index, which the session table checks.
func TestHandshakeForgeries(t *testing.T) {
	x := newExchange(t, PresharedKey{7})
	hi, m1 := x.initiate(t)
	for at := initiationEphemeral; at < initiationSize-2*macSize; at++ {
		m := bytes.Clone(m1)
		m[at] ^= 1 << (at % 8)
		h, _, err := consumeInitiation(x.responder, m)
		if err == nil {
			_, err = h.openTimestamp(m, &x.static)
		} else if h != nil {
			t.Errorf("byte %d of the initiation changed: consumeInitiation returned an error and a handshake with a chaining key", at)
		}
		if reasonOf(err) != DropForged {
			t.Errorf("byte %d of the initiation changed: got the error %v, want %v", at, err, refusal(DropForged))
		}
	}
	m2, _ := x.respond(t, x.consume(t, m1))
	for at := responseEphemeral; at < responseSize-2*macSize; at++ {
		m := bytes.Clone(m2)
		m[at] ^= 1 << (at % 8)
		if _, _, err := hi.consumeResponse(m, &x.psk); reasonOf(err) != DropForged {
			t.Errorf("byte %d of the response changed: got the error %v, want %v", at, err, refusal(DropForged))
		}
	}
	for _, m := range [][]byte{m1, m2} {
		id := x.responder
		if len(m) == responseSize {
			id = x.initiator
		}
		for at := 0; at < len(m)-macSize; at++ {
			m := bytes.Clone(m)
			m[at] ^= 1
			if (&cookieChecker{}).validMAC1(m, id) {
				t.Errorf("byte %d of a message of %d bytes changed, but mac1 is still valid", at, len(m))
			}
		}
	}
}

// lowOrder has the encodings of the points of X25519 whose order divides 8. X25519 ignores the top bit of each encoding.
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p-1
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p+1
}

// TestHandshakeLowOrder uses each point of low order as each public key of a handshake: the static and ephemeral keys in
// messages, and the peer's key in the configuration. Each time the result of X25519 is all zero, and the handshake must fail.
func TestHandshakeLowOrder(t *testing.T) {
	x := newExchange(t, PresharedKey{})
	hi, m1 := x.initiate(t)
	hr := x.consume(t, m1)
	m2, _ := x.respond(t, hr)
	for _, s := range lowOrder {
		for _, top := range []byte{0, 0x80} {
			point := PublicKey(key32(t, s))
			point[31] |= top
			if _, err := x.initiator.private.shared(&point); err != refusal(DropLowOrder) {
				t.Errorf("%x: the static secret: got the error %v, want DropLowOrder", point, err)
			}
			if h, _, err := createInitiation(x.initiator, &point, &x.static, x.ei, x.ts, 1); err != refusal(DropLowOrder) || h != nil {
				t.Errorf("%x: es of the initiator: got the error %v, want DropLowOrder", point, err)
			}
			m := bytes.Clone(m1)
			copy(m[initiationEphemeral:], point[:])
			if h, _, err := consumeInitiation(x.responder, m); err != refusal(DropLowOrder) || h != nil {
				t.Errorf("%x: es of the responder: got the error %v, want DropLowOrder", point, err)
			}
			h := *hr
			h.remoteEphemeral = point
			if _, keys, err := h.createResponse(&x.initiator.public, &x.psk, x.er, 1); err != refusal(DropLowOrder) || keys != (sessionKeys{}) {
				t.Errorf("%x: ee of the responder: got the error %v, want DropLowOrder", point, err)
			}
			if _, keys, err := hr.createResponse(&point, &x.psk, x.er, 1); err != refusal(DropLowOrder) || keys != (sessionKeys{}) {
				t.Errorf("%x: se of the responder: got the error %v, want DropLowOrder", point, err)
			}
			m = bytes.Clone(m2)
			copy(m[responseEphemeral:], point[:])
			if keys, _, err := hi.consumeResponse(m, &x.psk); err != refusal(DropLowOrder) || keys != (sessionKeys{}) {
				t.Errorf("%x: ee of the initiator: got the error %v, want DropLowOrder", point, err)
			}
		}
	}
}

func TestHandshakeWipe(t *testing.T) {
	x := newExchange(t, PresharedKey{})
	h, _ := x.initiate(t)
	if h.ephemeral.IsZero() || h.transcript == (noise.Transcript{}) {
		t.Fatal("the handshake has no secrets before wipe")
	}
	if h.wipe(); *h != (handshake{}) {
		t.Error("wipe left values in the handshake")
	}
}

func TestIdentity(t *testing.T) {
	if newIdentity(PrivateKey{}) != nil {
		t.Error("newIdentity returned an identity for the zero key")
	}
	if (*identity)(nil).publicKey() != (PublicKey{}) {
		t.Error("a nil identity has a public key other than zero")
	}
	k := PrivateKey{1, 2, 3, 31: 0xff}
	id := newIdentity(k)
	if id.private != k.clamped() || id.public != k.Public() || id.publicKey() != k.Public() {
		t.Error("the identity does not match the private key")
	}
	if id.mac1Key != blake2s.Sum256(append([]byte("mac1----"), id.public[:]...)) {
		t.Error("mac1's key is not HASH(LABEL-MAC1, public key)")
	}
	if id.cookieKey != blake2s.Sum256(append([]byte("cookie--"), id.public[:]...)) {
		t.Error("the cookie's key is not HASH(LABEL-COOKIE, public key)")
	}
}

func TestTimestampLabels(t *testing.T) {
	for _, c := range []struct {
		unix, nanos int64
		want        string
	}{
		{0, 0, "400000000000000a00000000"},
		{1, 0, "400000000000000b00000000"},
		{-1, 0, "400000000000000900000000"},
		{1 << 32, 0, "400000010000000a00000000"},
		{0, 1<<24 - 1, "400000000000000a00000000"},
		{0, 1 << 24, "400000000000000a01000000"},
		{0, 999_999_999, "400000000000000a3b000000"},
	} {
		ts := TimestampOf(time.Unix(c.unix, c.nanos))
		wantHex(t, time.Unix(c.unix, c.nanos).UTC().String(), ts[:], c.want)
	}
}

func TestTimestampOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		instant := func(name string) time.Time {
			return time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+" ns"))
		}
		a, b := instant("a"), instant("b")
		if rapid.Bool().Draw(t, "near") {
			b = a.Add(time.Duration(rapid.Int64Range(0, 1<<26).Draw(t, "by")))
		}
		ta, tb := TimestampOf(a), TimestampOf(b)
		if d := b.Sub(a); a.Before(b) && ta.After(tb) {
			t.Fatal("a later time has an earlier label")
		} else if d >= 1<<24 && d < time.Second && a.Unix() == b.Unix() && !tb.After(ta) {
			t.Fatal("a time that is 2^24 ns later does not have a later label")
		}
		if ta.After(ta) || ta.After(tb) && tb.After(ta) || !ta.After(Timestamp{}) {
			t.Fatal("After is not a strict order, or a label is not after the zero label")
		}
		if back := ta.Time(); a.Sub(back) < 0 || a.Sub(back) >= 1<<24 {
			t.Fatalf("the label is %v before its time, want at least 0 and less than 2^24 ns", a.Sub(back))
		}
	})
}

func TestTimestampNext(t *testing.T) {
	for _, c := range []struct{ ts, want string }{
		{"400000000000000a00000000", "400000000000000a00000001"},
		{"400000000000000a000000ff", "400000000000000a00000100"},
		{"400000000000000a3b9ac9fe", "400000000000000a3b9ac9ff"}, // 999,999,999 ns
		{"400000000000000a3b9ac9ff", "400000000000000b00000000"},
		{"40000000ffffffff3b9ac9ff", "400000010000000000000000"},
	} {
		ts := Timestamp(unhex(t, c.ts))
		next := ts.next()
		wantHex(t, "next of "+c.ts, next[:], c.want)
		if !next.After(ts) {
			t.Errorf("the next label of %s is not a later label", c.ts)
		}
	}
}

// TestForgedInitiationsShareTheStaticSecret checks that forged initiations in a peer's name make the device compute the X25519 of
// the two static keys only once, and not for each forgery. To forge an initiation, an attacker needs only the public keys.
func TestForgedInitiationsShareTheStaticSecret(t *testing.T) {
	key := testKey(1)
	r := newRemote(1, key.Public())
	e := up(t, key, r.config())
	r.static[0] ^= 1 // a forger does not know this secret
	e.line.receive(r.train(r.initiation()))
	eventually(t, "the device counts a forged message", func() bool { return e.drops[DropForged].Load() == 1 })
	p := e.peer(r)
	p.mu.Lock()
	kept, of, want := p.static, p.staticOf, r.static
	p.mu.Unlock()
	want[0] ^= 1
	if kept != want || of != e.identity.Load() {
		t.Error("the device did not keep the secret of the static keys")
	}
}
