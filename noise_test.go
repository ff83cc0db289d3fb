package wireguard

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// A noiseDraw has the random inputs of one handshake: keys, indices, timestamp and preshared key.
type noiseDraw struct {
	si, sr, ei, er [32]byte
	psk            [32]byte // the preshared key; zero means that there is none
	local, remote  uint32
	ts             [12]byte
}

// drawNoise draws the inputs of the i-th handshake. If i is odd, the handshake has a preshared key.
func drawNoise(r *rand.ChaCha8, i int) (d noiseDraw) {
	for _, b := range [][]byte{d.si[:], d.sr[:], d.ei[:], d.er[:], d.ts[:]} {
		r.Read(b)
	}
	if i%2 == 1 {
		r.Read(d.psk[:])
	}
	d.local, d.remote = uint32(r.Uint64()), uint32(r.Uint64())
	return d
}

func noiseKey(t testing.TB, b [32]byte) *ecdh.PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// noiseFields has the names of the fields of both messages, and the offsets at which the fields begin.
var noiseFields = map[byte][]struct {
	name string
	at   int
}{
	typeInitiation: {{"type", 0}, {"sender", 4}, {"ephemeral", 8}, {"static", 40}, {"timestamp", 88}, {"mac1", 116}, {"mac2", 132}, {"the end", 148}},
	typeResponse:   {{"type", 0}, {"sender", 4}, {"receiver", 8}, {"ephemeral", 12}, {"empty", 44}, {"mac1", 60}, {"mac2", 76}, {"the end", 92}},
}

func wantSameMessage(t *testing.T, what string, got, want []byte) {
	t.Helper()
	fields := noiseFields[want[0]]
	if len(got) != len(want) {
		t.Fatalf("%s: we write %d bytes, the oracle %d", what, len(got), len(want))
	}
	for i, f := range fields[:len(fields)-1] {
		if g, w := got[f.at:fields[i+1].at], want[f.at:fields[i+1].at]; !bytes.Equal(g, w) {
			t.Fatalf("%s: our field %q is %x, the oracle's is %x", what, f.name, g, w)
		}
	}
}

var noiseHandshakes = flag.Int("handshakes", 0, "how many handshakes TestNoiseOracle compares; 0 means 1000, or 100 with -race and in WebAssembly")

// TestNoiseOracle compares this package with the second implementation in kit_noise_test.go, the oracle. It compares the messages
// that both write as initiator and as responder, field by field, the values that each reads from the other's messages, and both
// keys of the session.
func TestNoiseOracle(t *testing.T) {
	n := *noiseHandshakes
	switch {
	case n > 0:
	case testkit.Race, testkit.OneThread:
		n = 100
	default:
		n = 1000
	}
	seed := [32]byte{11}
	r := rand.NewChaCha8(seed)
	for i := range n {
		d := drawNoise(r, i)
		compareNoise(t, i, d)
		if t.Failed() {
			t.Fatalf("handshake %d of seed %x, %+v", i, seed, d)
		}
	}
}

func compareNoise(t *testing.T, i int, d noiseDraw) {
	si, sr := noiseKey(t, d.si), noiseKey(t, d.sr)
	theirs := newNoiseEnd(true, si, noiseKey(t, d.ei), sr.PublicKey(), d.psk[:], d.local)
	answerer := newNoiseEnd(false, sr, noiseKey(t, d.er), nil, d.psk[:], d.remote)
	x := &exchange{
		initiator: newIdentity(d.si), responder: newIdentity(d.sr), ei: d.ei, er: d.er, ts: d.ts, psk: d.psk,
	}
	var err error
	if x.static, err = x.initiator.private.shared(&x.responder.public); err != nil {
		t.Fatal(err)
	}

	/* the initiation */
	want, err := theirs.write(d.ts[:])
	if err != nil {
		t.Fatal(err)
	}
	hi, m1, err := createInitiation(x.initiator, &x.responder.public, &x.static, x.ei, x.ts, d.local)
	if err != nil {
		t.Fatal(err)
	}
	var jar cookieJar
	jar.sign(m1[:], x.responder.public, 1)
	wantSameMessage(t, "initiation", m1[:], want)
	hr := x.consume(t, want) // fails if this package cannot read the static key and the timestamp
	if !(&cookieChecker{}).validMAC1(want, x.responder) {
		t.Fatal("we refuse the mac1 of the oracle's initiation")
	}
	if ts, err := answerer.read(m1[:]); err != nil || !bytes.Equal(ts, d.ts[:]) || !bytes.Equal(answerer.rs.Bytes(), x.initiator.public[:]) {
		t.Fatalf("the oracle reads timestamp %x from our initiation, not %x: %v", ts, d.ts, err)
	}

	/* the response */
	if want, err = answerer.write(nil); err != nil {
		t.Fatal(err)
	}
	m2, responderKeys, err := hr.createResponse(&x.initiator.public, &x.psk, x.er, d.remote)
	if err != nil {
		t.Fatal(err)
	}
	jar.sign(m2[:], x.initiator.public, 1)
	wantSameMessage(t, "response", m2[:], want)
	initiatorKeys, index, err := hi.consumeResponse(want, &x.psk)
	if err != nil || index != d.remote {
		t.Fatalf("we read index %#x from the oracle's response, not %#x: %v", index, d.remote, err)
	}
	if !(&cookieChecker{}).validMAC1(want, x.initiator) {
		t.Fatal("we refuse the mac1 of the oracle's response")
	}
	if empty, err := theirs.read(m2[:]); err != nil || len(empty) != 0 || theirs.remote != d.remote {
		t.Fatalf("the oracle reads payload %x and index %#x from our response: %v", empty, theirs.remote, err)
	}

	/* the transport keys, at the four ends */
	there, back := theirs.split()
	for end, keys := range map[string][2][]byte{
		"the oracle's responder": pairOf(answerer.split()),
		"our initiator":          {initiatorKeys.send[:], initiatorKeys.receive[:]},
		"our responder":          {responderKeys.receive[:], responderKeys.send[:]},
	} {
		if !bytes.Equal(keys[0], there) || !bytes.Equal(keys[1], back) {
			t.Fatalf("%s has the keys %x, want %x and %x", end, keys, there, back)
		}
	}
	compareTransport(t, uint64(i), there, &responderKeys)
}

func pairOf(a, b []byte) [2][]byte { return [2][]byte{a, b} }

// compareTransport checks that a keypair of this package opens a data message that the oracle has sealed (whitepaper, section
// 5.4.6).
func compareTransport(t *testing.T, counter uint64, key []byte, keys *sessionKeys) {
	padded := bytes.Repeat([]byte{7}, 32)
	c := noiseCipher{k: key, n: counter}
	m := binary.LittleEndian.AppendUint32([]byte{4, 0, 0, 0}, 5)
	m = binary.LittleEndian.AppendUint64(m, counter)
	m = append(m, c.encryptWithAd(nil, padded)...)
	k := newKeypair(&keys.send, &keys.receive, 5, 6, false, 1)
	if p, ok := k.open(m); !ok || !bytes.Equal(p, padded) {
		t.Fatalf("we read %x (authentic: %v) from the oracle's data message, want %x", p, ok, padded)
	}
}

// TestNoiseOracleRefuses checks that the oracle refuses messages of this package in which one bit has been changed.
func TestNoiseOracleRefuses(t *testing.T) {
	r := rand.NewChaCha8([32]byte{12})
	d := drawNoise(r, 1)
	si, sr := noiseKey(t, d.si), noiseKey(t, d.sr)
	x := newExchange(t, d.psk)
	x.initiator, x.responder, x.ei = newIdentity(d.si), newIdentity(d.sr), d.ei
	var err error
	if x.static, err = x.initiator.private.shared(&x.responder.public); err != nil {
		t.Fatal(err)
	}
	_, m1 := x.initiate(t)
	for at := range initiationSize - macSize {
		m := bytes.Clone(m1)
		m[at] ^= 1
		if _, err := newNoiseEnd(false, sr, noiseKey(t, d.er), nil, d.psk[:], 1).read(m); err == nil {
			t.Fatalf("the oracle accepts an initiation whose byte %d was changed", at)
		}
	}
	theirs := newNoiseEnd(true, si, noiseKey(t, d.ei), sr.PublicKey(), d.psk[:], 0x01020304)
	if _, err := theirs.write(x.ts[:]); err != nil {
		t.Fatal(err)
	}
	m2, _ := x.respond(t, x.consume(t, m1))
	saved := *theirs.noiseHandshake
	for at := range responseSize - macSize {
		m := bytes.Clone(m2)
		m[at] ^= 1
		*theirs.noiseHandshake = saved
		if _, err := theirs.read(m); err == nil {
			t.Fatalf("the oracle accepts a response whose byte %d was changed", at)
		}
	}
	*theirs.noiseHandshake = saved
	if _, err := theirs.read(m2); err != nil {
		t.Fatalf("the oracle refuses our response: %v", err)
	}
}
