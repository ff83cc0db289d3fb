package wireguard

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// TestKeypairRotation checks all changes of the three fields previous, current and next, which contain a peer's keypairs. The
// table writes a state as three characters, one per field. The letters p, c and n are the keypairs that the fields contained
// before the change, x is the new keypair, and a dash is an empty field.
func TestKeypairRotation(t *testing.T) {
	for _, c := range []struct{ op, before, after, dropped string }{
		{"addInitiated", "---", "-x-", ""},
		{"addInitiated", "p--", "-x-", "p"},
		{"addInitiated", "-c-", "cx-", ""},
		{"addInitiated", "pc-", "cx-", "p"},
		{"addInitiated", "--n", "nx-", ""}, // initiations crossed: the peer may still send with the keypair in next
		{"addInitiated", "p-n", "nx-", "p"},
		{"addInitiated", "-cn", "nx-", "c"},
		{"addInitiated", "pcn", "nx-", "cp"},

		{"addResponded", "---", "--x", ""},
		{"addResponded", "p--", "--x", "p"},
		{"addResponded", "-c-", "-cx", ""},
		{"addResponded", "pc-", "-cx", "p"},
		{"addResponded", "--n", "--x", "n"},
		{"addResponded", "p-n", "--x", "np"},
		{"addResponded", "-cn", "-cx", "n"},
		{"addResponded", "pcn", "-cx", "np"},

		{"confirm n", "--n", "-n-", ""},
		{"confirm n", "p-n", "-n-", "p"},
		{"confirm n", "-cn", "cn-", ""},
		{"confirm n", "pcn", "cn-", "p"},

		// A message that arrives with any other keypair confirms nothing.
		{"confirm c", "pcn", "pcn", ""},
		{"confirm p", "pcn", "pcn", ""},
		{"confirm x", "pcn", "pcn", ""},
		{"confirm x", "---", "---", ""},
		{"confirm c", "-c-", "-c-", ""},
	} {
		all := map[byte]*keypair{'p': {}, 'c': {}, 'n': {}, 'x': {}, '-': nil}
		ks := keypairs{previous: all[c.before[0]], current: all[c.before[1]], next: all[c.before[2]]}
		var dropped []*keypair
		switch op, who, _ := strings.Cut(c.op, " "); op {
		case "addInitiated":
			a, b := ks.addInitiated(all['x'])
			dropped = []*keypair{a, b}
		case "addResponded":
			a, b := ks.addResponded(all['x'])
			dropped = []*keypair{a, b}
		case "confirm":
			d, confirmed := ks.confirm(all[who[0]])
			dropped = []*keypair{d}
			if want := who == "n"; confirmed != want {
				t.Errorf("%s in %s: confirmed %v, want %v", c.op, c.before, confirmed, want)
			}
		}
		letter := func(k *keypair) byte {
			for l, v := range all {
				if k == v {
					return l
				}
			}
			return '?'
		}
		after := string([]byte{letter(ks.previous), letter(ks.current), letter(ks.next)})
		var gone []byte
		for _, k := range dropped {
			if k != nil {
				gone = append(gone, letter(k))
			}
		}
		slices.Sort(gone)
		if after != c.after || string(gone) != c.dropped {
			t.Errorf("%s in %s: got %s and dropped %q, want %s and %q", c.op, c.before, after, gone, c.after, c.dropped)
		}
		for l, k := range all {
			if want := l != '-' && strings.IndexByte(after, l) >= 0; ks.holds(k) != want {
				t.Errorf("%s in %s: holds %c: %v, want %v", c.op, c.before, l, !want, want)
			}
		}
	}
}

func TestKeypairSendable(t *testing.T) {
	const born, limit = 7 * second, uint64(rejectAfterMessages)
	for _, c := range []struct {
		name    string
		k       *keypair
		age     int64
		n       int
		want    bool
		because string
	}{
		{"none", nil, 0, 1, false, "there is no session"},
		{"new", &keypair{}, 0, 1, true, ""},
		{"nothing to send", &keypair{}, 0, 0, true, ""},
		{"old", &keypair{}, 180*second - 1, 128, true, "limits are inclusive: less than 180 s is young"},
		{"too old", &keypair{}, 180 * second, 1, false, "limits are inclusive: 180 s is too old"},
		{"retired", &keypair{retired: true}, 0, 1, false, "the device has another identity"},
		{"last message", &keypair{counter: limit - 1}, 0, 1, true, "REJECT_AFTER_MESSAGES messages may be sent"},
		{"one too many", &keypair{counter: limit}, 0, 1, false, "REJECT_AFTER_MESSAGES messages were sent"},
		{"last batch", &keypair{counter: limit - 128}, 0, 128, true, ""},
		{"batch too large", &keypair{counter: limit - 127}, 0, 128, false, "a batch is sent as a whole or not at all"},
		{"past 2^60", &keypair{counter: 1 << 60}, 0, 128, true, "REKEY_AFTER_MESSAGES causes a handshake, but does not forbid sending"},
	} {
		if c.k != nil {
			c.k.created = born
		}
		if got := c.k.sendable(born+c.age, c.n); got != c.want {
			t.Errorf("%s: sendable %v, want %v: %s", c.name, got, c.want, c.because)
		}
	}
}

func TestKeypairNumber(t *testing.T) {
	k := &keypair{counter: 1<<32 - 2}
	for _, c := range []struct {
		n    int
		want uint64
	}{{1, 1<<32 - 2}, {128, 1<<32 - 1}, {1, 1<<32 + 127}, {1, 1<<32 + 128}} {
		if got := k.number(c.n); got != c.want {
			t.Errorf("number(%d) = %d, want %d", c.n, got, c.want)
		}
	}
}

// TestKeypairSeal compares whole messages with messages that the test itself seals with ChaCha20-Poly1305 and a nonce that it
// makes from the counter. Some counters have more than 32 bits.
func TestKeypairSeal(t *testing.T) {
	send, receive := [32]byte{1}, [32]byte{2}
	k := newKeypair(&send, &receive, 0x11223344, 0x55667788, true, 0)
	other := newKeypair(&receive, &send, 0x55667788, 0x11223344, false, 0)
	a, err := chacha20poly1305.New(send[:])
	if err != nil {
		t.Fatal(err)
	}
	for _, counter := range []uint64{0, 1, 1<<32 - 1, 1 << 32, 0x0102030405060708, rejectAfterMessages - 1} {
		for _, size := range []int{0, 16, 64, 1424, 65536} {
			packet := bytes.Repeat([]byte{byte(size), byte(counter)}, size/2)
			m := bytes.Repeat([]byte{0xee}, messageOverhead+size) // the old contents do not matter
			copy(m[messageHeader:], packet)
			sealInPlace(k, m, counter)

			want := []byte{4, 0, 0, 0, 0x88, 0x77, 0x66, 0x55}
			want = binary.LittleEndian.AppendUint64(want, counter)
			nonce := binary.LittleEndian.AppendUint64(make([]byte, 4), counter)
			if want = a.Seal(want, nonce, packet, nil); !bytes.Equal(m, want) {
				t.Fatalf("counter %#x, %d bytes: the message begins with %x, want %x", counter, size, m[:16], want[:16])
			}
			if p, ok := other.open(bytes.Clone(m)); !ok || !bytes.Equal(p, packet) {
				t.Fatalf("counter %#x, %d bytes: the receiver cannot decrypt the message", counter, size)
			}
			if _, ok := k.open(bytes.Clone(m)); ok {
				t.Fatal("the sender decrypts its own message, so both directions use the same key")
			}
		}
	}
}

func TestKeypairOpenForgeries(t *testing.T) {
	key := [32]byte{3}
	k := newKeypair(&key, &key, 1, 2, true, 0)
	m := make([]byte, messageOverhead+32)
	sealInPlace(k, m, 0xffffffffff)
	for at := 8; at < len(m); at++ { // the tag does not cover the type and the index, which are used to find the key
		for bit := range 8 {
			forged := bytes.Clone(m)
			forged[at] ^= 1 << bit
			if _, ok := k.open(forged); ok {
				t.Fatalf("open accepts the message although bit %d of byte %d was changed", bit, at)
			}
		}
	}
	for n := messageOverhead; n < len(m); n++ {
		if _, ok := k.open(bytes.Clone(m[:n])); ok {
			t.Fatalf("open accepts the message although it was cut to %d bytes", n)
		}
	}
	if p, ok := k.open(bytes.Clone(m)); !ok || len(p) != 32 {
		t.Fatal("open refuses the unchanged message")
	}
}

func TestKeypairSealsInPlace(t *testing.T) {
	key := [32]byte{3}
	k := newKeypair(&key, &key, 1, 2, true, 0)
	m := make([]byte, messageOverhead+1424)
	n := testing.AllocsPerRun(100, func() {
		sealInPlace(k, m, 1)
		if p, ok := k.open(m); !ok || &p[0] != &m[messageHeader] || cap(p) > len(m)-messageHeader {
			t.Error("open did not decrypt the packet in place, within the message")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per message, want 0", n)
	}
}
