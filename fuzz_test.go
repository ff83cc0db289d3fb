package wireguard

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// These fuzz targets are about the datagrams that a socket receives. Each target has a running device that waits for a message of
// one type. It gives the device a forgery, which the fuzzer makes from a valid message of that type, and then the valid message.
// It checks:
//
//   - The device accepts each datagram, or drops the datagram and counts this drop once.
//   - The device answers a datagram with at most one datagram. The answer to a dropped datagram is not longer than that datagram,
//     so an attacker cannot use the device to flood others.
//   - A dropped datagram changes nothing: the device accepts the valid message after it.
//   - The device keeps no state of a dropped datagram.

// A forgery describes how the fuzzer changes a valid message.
type forgery struct {
	at    uint16
	patch []byte // XORed with the message's bytes, beginning at the offset at
	grow  int16  // how many bytes are added at the end, or cut off if negative
}

func (f *forgery) of(valid []byte) []byte {
	m := make([]byte, max(0, len(valid)+int(f.grow)))
	copy(m, valid)
	for i, x := range f.patch {
		if at := int(f.at) + i; at < len(m) {
			m[at] ^= x
		}
	}
	return m
}

// resign gives the message m a valid mac1 if m is long enough. An attacker who knows the device's public key can do so too. If the
// argument mac2 is true, resign also gives m a valid mac2. For that, an attacker needs the cookie for the source address.
func (e *end) resign(m []byte, from Endpoint, device PublicKey, mac2 bool) {
	if len(m) < 2*macSize {
		return
	}
	var jar cookieJar
	if mac2 {
		c := cookieChecker{secret: e.secretAt(e.now())}
		jar.cookie, jar.received = c.cookieOf(from.appendSource(nil), e.now(), e.random), 1
	}
	jar.sign(m, device, 2)
}

// hostile gives the device a train, and returns how many datagrams of the train the device dropped, and the datagrams that it
// sent.
func (e *end) hostile(t *testing.T, train Train) (dropped int, sent []datagram) {
	t.Helper()
	before := e.drops.load()
	n, size := train.Len(), len(train.Data)
	e.line.receive(train)
	e.settle(t)
	after := e.drops.load()
	dropped = int(after.Total() - before.Total())
	out := 0
	for len(e.line.sent) > 0 {
		d := <-e.line.sent
		sent = append(sent, d)
		out += len(d.b)
	}
	if dropped > n || len(sent) > n {
		t.Fatalf("of %d datagrams, %d were dropped and %d were answered", n, dropped, len(sent))
	}
	if dropped == n && out > size {
		t.Fatalf("the device sent %d bytes in answer to %d bytes that it dropped", out, size)
	}
	e.wantNothingKept(t)
	return dropped, sent
}

// wantNothingKept fails if the device keeps more state than the sessions of one peer need.
func (e *end) wantNothingKept(t *testing.T) {
	t.Helper()
	if n := SessionIndices(e.Device); n > 4 { // one index for each of three keypairs, and one for a handshake
		t.Fatalf("%d session indices are in use for one peer, want at most 4", n)
	}
	e.slow.mu.Lock()
	defer e.slow.mu.Unlock()
	if e.slow.initiations.Queue != nil || e.slow.answers.Queue != nil || e.slow.peers != nil || e.lookups.Len() != 0 {
		t.Fatal("the slow path keeps state of messages that it has handled")
	}
}

// wantRefusal fails unless exactly one datagram was dropped and the device sent no answer. If the device is under load, it may
// answer with a cookie reply.
func wantRefusal(t *testing.T, dropped int, sent []datagram, loaded bool) {
	t.Helper()
	if dropped != 1 {
		t.Fatalf("a forgery was counted as %d drops, want 1", dropped)
	}
	for _, d := range sent {
		if !loaded || d.b[0] != typeCookie {
			t.Fatalf("the device answered a forgery with a message of type %d", d.b[0])
		}
	}
}

// addHandshakeSeeds adds forgeries of a handshake message to the seeds. The message has the given size, and its fields begin at
// the given offsets.
func addHandshakeSeeds(f *testing.F, size int, fields ...int) {
	for _, resign := range []bool{false, true} {
		for _, at := range append(fields, 0, 1, 4, size-32, size-16) {
			f.Add(uint16(at), []byte{1}, int16(0), resign, false, resign)
		}
		f.Add(uint16(0), []byte{}, int16(0), resign, true, resign)
		f.Add(uint16(0), []byte{}, int16(0), resign, true, false)
		f.Add(uint16(0), []byte{}, int16(-1), resign, false, false)
		f.Add(uint16(0), []byte{}, int16(1), resign, false, false)
		f.Add(uint16(0), []byte{}, int16(-size), resign, false, false)
	}
	f.Add(uint16(0), bytes.Repeat([]byte{0xff}, size), int16(0), true, true, true)
}

// FuzzInitiation forges a peer's initiations.
func FuzzInitiation(f *testing.F) {
	addHandshakeSeeds(f, initiationSize, initiationEphemeral, initiationEphemeral+31, initiationStatic, initiationTimestamp)
	public := testKey(1).Public()
	r := newRemote(1, public)
	e := up(f, testKey(1), r.config())
	f.Fuzz(func(t *testing.T, at uint16, patch []byte, grow int16, resign, loaded, mac2 bool) {
		e.clock.at.Add(second / 20) // a source may send 20 per second
		valid := r.initiation()
		m := (&forgery{at, patch, grow}).of(valid)
		if resign {
			e.resign(m, r.from, public, mac2)
		}
		authentic := len(m) == len(valid) && bytes.Equal(m[:4], valid[:4]) && bytes.Equal(m[8:132], resigned(valid, m, public)[8:132])
		same := bytes.Equal(m, valid)

		ForceLoad(e.Device, loaded)
		dropped, sent := e.hostile(t, r.train(bytes.Clone(m)))
		ForceLoad(e.Device, false)
		if dropped == 0 {
			// The message must equal the valid one, except that the sender's index may differ, because only mac1 protects the
			// index.
			if !authentic || len(sent) != 1 || sent[0].b[0] != typeResponse {
				t.Fatalf("the message %x was accepted and answered with %d messages, want an authentic message and one response", m, len(sent))
			}
			return
		}
		wantRefusal(t, dropped, sent, loaded)
		if same && !loaded {
			t.Fatal("a valid initiation was dropped")
		}
		if dropped, sent = e.hostile(t, r.train(valid)); dropped != 0 || len(sent) != 1 {
			t.Fatal("a valid initiation was dropped after a forgery")
		}
		r.takeResponse(t, sent[0].b)
	})
}

// resigned returns a copy of the message valid that has the sender's index of m and a new mac1.
func resigned(valid, m []byte, device PublicKey) []byte {
	w := bytes.Clone(valid)
	copy(w[4:8], m[4:8])
	new(cookieJar).sign(w, device, 1)
	return w
}

// FuzzResponse forges responses to a device that waits for a response and has a staged packet.
func FuzzResponse(f *testing.F) {
	addHandshakeSeeds(f, responseSize, responseReceiver, responseEphemeral, responseEphemeral+31, responseEmpty)
	public := testKey(1).Public()
	r := newRemote(1, public)
	e := newEnd(f, testKey(1), r.config())
	f.Fuzz(func(t *testing.T, at uint16, patch []byte, grow int16, resign, loaded, mac2 bool) {
		e.Down()
		if err := e.Up(); err != nil {
			t.Fatal(err)
		}
		e.clock.at.Add(second / 20)
		waits := packet4(100, here, r.addr)
		e.send(t, waits)
		valid := r.response(t, e.line.next(t, "an initiation").b)
		e.settle(t)
		m := (&forgery{at, patch, grow}).of(valid)
		if resign {
			e.resign(m, r.from, public, mac2)
		}
		authentic := len(m) == len(valid) && bytes.Equal(m[:4], valid[:4]) && bytes.Equal(m[8:76], resigned(valid, m, public)[8:76])
		same := bytes.Equal(m, valid)

		ForceLoad(e.Device, loaded)
		dropped, sent := e.hostile(t, r.train(bytes.Clone(m)))
		ForceLoad(e.Device, false)
		if dropped != 0 {
			wantRefusal(t, dropped, sent, loaded)
			if same && !loaded {
				t.Fatal("a valid response was dropped")
			}
			if dropped, sent = e.hostile(t, r.train(bytes.Clone(valid))); dropped != 0 {
				t.Fatal("a valid response was dropped after a forgery")
			}
			m = valid
		} else if !authentic {
			t.Fatalf("the forgery %x was accepted", m)
		}
		if len(sent) != 1 || sent[0].b[0] != typeData || !bytes.Equal(sent[0].b[4:8], m[4:8]) {
			t.Fatalf("the device sent %d messages after the response, want the staged packet in one data message to the index of the response", len(sent))
		}
		binary.LittleEndian.PutUint32(sent[0].b[4:], r.local)
		if got, _, _ := packet.Unpad(r.open(t, sent[0].b)); !bytes.Equal(got, waits) {
			t.Fatal("the data message does not contain the staged packet")
		}
		if dropped, sent = e.hostile(t, r.train(bytes.Clone(m))); dropped != 1 || len(sent) != 0 {
			t.Fatal("the device accepted a response twice, or answered the second one")
		}
	})
}

// FuzzCookieReply forges cookie replies to a device that has sent an initiation.
func FuzzCookieReply(f *testing.F) {
	for _, at := range []uint16{0, 1, 4, cookieNonce, cookieCookie, cookieSize - 16, cookieSize - 1} {
		f.Add(at, []byte{1}, int16(0))
	}
	f.Add(uint16(0), []byte{}, int16(0))
	f.Add(uint16(0), []byte{}, int16(-1))
	f.Add(uint16(0), []byte{}, int16(initiationSize-cookieSize))
	r := newRemote(1, testKey(1).Public())
	e := newEnd(f, testKey(1), r.config())
	random := func(b []byte) { copy(b, bytes.Repeat([]byte{7}, len(b))) }
	f.Fuzz(func(t *testing.T, at uint16, patch []byte, grow int16) {
		e.Down()
		if err := e.Up(); err != nil {
			t.Fatal(err)
		}
		p := e.peer(r)
		p.mu.Lock()
		p.cookie = cookieJar{}
		p.mu.Unlock()
		e.clock.at.Add(second)
		e.send(t, packet4(100, here, r.addr))
		first := e.line.next(t, "an initiation").b
		e.settle(t)
		reply := new(cookieChecker).reply(first, []byte("where from"), r.id, 1, random)
		m := (&forgery{at, patch, grow}).of(reply[:])
		has := func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.cookie.received != 0
		}
		give := func(m []byte, accepted, then bool, why string) {
			t.Helper()
			dropped, sent := e.hostile(t, r.train(bytes.Clone(m)))
			if len(sent) != 0 || (dropped == 0) != accepted || has() != then {
				t.Fatalf("%x: %d drops, %d answers, the device has a cookie: %v: %s", m, dropped, len(sent), has(), why)
			}
		}
		same := bytes.Equal(m, reply[:])
		give(m, same, same, "only the unchanged cookie reply is valid")
		if !same {
			give(reply[:], true, true, "a forgery that arrives first has no effect on the valid cookie reply")
		}
		give(reply[:], false, true, "a cookie reply is accepted once")
	})
}

// FuzzData forges data messages, and puts arbitrary packets into authentic data messages.
func FuzzData(f *testing.F) {
	r := newRemote(1, testKey(1).Public())
	inner := packet4(40, r.addr, here)
	for _, at := range []uint16{0, 1, 4, 7, 8, 15, 16, 30, messageHeader + 40, messageHeader + 55} {
		f.Add(at, []byte{1}, int16(0), inner, uint8(0))
	}
	f.Add(uint16(0), []byte{}, int16(0), inner, uint8(3))
	f.Add(uint16(0), []byte{}, int16(0), []byte{}, uint8(0))
	f.Add(uint16(0), []byte{}, int16(-1), []byte{}, uint8(0))
	f.Add(uint16(0), []byte{}, int16(0), packet4(40, here, r.addr), uint8(1))
	f.Add(uint16(0), []byte{}, int16(0), packet6(60, here6, here6), uint8(2))
	f.Add(uint16(0), []byte{}, int16(0), append(slices.Clone(inner), 0, 0, 0, 0), uint8(0))
	f.Add(uint16(0), []byte{}, int16(0), inner[:30], uint8(0))
	e := up(f, testKey(1), r.config())
	e.connect(f, r)
	f.Fuzz(func(t *testing.T, at uint16, patch []byte, grow int16, inner []byte, tos uint8) {
		give := func(m []byte, reason DropReason, want []byte, why string) {
			t.Helper()
			before := e.drops.load()
			dropped, sent := e.hostile(t, Train{Data: bytes.Clone(m), Size: max(1, len(m)), Endpoint: r.from, TOS: tos})
			switch {
			case len(sent) != 0:
				t.Fatalf("the device answered the message: %s", why)
			case reason != dropReasons:
				e.wantDrops(t, before, reason, 1, why)
			case dropped != 0:
				t.Fatalf("the device dropped the message: %s", why)
			}
			if got := len(e.tunnel.got); got != 0 && want == nil || got != 1 && want != nil {
				t.Fatalf("%d packets were delivered: %s", got, why)
			}
			if want != nil {
				if got := <-e.tunnel.got; !bytes.Equal(got, want) {
					t.Fatalf("%x was delivered, want %x: %s", got, want, why)
				}
			}
		}
		valid := r.data(inner)
		if m := (&forgery{at, patch, grow}).of(valid); !bytes.Equal(m, valid) {
			before := e.drops.load()
			if dropped, sent := e.hostile(t, r.train(bytes.Clone(m))); dropped != 1 || len(sent)+len(e.tunnel.got) != 0 {
				t.Fatalf("%x: %d drops, %d answers and %d delivered packets, want 1 drop; the drops before it are %v", m, dropped, len(sent), len(e.tunnel.got), before)
			}
		}
		reason, want := dropReasons, []byte(nil)
		if len(inner) > 0 {
			switch p, src, ok := packet.Unpad(bytes.Clone(inner)); {
			case !ok:
				reason = DropInnerMalformed
			case src != r.addr:
				reason = DropSourceNotAllowed
			default:
				packet.DecapsulateECN(tos, p)
				want = p
			}
		}
		give(valid, reason, want, "an authentic message")
		give(valid, DropReplayed, nil, "a replay of the message")
	})
}

// FuzzDevice gives a running device arbitrary trains. The device must drop and count each datagram.
func FuzzDevice(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0}, 148, uint8(0))
	f.Add([]byte{}, 148, uint8(0))
	f.Add(make([]byte, 300), 32, uint8(3))
	for _, size := range []int{initiationSize, responseSize, cookieSize, 32} {
		m := make([]byte, 3*size+size/2)
		for at := 0; at < len(m); at += size {
			m[at] = byte(1 + slices.Index([]int{initiationSize, responseSize, cookieSize, 32}, size))
		}
		f.Add(m, size, uint8(1))
	}
	r := newRemote(1, testKey(1).Public())
	e := up(f, testKey(1), r.config())
	e.connect(f, r)
	from := EndpointOf(netip.MustParseAddrPort("192.0.2.9:9"))
	f.Fuzz(func(t *testing.T, data []byte, size int, tos uint8) {
		train := Train{Data: bytes.Clone(data), Size: size, Endpoint: from, TOS: tos}
		n := train.Len()
		dropped, sent := e.hostile(t, train)
		if dropped != n || len(sent) != 0 || len(e.tunnel.got) != 0 {
			t.Fatalf("of %d forgeries, %d were dropped, %d were answered and %d were delivered, want all dropped", n, dropped, len(sent), len(e.tunnel.got))
		}
		if s, _ := e.Peer(r.id.public); s.Endpoint != r.from {
			t.Fatal("a forgery moved the endpoint")
		}
	})
}

// FuzzMACs adds a mac1 and a mac2 to arbitrary bytes. The macs must be valid only for these bytes, this device, this source and
// this cookie secret.
func FuzzMACs(f *testing.F) {
	f.Add(make([]byte, initiationSize-32), uint16(0), uint8(1), uint16(1), false)
	f.Add(make([]byte, responseSize-32), uint16(responseSize-32), uint8(1), uint16(2), false)
	f.Add(make([]byte, 0), uint16(16), uint8(128), uint16(2), false)
	f.Add(make([]byte, 200), uint16(0), uint8(0), uint16(2), true)
	id, other := newIdentity(testKey(1)), newIdentity(testKey(2))
	seed := byte(0)
	random := func(b []byte) {
		for i := range b {
			seed++
			b[i] = seed
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, at uint16, flip uint8, port uint16, late bool) {
		var c cookieChecker
		var jar cookieJar
		m := append(bytes.Clone(body), make([]byte, 32)...)
		from := EndpointOf(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)).Addr
		source := func(port uint16) []byte {
			e := EndpointOf(netip.AddrPortFrom(from.Addr(), port))
			return e.appendSource(nil)
		}
		now := int64(second)
		jar.sign(m, id.public, now)
		if !c.validMAC1(m, id) || c.validMAC1(m, other) || c.validMAC2(m, source(port), now, random) {
			t.Fatal("mac1 is not valid, or is valid for another device, or mac2 is valid without a cookie")
		}
		if m[0] = typeInitiation; len(body) >= 8 {
			jar.sign(m, id.public, now)
			reply := c.reply(m, source(port), id, now, random)
			if !jar.consume(reply[:], id.public, now) || jar.consume(reply[:], id.public, now) {
				t.Fatal("the cookie reply was not accepted exactly once")
			}
			jar.sign(m, id.public, now)
			if late {
				now += cookieSecretLife
			}
			if got := c.validMAC2(m, source(port), now, random); got == late {
				t.Fatalf("mac2 is valid: %v, and the secret was renewed: %v, want one true and one false", got, late)
			}
			if c.validMAC2(m, source(port+1), now, random) {
				t.Fatal("mac2 is valid from another port")
			}
		}
		jar.sign(m, id.public, now)
		if at := int(at); at < len(m) && flip != 0 {
			valid1, valid2 := c.validMAC1(m, id), c.validMAC2(m, source(port), now, random)
			m[at] ^= flip
			if inside := at < len(m)-16; c.validMAC1(m, id) != (valid1 && !inside) {
				t.Fatalf("the validity of mac1 is wrong after byte %d of %d changed", at, len(m))
			}
			if valid2 && c.validMAC2(m, source(port), now, random) {
				t.Fatalf("mac2 is still valid after byte %d of %d changed", at, len(m))
			}
		}
	})
}

// FuzzReplay compares the replay window with a set of all counters seen. Three bytes of input make one counter: the first byte
// chooses a formula, and the other two bytes are a distance. Most formulas add the distance to the greatest counter so far, or
// subtract it from that counter.
func FuzzReplay(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 0, 0, 1, 0, 1, 2, 31, 192, 2, 31, 193})
	f.Add([]byte{3, 255, 255, 4, 0, 1, 0, 0, 1, 4, 0, 0, 1, 0, 5})
	f.Add(bytes.Repeat([]byte{0, 0, 63, 1, 0, 64}, 50))
	f.Fuzz(func(t *testing.T, steps []byte) {
		var w window
		seen := map[uint64]bool{}
		top, any := uint64(0), false
		for ; len(steps) >= 3; steps = steps[3:] {
			by := uint64(binary.BigEndian.Uint16(steps[1:]))
			counter := top
			switch steps[0] % 5 {
			case 0:
				counter += by
			case 1, 2:
				counter -= by // a result below zero wraps to a counter past the limit
			case 3:
				counter += by << 44
			case 4:
				counter = rejectAfterMessages - 1 - by
			}
			want := counter < rejectAfterMessages && !seen[counter] && (!any || counter >= top || top-counter <= windowSize)
			if got := w.accept(counter); got != want {
				t.Fatalf("accept(%d) after %d is %v, want %v", counter, top, got, want)
			}
			if want {
				seen[counter], any = true, true
				top = max(top, counter)
			}
		}
	})
}
