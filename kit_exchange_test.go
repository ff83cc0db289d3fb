package wireguard

import (
	"encoding/hex"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func key32(t testing.TB, s string) (k [32]byte) {
	t.Helper()
	if copy(k[:], unhex(t, s)) != 32 {
		t.Fatalf("%q does not encode 32 bytes", s)
	}
	return k
}

func wantHex(t testing.TB, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s:\n got %x\nwant %s", what, got, want)
	}
}

// An exchange is a whole handshake in which all random values are fixed.
type exchange struct {
	initiator, responder *identity
	static               secret
	ei, er               PrivateKey
	ts                   Timestamp
	psk                  PresharedKey
}

func newExchange(t testing.TB, psk PresharedKey) *exchange {
	x := &exchange{
		initiator: newIdentity(testKey(1)), responder: newIdentity(testKey(2)), ei: testKey(3), er: testKey(4),
		ts: TimestampOf(epoch), psk: psk,
	}
	var err error
	if x.static, err = x.initiator.private.shared(&x.responder.public); err != nil {
		t.Fatal(err)
	}
	other, err := x.responder.private.shared(&x.initiator.public)
	if err != nil || other != x.static {
		t.Fatal("the two static keys compute different shared secrets:", err)
	}
	return x
}

func (x *exchange) initiate(t testing.TB) (*handshake, []byte) {
	t.Helper()
	h, m, err := createInitiation(x.initiator, &x.responder.public, &x.static, x.ei, x.ts, 0x01020304)
	if err != nil {
		t.Fatal(err)
	}
	var jar cookieJar
	jar.sign(m[:], x.responder.public, 1)
	return h, m[:]
}

func (x *exchange) consume(t testing.TB, m []byte) *handshake {
	t.Helper()
	h, remote, err := consumeInitiation(x.responder, m)
	if err != nil || remote != x.initiator.public {
		t.Fatalf("consumeInitiation returned the public key %v and the error %v", remote, err)
	}
	if ts, err := h.openTimestamp(m, &x.static); err != nil || ts != x.ts {
		t.Fatalf("openTimestamp returned the timestamp %x and the error %v", ts, err)
	}
	return h
}

func (x *exchange) respond(t testing.TB, h *handshake) ([]byte, sessionKeys) {
	t.Helper()
	m, keys, err := h.createResponse(&x.initiator.public, &x.psk, x.er, 0x0a0b0c0d)
	if err != nil {
		t.Fatal(err)
	}
	var jar cookieJar
	jar.sign(m[:], x.initiator.public, 1)
	return m[:], keys
}
