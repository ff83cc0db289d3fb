package wireguard_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// Audits of other implementations have found faults. ARCHITECTURE.md lists these findings by number. The tests of this file cover
// the findings that no other test covers.

// tableRows returns the rows of a table in ARCHITECTURE.md, each as a list of cells. The table's header row begins with head.
func tableRows(t *testing.T, head string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\n"+head)
	if !found {
		t.Fatalf("ARCHITECTURE.md has no table that begins with %q", head)
	}
	for _, line := range strings.Split(table, "\n")[2:] {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(line, "| "), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

// testName matches the name of a test in a cell of the table, with or without the name of its package.
var testName = regexp.MustCompile("`((?:[a-z0-9]+\\.)?Test\\w+)`")

// TestAuditsAreAnswered checks that the table of findings in ARCHITECTURE.md has a row for each of the 35 findings, in order.
// Each row must name tests that exist, or give the reason why there is no test.
func TestAuditsAreAnswered(t *testing.T) {
	testkit.ReadsSources(t)
	names, rows := testNames(t), tableRows(t, "| # | finding |")
	if len(rows) != 35 {
		t.Fatalf("the table has %d rows, want 35", len(rows))
	}
	for i, cells := range rows {
		if len(cells) != 3 || cells[0] != strconv.Itoa(i+1) {
			t.Fatalf("row %d is %q, want number, finding and answer", i+1, cells)
		}
		tests := testName.FindAllStringSubmatch(cells[2], -1)
		if len(tests) == 0 && len(cells[2]) < 40 {
			t.Errorf("finding %d names no test and gives no reason: %q", i+1, cells[2])
		}
		for _, m := range tests {
			if !names[m[1]] {
				t.Errorf("finding %d: there is no test %s", i+1, m[1])
			}
		}
	}
}

// Finding 15: handshakes of another implementation failed if the round trip was longer than some limit. Here a handshake succeeds
// after one round trip if the round trip is less than 5 s. If it is longer, no handshake succeeds, because the initiator replaces
// its initiation after 5 s, as the protocol says. Once the round trip is shorter again, the next handshake succeeds.
func TestHandshakeAtEveryRoundTrip(t *testing.T) {
	for _, trip := range []time.Duration{
		0, 2, 50, 124, 126, 250, 334, 500, 1000, 2000, 3000, 4000, 4998, 6000, 8000, 10000,
	} {
		trip *= time.Millisecond
		t.Run(fmt.Sprint(trip), func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.net.SetConditions(pipe.Conditions{Delay: trip / 2})
				a.send(b, "x")
				w.advance(trip)
				a.wantSession(b, trip < 5*time.Second, "one round trip after the first initiation")
				if trip < 5*time.Second {
					w.advance(trip / 2)
					b.wantArrived("the packet that waited for the session", "x")
					return
				}
				w.advance(time.Minute - trip)
				a.wantSession(b, false, "each response answers an initiation that was replaced")
				w.net.SetConditions(pipe.Conditions{Delay: time.Millisecond})
				w.advance(5*time.Second + jitter + trip)
				a.wantSession(b, true, "the round trip is short again")
			})
		})
	}
}

// Finding 17: another implementation answered keepalives with keepalives, sent persistent keepalives during traffic, and made
// needless rekeys. Here the device a sends one packet per 800 ms for an hour, and the device b sends none. There must be one
// rekey per 120 s. About every 10 s, b must send a passive keepalive, unless it has sent a handshake response in that time. The
// device a must send keepalives only to confirm sessions.
func TestKeepalivesOfAnHourOneWay(t *testing.T) {
	for _, persistent := range []time.Duration{0, 25 * time.Second} {
		t.Run(fmt.Sprint("persistent ", persistent), func(t *testing.T) {
			inWorld(t, func(w *world) {
				a, b := w.node("a"), w.node("b")
				a.knows(b)
				b.knows(a)
				w.connect(a, b)
				for _, n := range []*node{a, b} {
					o := map[*node]*node{a: b, b: a}[n]
					n.update(o, wireguard.PeerChange{PersistentKeepalive: &persistent})
				}
				w.advance(time.Second)
				before := [2]pipe.Counts{a.end.Sent(), b.end.Sent()}
				for range 4500 {
					a.send(b, "x")
					w.advance(800 * time.Millisecond)
				}
				sentA, sentB := a.end.Sent(), b.end.Sent()
				if n := sentA.Initiations - before[0].Initiations; n != 30 {
					t.Errorf("a sent %d initiations in an hour, want one per 120 s", n)
				}
				if n := sentB.Initiations - before[1].Initiations; n != 0 {
					t.Errorf("b sent %d initiations, want 0, because b only receives data", n)
				}
				if n := sentA.Keepalives - before[0].Keepalives; n != 30 {
					t.Errorf("a sent %d keepalives in an hour, want the 30 that confirm sessions", n)
				}
				// b sends one 10 s after the first packet of each of the 30 sessions, and then one per 10 s. A session is renewed
				// after 120 s by a packet and an initiation sent together. If b opens that packet after it has answered the
				// initiation, the packet is the first one of the new session, whose twelfth keepalive is then due when the session
				// is renewed. Otherwise the first packet is the next one, and the session ends before its twelfth keepalive.
				if n := sentB.Keepalives - before[1].Keepalives; n < 11*30 || n > 12*30 {
					t.Errorf("b sent %d keepalives in an hour, want 11 or 12 in each of 30 sessions", n)
				}
			})
		})
	}
}

// Finding 22: unauthenticated packets caused events. Here an attacker who knows both public keys and sees all traffic sends
// forged messages of each type, and replays each message, from its own address. These messages must not cause an event of any
// kind.
func TestEventsNeedAuthenticPackets(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "there")
		b.send(a, "back")
		a.wantArrived("sent before", "back")
		b.wantArrived("sent before", "there")
		w.advance(time.Minute)
		var all []wireguard.EventKind
		for k := wireguard.EventKind(0); ; k++ {
			if _, err := k.MarshalText(); err != nil {
				break
			}
			all = append(all, k)
		}
		events := []<-chan wireguard.Event{a.watch(all...), b.watch(all...)}
		dropped := a.Status().Drops.Total() + b.Status().Drops.Total()
		tries := uint64(0)
		for _, kind := range []string{"a initiation", "b response", "a keepalive", "a data", "b data"} {
			m := w.last(kind)
			w.replay(m, stranger)
			tries++
			for at := 4; at < len(m.data); at += 3 {
				forged := m
				forged.data = bytes.Clone(m.data)
				forged.data[at] ^= 0x40
				if m.kind == pipe.TypeInitiation || m.kind == pipe.TypeResponse {
					forged.data = signed(forged.data, map[*node]*node{a: b, b: a}[m.from].pub())
				}
				w.replay(forged, stranger)
				tries++
			}
		}
		w.advance(time.Second)
		for i, es := range events {
			if len(es) > 0 {
				t.Fatalf("%d events at %s, want 0; the first is %v", len(es), w.nodes[i].name, <-es)
			}
		}
		if n := a.Status().Drops.Total() + b.Status().Drops.Total() - dropped; n != tries {
			t.Fatalf("%d of %d messages were dropped, want all", n, tries)
		}
		wantWorks(w, a, b, "after the forged messages")
	})
}

// Finding 28: another implementation failed when a packet was larger than the receiver's MTU. Here one device has an MTU of
// 65,535 bytes and the other device has an MTU of 1,280 bytes; then the MTUs are swapped. In both directions, a packet that fits
// into a datagram must arrive whole. Larger packets must be dropped and counted.
func TestPacketsBeyondTheOtherEndsMTU(t *testing.T) {
	for _, large := range []int{0, 1} {
		inWorld(t, func(w *world) {
			mtus := [2]int{1280, 1280}
			mtus[large] = 65535
			at := func(i int) func(c *wireguard.Config) {
				return func(c *wireguard.Config) {
					tun := pipe.NewTunnel(mtus[i])
					c.Tunnel = scribblingTunnel{tun}
				}
			}
			nodes := [2]*node{w.node("a", at(0)), w.node("b", at(1))}
			big, small := nodes[large], nodes[1-large]
			big.knows(small)
			small.knows(big)
			w.connect(big, small)
			for _, size := range []int{1281, 9000, 65475 &^ 15, 65535} {
				b := big.NewBatch()
				if !b.Append(big.packetOf(small, size, false, false)) {
					t.Fatalf("a batch has no room for a packet of %d bytes", size)
				}
				if err := big.Send(b); err != nil {
					t.Fatal(err)
				}
				w.settle()
			}
			big.wantDrops(wireguard.DropSendFailed, 1, "a packet of 65,535 bytes and 32 bytes of overhead do not fit into a datagram")
			if got := small.status(big).Received.Packets; got != 3 {
				t.Fatalf("the device with the small MTU accepted %d packets, want 3", got)
			}
			if drops := small.Status().Drops; drops.Total() != 0 {
				t.Fatalf("the device with the small MTU dropped %v, want no drops", drops)
			}
			b := small.NewBatch()
			b.Append(small.packetOf(big, 1280, false, false))
			if err := small.Send(b); err != nil {
				t.Fatal(err)
			}
			w.settle()
			if got := big.status(small).Received.Packets; got != 1 {
				t.Fatalf("the device with the large MTU accepted %d packets, want 1", got)
			}
		})
	}
}

// Finding 32: a table kept an entry for each public key that ever sent an initiation. Here 2,000 unknown peers with different
// keys send one initiation each. For each of them, the heap may grow by at most 32 bytes, the size of a key.
func TestDistinctLookupKeysLeaveNothing(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		const keys = 2000
		ask := func(n int) {
			for range n {
				from := netip.AddrPortFrom(elsewhere, uint16(1000+r.count()%50000))
				if err := w.net.Inject(from, server.at().Addr, wireguard.StrangersInitiation(server.pub(), time.Now())); err != nil {
					t.Fatal(err)
				}
				w.advance(time.Millisecond)
			}
		}
		ask(100)
		before := heap()
		ask(keys)
		w.advance(time.Minute)
		if n := r.count(); n != keys+100 {
			t.Fatalf("%d lookups, want one per key", n)
		}
		if left := heap() - before; left > keys*32 {
			t.Fatalf("%d keys left %d bytes on the heap, want at most 32 per key", keys, left)
		}
		r.knows(client)
		w.script()
		w.connect(client, server)
	})
}

// heap returns the size in bytes of all live objects on the heap.
func heap() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
