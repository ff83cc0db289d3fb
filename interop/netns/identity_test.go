//go:build linux

package netns

import (
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// TestPrivateKeyChange checks that the daemon uses a new private key at once. It must make a handshake with the new key although
// the last handshake was less than five seconds ago. The tunnel must still work in both directions.
//
//	a ══ v0 ── v0 ══ b     newPair
func TestPrivateKeyChange(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	for range 3 {
		old := p.a.key.Public()
		p.a.key = wireguard.NewPrivateKey()
		p.introduce()
		p.a.set("private-key /dev/stdin")
		p.a.ping(innerB4, 3)
		p.b.ping(innerA6, 3)
		if got := p.b.status(p.a); got.handshake == 0 {
			t.Error("b has had no handshake with a's new key")
		}
		p.b.set("peer %v remove", old)
	}
}

// TestFirstPrivateKey checks that a daemon without a private key does not answer, and that it works as soon as it has a key.
func TestFirstPrivateKey(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.b.nft("add rule inet t in udp dport 51820 counter comment arrived", "add rule inet t out udp sport 51820 counter comment answered")
	p.meet(outerB4)
	key := p.b.key
	p.b.key = wireguard.PrivateKey{}
	p.b.set("private-key /dev/stdin")
	p.a.noPing("b has no private key", innerB4)
	if in, out := p.b.hits("arrived"), p.b.hits("answered"); in == 0 || out != 0 {
		t.Errorf("b received %d messages and sent %d, want some and 0", in, out)
	}
	p.b.key = key
	p.b.set("private-key /dev/stdin")
	p.a.peer(p.b, "remove") // otherwise a would wait five seconds before its next attempt
	p.introduce()
	p.meet(outerB4)
	p.a.ping(innerB4, 3)
}

// lowOrder lists encodings of the points of Curve25519 and its twist whose order divides eight.
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"0000000000000000000000000000000000000000000000000000000000000080", // X25519 ignores the highest bit
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
}

// TestLowOrderPoints adds peers whose public keys are points of low order, with which every shared secret is zero. The daemon
// must send no message to these peers, and must still serve its other peer. It may refuse the public key that consists of zeros,
// because that stands for no key.
func TestLowOrderPoints(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.b.nft("add rule inet t in udp dport 1000 counter comment strangers")
	p.meet(outerB4)
	for i, text := range lowOrder {
		var key wireguard.PublicKey
		if _, err := hex.Decode(key[:], []byte(text)); err != nil {
			t.Fatal(err)
		}
		_, err := p.a.Run(fmt.Sprintf("wg set %s peer %v endpoint %v:1000 persistent-keepalive 1 allowed-ips 10.0.0.%d/32",
			p.a.name, key, outerB4, 100+i))
		if err != nil && !key.IsZero() {
			t.Error(err)
		}
		p.a.noPing("the public key of the peer has low order", addr(fmt.Sprintf("10.0.0.%d", 100+i)))
	}
	if got := p.b.hits("strangers"); got != 0 {
		t.Errorf("%d messages went to peers with a public key of low order, want 0", got)
	}
	p.a.ping(innerB4, 3)
	p.b.ping(innerA6, 3)
}
