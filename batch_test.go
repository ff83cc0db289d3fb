package wireguard

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/seed-86b749af/wireguard/internal/layout"
)

// checkLayout fails unless the messages of b contain the packets and lie back to back in memory, with enough space around each
// packet for its header, padding and tag.
func checkLayout(t failer, b *Batch, packets [][]byte) {
	t.Helper()
	if b.Len() != len(packets) {
		t.Fatalf("the batch holds %d packets, want %d", b.Len(), len(packets))
	}
	if b.load == nil {
		return
	}
	end := 0
	for i, m := range b.load.Messages {
		end += b.headroom
		if want := layout.Pad(len(packets[i]), b.mtu); int(m.Padded) != want {
			t.Fatalf("message %d is padded to %d, want %d", i, m.Padded, want)
		}
		p := b.Packet(i)
		if !bytes.Equal(p, packets[i]) || cap(p) != len(p) {
			t.Fatalf("packet %d has wrong bytes, or its slice has a capacity beyond its length", i)
		}
		if begin := &b.Packet(0)[0]; uintptr(unsafe.Pointer(&p[0]))-uintptr(unsafe.Pointer(begin)) != uintptr(end-b.headroom) {
			t.Fatalf("packet %d is at the wrong offset: the messages must lie back to back, with the headroom in front of each", i)
		}
		end += int(m.Padded) + messageOverhead
	}
	if b.load.Bytes() != end || end > layout.Size {
		t.Fatalf("the next message begins at %d, want %d, which must be at most %d", b.load.Bytes(), end, layout.Size)
	}
}

// used returns the offset in b at which the next message begins.
func used(b *Batch) int {
	if b.load == nil {
		return 0
	}
	return b.load.Bytes()
}

func TestBatchModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Batch{
			mtu:      rapid.SampledFrom([]int{0, 1280, 1420, 9000}).Draw(t, "mtu"),
			headroom: rapid.SampledFrom([]int{0, 0, 10, maxHeadroom}).Draw(t, "headroom"),
		}
		defer b.Reset()
		var packets [][]byte
		size := rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1400, 1440), rapid.IntRange(1, maxPacket))
		for i := range rapid.IntRange(1, 200).Draw(t, "steps") {
			n := size.Draw(t, "size")
			packet := bytes.Repeat([]byte{byte(i)}, n)
			fits := len(packets) < 128 && used(&b)+b.headroom+32+n+15 <= layout.Size
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0: // get space for a packet from Next, and give it back unused
				room := b.Next(n)
				if (room != nil) != fits {
					t.Fatalf("Next(%d) with %d packets and %d bytes used returned space: %v", n, len(packets), used(&b), room != nil)
				}
				if room != nil {
					b.Commit(0)
				}
			case 1: // use a part of the space that Next returned
				if room := b.Next(n); room != nil {
					if len(room) != n || cap(room) != n {
						t.Fatalf("Next(%d) returned %d bytes, or a slice with another capacity", n, len(room))
					}
					part := copy(room, packet[:1+n/2])
					b.Commit(part)
					packets = append(packets, packet[:part])
				}
			case 2: // call Next twice before Commit
				if b.Next(1) != nil && fits {
					copy(b.Next(n), packet)
					b.Commit(n)
					packets = append(packets, packet)
				}
			case 3:
				if rapid.IntRange(0, 9).Draw(t, "reset") == 0 {
					b.Reset()
					packets = nil
				}
			default:
				if b.Append(packet) != fits {
					t.Fatalf("Append of %d bytes with %d packets and %d bytes used returned %v", n, len(packets), used(&b), !fits)
				}
				if fits {
					packets = append(packets, packet)
				}
			}
		}
		checkLayout(t, &b, packets)
	})
}

func TestBatchLayout(t *testing.T) {
	b := Batch{mtu: 1420}
	var packets [][]byte
	for _, n := range []int{1, 15, 16, 17, 20, 1409, 1420, 1421, 9000, 1} {
		packets = append(packets, bytes.Repeat([]byte{byte(n)}, n))
		b.Append(packets[len(packets)-1])
	}
	checkLayout(t, &b, packets)
}

func TestBatchFull(t *testing.T) {
	b := Batch{mtu: 1420}
	for i := range layout.MaxPackets {
		if !b.Append([]byte{1}) {
			t.Fatalf("packet %d does not fit into the batch", i)
		}
	}
	if b.Append([]byte{1}) || b.Next(1) != nil || b.Len() != layout.MaxPackets {
		t.Error("the batch accepted more than 128 packets")
	}
	b.Reset()
	large := make([]byte, maxPacket)
	if !b.Append(large) {
		t.Error("an empty batch has no room for the largest IP packet")
	}
	if !b.Append(make([]byte, 60000)) || b.Append(large) {
		t.Error("after a packet of the largest size, the batch must accept 60,000 bytes, and then refuse another packet of the largest size")
	}
	if b.Reset(); b.Len() != 0 || !b.Append(large) {
		t.Error("Reset did not empty the batch")
	}
	b.Reset()
	for range 90 {
		if !b.Append(make([]byte, 1420)) {
			t.Fatal("90 packets of 1420 bytes do not fit, but a batch must have space for two trains of 45")
		}
	}
}

func TestBatchMisuse(t *testing.T) {
	var b Batch
	for _, n := range []int{0, -1, maxPacket + 1, 1 << 30} {
		if b.Next(n) != nil {
			t.Errorf("Next(%d) returned space, want nil", n)
		}
	}
	if b.Append(nil) || b.Append(make([]byte, maxPacket+1)) || b.Len() != 0 {
		t.Error("Append accepted an empty packet or a packet that is too large")
	}
	if b.load != nil {
		t.Error("an empty batch holds memory")
	}
	wantPanic(t, "Commit without Next", func() { b.Commit(1) })
	b.Next(10)
	wantPanic(t, "Commit of more bytes than Next returned", func() { b.Commit(11) })
	wantPanic(t, "Commit of a negative length", func() { b.Commit(-1) })
	b.Commit(10)
	wantPanic(t, "a second Commit after one call of Next", func() { b.Commit(1) })
	b.Next(20)
	b.Next(5)
	wantPanic(t, "Commit of more bytes than the last call of Next returned", func() { b.Commit(6) })
	b.Next(10)
	b.Reset()
	wantPanic(t, "Commit after Reset", func() { b.Commit(1) })
	if b.Commit(0); b.load != nil || b.Len() != 0 {
		t.Error("after Reset, the batch is not empty")
	}
}

// TestSendEmptiesBatch checks that Send empties the batch even if it fails. Send also discards the space that Next returned if
// the caller has not committed it.
func TestSendEmptiesBatch(t *testing.T) {
	e := newEnd(t, testKey(1))
	send := func(why string, want error) {
		t.Helper()
		b := e.NewBatch()
		e.tunnel.mtu.Store(1280)
		before := e.drops.load()
		b.Append(packet4(100, here, here))
		b.Next(100)
		err := e.Send(b)
		if !errors.Is(err, want) || b.Len() != 0 || b.load != nil || b.room != 0 || b.mtu != 1280 {
			t.Errorf("%s: Send returned %v and left %d packets in the batch, or did not reset the batch", why, err, b.Len())
		}
		reason := DropDown
		if want == nil {
			reason = DropNoRoute
		}
		e.wantDrops(t, before, reason, 1, why)
		e.tunnel.mtu.Store(1420)
	}
	send("before Up", ErrDown)
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	send("up", nil)
	e.Down()
	send("down", ErrDown)
	e.Close()
	send("closed", net.ErrClosed)
	if err := e.Send(new(Batch)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send of an empty batch after Close returned %v, want net.ErrClosed", err)
	}
}
