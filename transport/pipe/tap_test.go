package pipe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// message returns a datagram of size bytes whose type field is kind.
func message(kind byte, size int) string {
	b := make([]byte, size)
	b[0] = kind
	return string(b)
}

func TestTypeOf(t *testing.T) {
	for _, tc := range []struct {
		data string
		want MessageType
	}{
		{message(1, 148), TypeInitiation}, {message(1, 147), TypeOther}, {message(1, 149), TypeOther},
		{message(2, 92), TypeResponse}, {message(2, 148), TypeOther},
		{message(3, 64), TypeCookieReply}, {message(3, 92), TypeOther},
		{message(4, 32), TypeKeepalive}, {message(4, 31), TypeOther}, {message(4, 48), TypeData}, {message(4, 33), TypeData},
		{message(5, 64), TypeOther}, {message(0, 64), TypeOther}, {"", TypeOther}, {"\x04", TypeOther},
		{"\x04\x00\x00\x01" + message(0, 60), TypeOther},
	} {
		if got := TypeOf([]byte(tc.data)); got != tc.want {
			t.Errorf("type field %x, %d bytes: TypeOf returned %v, want %v", tc.data[:min(4, len(tc.data))], len(tc.data), got, tc.want)
		}
	}
}

func TestCounts(t *testing.T) {
	for _, slow := range []bool{false, true} {
		n, a, b := twoHosts(t, Config{})
		if slow {
			n.Tap(func(Packet) {})
		}
		a.send(b, message(1, 148), message(4, 32), message(4, 32), message(4, 96))
		b.send(a, message(2, 92), message(3, 64), "what?")
		wantA := Counts{Initiations: 1, Data: 1, Keepalives: 2, Bytes: 148 + 64 + 96}
		wantB := Counts{Responses: 1, CookieReplies: 1, Other: 1, Bytes: 92 + 64 + 5}
		for _, c := range []struct {
			name      string
			got, want Counts
		}{
			{"sent by a", a.Sent(), wantA}, {"received by b", b.Received(), wantA},
			{"sent by b", b.Sent(), wantB}, {"received by a", a.Received(), wantB},
			{"sent by all", n.Sent(), Counts{1, 1, 1, 1, 2, 1, wantA.Bytes + wantB.Bytes}},
		} {
			if c.got != c.want {
				t.Errorf("%s: %+v, want %+v", c.name, c.got, c.want)
			}
		}
		n.wantBalance(t)
	}
}

func TestNamesAreDistinct(t *testing.T) {
	seen := make(map[string]bool)
	for i := range types {
		seen[i.String()] = true
	}
	for i := range fates {
		seen[i.String()] = true
	}
	if seen[""] || len(seen) != int(types)+int(fates) || types.String() != "unknown" || fates.String() != "unknown" {
		t.Errorf("the names are %v, want a distinct name for each type and fate", seen)
	}
}

func TestTapSeesEachFateOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		var saw []string
		remove := n.Tap(func(p Packet) {
			saw = append(saw, fmt.Sprint(string(p.Data), " ", p.Fate, " ", p.Sender == a.End, " ", p.Receiver == b.End))
			clear(p.Data) // the network does not use the data any more
		})
		start := time.Now()
		n.SetConditions(Conditions{Delay: time.Second})
		a.send(b, "one")
		n.SetConditions(Conditions{Loss: 1})
		a.send(b, "two")
		if s := n.Stats(); s.UnderWay != 1 {
			t.Errorf("%d datagrams are under way, want only the first", s.UnderWay)
		}
		n.wantBalance(t)
		time.Sleep(time.Second)
		synctest.Wait()
		n.SetConditions(Conditions{})
		a.trySend(b.Endpoint(7), "three")
		n.Inject(a.Endpoint(1000).Addr, b.Endpoint(1000).Addr, []byte("four"))
		remove()
		remove()
		a.send(b, "five")
		want := []string{"two lost true false", "one delivered true true", "three no socket true false", "four delivered false true"}
		if !slices.Equal(saw, want) {
			t.Errorf("the tap was called with %q, want %q", saw, want)
		}
		b.want("a tap changes nothing", "one", "four", "five")
		if time.Since(start) != time.Second {
			t.Error("the datagrams took longer than the delay of the first one")
		}
	})
}

func TestFilterLosesTheSecondMessage(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	count := 0
	remove := n.Filter(func(p *Packet) Verdict {
		if count++; count == 2 {
			return Drop
		}
		return Pass
	})
	a.send(b, "one", "two", "three")
	b.want("the filter drops the second datagram", "one", "three")
	n.wantFate(t, FateFiltered, 1, "the filter drops one datagram")
	remove()
	if n.slow {
		t.Error("the network still takes the slow path after its filter was removed")
	}
	if s := a.Sent(); s.Other != 3 {
		t.Errorf("%d datagrams count as sent, want 3: a datagram that a filter drops counts too", s.Other)
	}
	n.wantBalance(t)
}

func TestFilterChanges(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	mine := []byte("mine")
	n.Filter(func(p *Packet) Verdict {
		switch string(p.Data) {
		case "flip":
			p.Data[0] ^= 1
		case "shorten":
			p.Data = p.Data[2:5]
		case "lengthen":
			p.Data = append(p.Data, message(0, 100)...)
		case "replace":
			p.Data = mine
		case "empty":
			p.Data = nil
		case "mark":
			p.TOS = 3
		}
		return Pass
	})
	a.send(b, "flip", "shorten", "lengthen", "replace", "empty", "same")
	clear(mine)
	b.want("the receiver gets the changed datagrams, and not the empty one", "glip", "ort", "lengthen"+message(0, 100), "mine", "same")
	a.send(b, "mark")
	if ts, err := b.rx.Receive(); err != nil || ts[0].TOS != 3 {
		t.Errorf("received TOS %#x, error %v; want the TOS 0x3 that the filter set", ts[0].TOS, err)
	}
	n.wantBalance(t)
}

func TestFiltersInOrder(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	for i := range 3 {
		n.Filter(func(p *Packet) Verdict {
			if string(p.Data) == "x1" && i == 2 {
				t.Error("the third filter was called for a datagram that the second filter dropped")
			}
			p.Data = fmt.Append(p.Data, i)
			if string(p.Data) == "x01" {
				return Drop
			}
			return Pass
		})
	}
	a.send(b, "x", "y")
	b.want("each filter gets the datagram as the filter before changed it", "y012")
}

func TestHoldAndRelease(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	n.Filter(func(p *Packet) Verdict {
		if strings.HasPrefix(string(p.Data), "hold") {
			return Hold
		}
		return Pass
	})
	a.send(b, "hold one", "go", "hold two")
	b.want("the filter holds two datagrams", "go")
	if s := n.Stats(); s.UnderWay != 2 {
		t.Errorf("%d datagrams are under way, want the two that are held", s.UnderWay)
	}
	n.wantBalance(t)
	n.Release()
	b.want("Release delivers in order, without calling the filter again", "hold one", "hold two")
	n.Release()
	b.want("no datagram is held any more")
	n.wantFate(t, FateDelivered, 3, "each datagram is delivered once")
	if s := n.Stats(); s.UnderWay != 0 || s.Fates.Total() != 3 {
		t.Errorf("%+v, want none under way and 3 with a fate", s)
	}
}

func TestFilterDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Delay: time.Second})
		n.Filter(func(p *Packet) Verdict {
			if string(p.Data) == "slow" {
				p.Delay = time.Minute
			}
			return Pass
		})
		a.send(b, "slow", "fast")
		time.Sleep(time.Second)
		synctest.Wait()
		b.want("the delay of the path is over", "fast")
		time.Sleep(time.Minute - 1)
		synctest.Wait()
		b.want("the minute that the filter added is not over")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		b.want("the minute that the filter added is over", "slow")
	})
}

// TestFiltersAndTapsUseTheNetwork checks that filters and taps may call the network without a deadlock, and that the datagrams
// that they send arrive after the datagram for which they were called.
func TestFiltersAndTapsUseTheNetwork(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	n.Filter(func(p *Packet) Verdict {
		if string(p.Data) == "one" {
			n.Inject(p.From, p.To, []byte("forged"))
			a.send(b, "more")
			n.Stats()
		}
		return Pass
	})
	var remove func()
	remove = n.Tap(func(p Packet) {
		if string(p.Data) == "more" {
			n.Cut(a.End, b.End)
			remove()
		}
	})
	a.send(b, "one")
	b.want("the filter's datagrams arrive after the one for which it was called", "one", "forged", "more")
	a.send(b, "two")
	b.want("the tap has cut the path")
	n.wantBalance(t)
}

// TestOrderIsKeptWhenTheLastFilterGoes checks that datagrams stay in order if a filter removes itself and then sends. The
// datagram for which the filter was called must arrive first.
func TestOrderIsKeptWhenTheLastFilterGoes(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	var remove func()
	remove = n.Filter(func(p *Packet) Verdict {
		remove()
		a.send(b, "two")
		return Pass
	})
	a.send(b, "one")
	b.want("the datagrams arrive in the order of sending", "one", "two")
}

// TestFilterNeverRunsTwiceAtOnce checks that filters and taps are called by one goroutine at a time while several goroutines
// send. A goroutine that sends while another goroutine calls filters leaves its datagrams to the other goroutine and continues.
func TestFilterNeverRunsTwiceAtOnce(t *testing.T) {
	const senders, each = 4, 500
	n, a, b := twoHosts(t, Config{Queue: 16 << 20})
	count := 0 // the race detector reports concurrent calls
	n.Filter(func(*Packet) Verdict { count++; return Pass })
	n.Tap(func(Packet) { count++ })
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				a.send(b, numbered(s<<16+i, 100))
			}
		})
	}
	wg.Wait()
	a.send(b, numbered(senders<<16, 100))
	next := make(map[int]int)
	for _, i := range numbers(b.queued()) {
		if next[i>>16] != i&0xffff {
			t.Fatalf("sender %d: received datagram %d, want datagram %d", i>>16, i&0xffff, next[i>>16])
		}
		next[i>>16]++
	}
	if total := 2 * (senders*each + 1); count != total || len(next) != senders+1 {
		t.Errorf("filter and tap were called %d times, want %d; datagrams arrived from %d senders", count, total, len(next))
	}
	n.wantBalance(t)
}

func TestPanicInTapLeavesTheNetworkUsable(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	remove := n.Tap(func(Packet) { panic("tap") })
	wantPanic(t, "the tap panics", func() { a.send(b, "one") })
	remove()
	a.send(b, "two")
	b.want("both datagrams arrive despite the panic", "one", "two")
}

func TestInject(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	n.SetConditions(Conditions{Loss: 1})
	n.Cut(nil, nil)
	n.Filter(func(*Packet) Verdict { t.Error("Inject called a filter"); return Drop })
	from, to := netip.MustParseAddrPort("198.51.100.1:1"), b.Endpoint(1000).Addr
	data := []byte("forged")
	if err := n.Inject(from, to, data); err != nil {
		t.Fatal(err)
	}
	clear(data)
	n.Inject(a.Endpoint(1000).Addr, to, []byte("replayed"))
	ts, err := b.rx.Receive()
	if err != nil || len(ts) != 2 || ts[0].Endpoint.Addr != from || string(ts[0].Data) != "forged" ||
		ts[1].Endpoint.Addr != a.Endpoint(1000).Addr {
		t.Errorf("received %+v, error %v; want the forged and the replayed datagram", ts, err)
	}
	if s := n.Stats(); s.Injected != 2 || s.Sent.Total() != 0 {
		t.Errorf("%+v, want 2 injected and none sent", s)
	}
	for _, err := range []error{
		n.Inject(netip.AddrPort{}, to, data), n.Inject(from, netip.AddrPort{}, data), n.Inject(from, to, nil),
	} {
		if err == nil {
			t.Error("Inject accepted an invalid address or empty data")
		}
	}
	if err := n.Inject(from, to, make([]byte, 65508)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("Inject of 65508 bytes: error %v, want EMSGSIZE", err)
	}
	n.wantBalance(t)
}

func TestWhatIsUnderWayIsBounded(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	remove := n.Filter(func(*Packet) Verdict { return Hold })
	const size = 60_000
	ts := []wireguard.Train{{Data: make([]byte, size), Size: size, Endpoint: b.Endpoint(1000)}}
	for range 2 * maxWeight / size {
		a.s.Send(ts)
	}
	if n.weight > maxWeight+size+flightWeight {
		t.Errorf("%d bytes are under way, more than the limit", n.weight)
	}
	if n.Stats().Fates[FateOverflow] == 0 {
		t.Error("no datagram overflowed, although more than the limit was sent")
	}
	n.wantBalance(t)
	remove()
	n.Release()
	n.wantBalance(t)
	if s := n.Stats(); s.UnderWay != 0 || n.weight != 0 || len(n.spare) > spareFlights {
		t.Errorf("after Release, %d datagrams are under way with %d bytes, want 0; %d flights are spare", s.UnderWay, n.weight, len(n.spare))
	}
	for _, f := range n.spare {
		if cap(f.memory) > spareMemory {
			t.Fatalf("a spare flight keeps %d bytes of memory, more than the limit", cap(f.memory))
		}
	}
}

func TestPcap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // virtual time begins at midnight UTC 2000-01-01
		n, a, b := twoHosts(t, Config{})
		var file bytes.Buffer
		n.Tap(WritePcap(&file))
		time.Sleep(1500 * time.Millisecond)
		a.send(b, "hello")
		a.trySend(wireguard.EndpointOf(addrPort(b.Addrs()[1], 1000)), "six")
		le := binary.LittleEndian
		all := file.Bytes()
		if len(all) != 24+16+28+5+16+48+3 || le.Uint32(all) != 0xa1b23c4d || le.Uint32(all[20:]) != 101 {
			t.Fatalf("the file has %d bytes, want a pcap header and two records: %x", len(all), all)
		}
		record := all[24:]
		if le.Uint32(record) != 946684801 || le.Uint32(record[4:]) != 500_000_000 || le.Uint32(record[8:]) != 33 ||
			le.Uint32(record[12:]) != 33 {
			t.Errorf("the record header is %x, want the time 1.5 s after the start, and twice the length 33", record[:16])
		}
		want := UDPPacket(a.Endpoint(1000).Addr, b.Endpoint(1000).Addr, []byte("hello"))
		if !bytes.Equal(record[16:16+33], want) {
			t.Errorf("the captured packet is %x, want %x", record[16:16+33], want)
		}
		want = UDPPacket(addrPort(a.Addrs()[1], 1000), addrPort(b.Addrs()[1], 1000), []byte("six"))
		if !bytes.Equal(record[16+33+16:], want) {
			t.Errorf("the captured packet is %x, want %x", record[16+33+16:], want)
		}
	})
}

type brokenWriter struct{ writes int }

func (w *brokenWriter) Write([]byte) (int, error) { w.writes++; return 0, errors.New("disk full") }

func TestPcapStopsAfterAnError(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	var w brokenWriter
	n.Tap(WritePcap(&w))
	a.send(b, "x", "y")
	if w.writes != 1 {
		t.Errorf("%d writes, want only the one that failed", w.writes)
	}
}
