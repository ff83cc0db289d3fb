package wireguard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/replay"
	"pgregory.net/rapid"
)

// TestWireGuardGo makes handshakes between the functions of this package and a wireguard-go device, in both roles, with and
// without a preshared key. With the keys of each handshake, it sends data in both directions.
func TestWireGuardGo(t *testing.T) {
	for _, psk := range []PresharedKey{{}, PresharedKey(testKey(9))} {
		for _, initiator := range []bool{true, false} {
			t.Run(fmt.Sprintf("preshared key %v, initiator %v", !psk.IsZero(), initiator), func(t *testing.T) {
				key := testKey(8)
				r := newRemote(1, key.Public())
				r.psk = psk
				e := newGoEnd(t, key, r)
				there, back := packet4(100, r.addr, here), packet4(100, here, r.addr)

				if initiator {
					e.line.in <- r.initiation()
					r.takeResponse(t, testkit.Next(t, e.line.out, "wireguard-go sends a response"))
				} else {
					e.tun.Outbound <- back
					e.line.in <- r.response(t, testkit.Next(t, e.line.out, "wireguard-go sends an initiation"))
					sealed := r.open(t, testkit.Next(t, e.line.out, "wireguard-go sends the staged packet"))
					if p, _, ok := packet.Unpad(sealed); !ok || !bytes.Equal(p, back) {
						t.Errorf("wireguard-go sent\n%x, want\n%x", p, back)
					}
				}
				e.line.in <- r.data(there)
				if p := testkit.Next(t, e.tun.Inbound, "wireguard-go delivers our packet"); !bytes.Equal(p, there) {
					t.Errorf("wireguard-go delivered\n%x, want\n%x", p, there)
				}
				e.tun.Outbound <- back
				if p, _, ok := packet.Unpad(r.open(t, testkit.Next(t, e.line.out, "wireguard-go sends its packet"))); !ok || !bytes.Equal(p, back) {
					t.Errorf("wireguard-go sent\n%x, want\n%x", p, back)
				}
			})
		}
	}
}

// TestWireGuardGoCookies checks that each implementation accepts the cookie replies of the other, and the macs that the other
// makes with them.
func TestWireGuardGoCookies(t *testing.T) {
	x := newExchange(t, PresharedKey{})
	id, source := x.responder, []byte{192, 0, 2, 7, 0x30, 0x39}
	random := func(b []byte) { copy(b, bytes.Repeat([]byte{0x5a}, len(b))) }
	_, m := x.initiate(t)

	t.Run("they ask us", func(t *testing.T) {
		var checker device.CookieChecker
		checker.Init(device.NoisePublicKey(id.public))
		var jar cookieJar
		m := bytes.Clone(m)
		jar.sign(m, id.public, 1)
		if !checker.CheckMAC1(m) || checker.CheckMAC2(m, source) {
			t.Fatal("wireguard-go refuses our mac1, or accepts a mac2 of zeros")
		}
		theirs, err := checker.CreateReply(m, 0x01020304, source)
		if err != nil {
			t.Fatal(err)
		}
		var reply bytes.Buffer
		binary.Write(&reply, binary.LittleEndian, theirs)
		if reply.Len() != cookieSize || !jar.consume(reply.Bytes(), id.public, 1) {
			t.Fatal("we refuse wireguard-go's cookie reply")
		}
		jar.sign(m, id.public, 2)
		if !checker.CheckMAC1(m) || !checker.CheckMAC2(m, source) {
			t.Error("wireguard-go refuses our macs, which are made with its cookie")
		}
	})
	t.Run("we ask them", func(t *testing.T) {
		var generator device.CookieGenerator
		generator.Init(device.NoisePublicKey(id.public))
		var checker cookieChecker
		m := bytes.Clone(m)
		generator.AddMacs(m)
		if !checker.validMAC1(m, id) || checker.validMAC2(m, source, 1, random) {
			t.Fatal("we refuse wireguard-go's mac1, or accept a mac2 of zeros")
		}
		reply := checker.reply(m, source, id, 1, random)
		theirs := &device.MessageCookieReply{Type: 3, Receiver: binary.LittleEndian.Uint32(reply[4:])}
		copy(theirs.Nonce[:], reply[cookieNonce:])
		copy(theirs.Cookie[:], reply[cookieCookie:])
		if theirs.Receiver != 0x01020304 || !generator.ConsumeReply(theirs) {
			t.Fatal("wireguard-go refuses our cookie reply")
		}
		generator.AddMacs(m)
		if !checker.validMAC1(m, id) || !checker.validMAC2(m, source, 2, random) {
			t.Error("we refuse wireguard-go's macs, which are made with our cookie")
		}
	})
}

// TestWireGuardGoReplay gives the same counters to the replay windows of this package and of wireguard-go, and compares the
// results.
func TestWireGuardGoReplay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ours window
		var theirs replay.Filter
		top := uint64(0)
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			c := rapid.OneOf(
				rapid.Uint64Range(top-min(top, 2*windowBits), top+2*windowBits),
				rapid.Uint64Range(top-min(top, windowSize+1), top-min(top, windowSize-1)),
				rapid.Uint64Range(top, top+3),
				rapid.Just(uint64(rejectAfterMessages)),
			).Draw(t, "counter")
			got, want := ours.accept(c), theirs.ValidateCounter(c, rejectAfterMessages)
			if got != want {
				t.Fatalf("accept(%d) = %v, wireguard-go says %v (greatest %d)", c, got, want, top)
			}
			if got {
				top = max(top, c)
			}
		}
	})
}
