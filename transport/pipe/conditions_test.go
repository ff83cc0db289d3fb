package pipe

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// sendNumbered sends count datagrams of size bytes, one per millisecond, and waits until no more datagrams can arrive. It
// returns the numbers of the datagrams that have arrived, in the order of their arrival.
func sendNumbered(a, b *host, count, size int) (arrived []int) {
	for i := range count {
		a.send(b, numbered(i, size))
		time.Sleep(time.Millisecond)
		synctest.Wait()
		arrived = append(arrived, numbers(b.queued())...)
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	return append(arrived, numbers(b.queued())...)
}

func numbers(datagrams []string) (is []int) {
	for _, d := range datagrams {
		is = append(is, int(d[0])<<24|int(d[1])<<16|int(d[2])<<8|int(d[3]))
	}
	return is
}

func upTo(n int) (is []int) {
	for i := range n {
		is = append(is, i)
	}
	return is
}

func TestLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{Seed: 7})
		n.SetConditions(Conditions{Loss: 0.25})
		got := sendNumbered(a, b, 1000, 100)
		if lost := 1000 - len(got); lost < 200 || lost > 300 {
			t.Errorf("%d of 1000 datagrams were lost at a probability of 1/4, want 200 to 300", lost)
		}
		if !slices.IsSorted(got) {
			t.Error("datagrams arrived out of order, although Loss alone must not reorder")
		}
		n.wantFate(t, FateLost, uint64(1000-len(got)), "each datagram that did not arrive counts as lost")
		n.wantBalance(t)

		n.SetConditions(Conditions{Loss: 1})
		a.send(b, "x")
		b.want("every datagram is lost at a probability of 1")
		n.SetConditions(Conditions{})
		a.send(b, "y")
		b.want("nothing is lost without conditions", "y")
	})
}

func TestDuplicate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Duplicate: 1})
		a.send(b, "one", "two")
		b.want("each datagram arrives twice", "one", "one", "two", "two")
		if s := n.Stats(); s.Duplicated != 2 || s.Sent.Total() != 2 || b.Received().Total() != 4 {
			t.Errorf("%+v, want 2 duplicated, 2 sent and 4 received", s)
		}
		n.wantBalance(t)
	})
}

func TestReorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Reorder: 0.1, ReorderBy: 2500 * time.Microsecond})
		got := sendNumbered(a, b, 500, 100)
		late := 0
		for i := 1; i < len(got); i++ {
			if got[i] < got[i-1] {
				late++
			}
		}
		if late < 20 || late > 80 {
			t.Errorf("%d of 500 datagrams arrived late at a probability of 1/10, want 20 to 80", late)
		}
		slices.Sort(got)
		if !slices.Equal(got, upTo(500)) {
			t.Error("a datagram was lost or arrived twice, although Reorder alone must only reorder")
		}
	})
}

func TestReorderHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Reorder: 1})
		a.send(b, "one")
		n.SetConditions(Conditions{})
		a.send(b, "two")
		b.want("the second datagram overtakes the first", "two")
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		b.want("the default of ReorderBy, 10 ms, is over", "one")
	})
}

func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond})
		start := time.Now()
		var took []time.Duration
		n.Tap(func(p Packet) { took = append(took, p.Time.Sub(p.Sent)) })
		got := sendNumbered(a, b, 500, 100)
		if slices.IsSorted(got) {
			t.Error("all datagrams arrived in order, but a jitter of five times their spacing must reorder some")
		}
		if low, high := slices.Min(took), slices.Max(took); low < 10*time.Millisecond || low > 11*time.Millisecond ||
			high > 15*time.Millisecond || high < 14*time.Millisecond {
			t.Errorf("the datagrams took %v to %v, want 10 ms to 15 ms", low, high)
		}
		if len(got) != 500 || time.Since(start) < time.Hour {
			t.Error("a datagram was lost, or the test did not wait for an hour")
		}
	})
}

func TestConstantDelayKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Delay: 10 * time.Millisecond})
		for i := range 1000 {
			a.send(b, numbered(i, 100))
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if !slices.Equal(numbers(b.queued()), upTo(1000)) {
			t.Error("datagrams with the same time of arrival did not arrive in the order of sending")
		}
	})
}

// TestRateIsExact checks the times of arrival at a Rate of 1000 bytes per second. Each packet has 100 bytes with its headers.
func TestRateIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Rate: 1000, Queue: 1000})
		start := time.Now()
		var at []time.Duration
		n.Tap(func(p Packet) {
			if p.Fate == FateDelivered {
				at = append(at, p.Time.Sub(start))
			}
		})
		for i := range 15 {
			a.send(b, numbered(i, 100-28))
		}
		n.wantFate(t, FateOverflow, 5, "the queue holds ten of 15 packets")
		time.Sleep(time.Minute)
		synctest.Wait()
		for i, d := range at {
			if want := time.Duration(i+1) * 100 * time.Millisecond; d != want {
				t.Errorf("packet %d arrived after %v, want %v", i, d, want)
			}
		}
		if !slices.Equal(numbers(b.queued()), upTo(10)) {
			t.Error("the first ten packets did not arrive in order; the newest packets must overflow")
		}
		n.wantBalance(t)
	})
}

// TestRateDoesNotDrift checks that the time for 10,000 packets is exact to the nanosecond. At 999,997 bytes per second, a
// packet of 101 bytes does not take a whole number of nanoseconds.
func TestRateDoesNotDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, count, size = 999_997, 10_000, 101
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Rate: rate, Queue: 2 * count * size})
		start, last := time.Now(), time.Duration(0)
		n.Tap(func(p Packet) { last = p.Time.Sub(start) })
		for i := range count {
			a.send(b, numbered(i, size-28))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if want := time.Duration(count) * size * time.Second / rate; last != want {
			t.Errorf("the last packet arrived after %v, want %v", last, want)
		}
		n.wantFate(t, FateOverflow, 0, "the queue has room for twice as many packets")
	})
}

func TestRateOfIdleLineTakesAnySize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Rate: 1e6, Queue: 100})
		a.send(b, strings.Repeat("x", 1000))
		a.send(b, strings.Repeat("y", 1000))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.queued(); len(got) != 1 || got[0][0] != 'x' {
			t.Errorf("%d datagrams arrived, want only the first: it need not wait, and the second does not fit the queue", len(got))
		}
	})
}

func TestEachPathHasItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		c := newHost(t, n.NewEnd())
		n.SetConditions(Conditions{Rate: 1000})
		x := strings.Repeat("x", 1000-28)
		a.send(b, x)
		a.send(c, x)
		b.send(a, x)
		time.Sleep(time.Second)
		synctest.Wait()
		for _, h := range []*host{a, b, c} {
			h.want("packets on one path do not wait for packets on another", x)
		}
		n.SetConditions(Conditions{})
		if n.slow || len(n.paths) > 0 {
			t.Error("the network still takes the slow path after its conditions were removed")
		}
	})
}

func TestMTU(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	fits4, fits6 := strings.Repeat("x", 1400-28), strings.Repeat("x", 1400-48)
	v6 := wireguard.EndpointOf(b.Endpoint(1000).Addr)
	v6.Addr = addrPort(b.Addrs()[1], 1000)
	n.SetConditions(Conditions{MTU: 1400})
	a.send(b, fits4, fits4+"x")
	b.want("with 28 bytes of IPv4 and UDP headers, only the shorter datagram fits the MTU", fits4)
	if err := a.trySend(v6, fits6, fits6+"x"); err != nil {
		t.Errorf("Send: %v, want no error: without RefuseTooBig, a datagram that is too big is lost silently", err)
	}
	b.want("with 48 bytes of IPv6 and UDP headers, only the shorter datagram fits the MTU", fits6)
	n.wantFate(t, FateTooBig, 2, "one datagram per family is too big")

	n.SetConditions(Conditions{MTU: 1400, RefuseTooBig: true})
	train := wireguard.Train{Data: []byte(strings.Repeat("y", 1500)), Size: 1400, Endpoint: b.Endpoint(1000)}
	ts := []wireguard.Train{train}
	a.s.Send(ts)
	if !errors.Is(ts[0].Err, syscall.EMSGSIZE) {
		t.Errorf("Send: %v, want EMSGSIZE", ts[0].Err)
	}
	b.want("the last datagram of the train fits", strings.Repeat("y", 100))
	n.wantFate(t, FateTooBig, 2, "a datagram that Send refuses does not count as sent")
	n.wantBalance(t)
}

func TestCE(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	n.SetConditions(Conditions{CE: 1})
	for tos, want := range map[uint8]uint8{0: 0, 1: 3, 2: 3, 3: 3, 0x88: 0x88, 0x8a: 0x8b} {
		a.s.Send([]wireguard.Train{{Data: []byte("x"), Size: 1, TOS: tos, Endpoint: b.Endpoint(1000)}})
		ts, err := b.rx.Receive()
		if err != nil || ts[0].TOS != want {
			t.Errorf("TOS %#x arrived as %#x, want %#x (error %v)", tos, ts[0].TOS, want, err)
		}
	}
}

func TestPathOverridesNetwork(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	n.SetConditions(Conditions{Loss: 1})
	n.SetPath(a.End, b.End, Conditions{})
	a.send(b, "x")
	b.want("the path has its own conditions", "x")
	b.send(a, "y")
	a.want("the other direction has the network's conditions")
	n.ResetPath(a.End, b.End)
	a.send(b, "z")
	b.want("the path has the network's conditions again")
}

func TestCut(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	c := newHost(t, n.NewEnd())
	try := func(why string, want string) {
		t.Helper()
		a.send(b, "ab")
		a.send(c, "ac")
		b.send(a, "ba")
		c.send(a, "ca")
		got := slices.Concat(a.queued(), b.queued(), c.queued())
		if fmt.Sprint(got) != want {
			t.Errorf("arrived: %v, want %v: %s", got, want, why)
		}
	}
	try("nothing is cut", "[ba ca ab ac]")
	n.Cut(a.End, b.End)
	try("the path is cut in both directions", "[ca ac]")
	n.Mend(b.End, a.End)
	try("Mend accepts the ends in either order", "[ba ca ab ac]")
	n.CutOneWay(a.End, b.End)
	try("the path is cut from a to b only", "[ba ca ac]")
	n.Mend(a.End, b.End)
	n.Cut(a.End, nil)
	try("a is cut off from all ends", "[]")
	n.Mend(a.End, nil)
	n.CutOneWay(nil, a.End)
	try("a can send but not receive", "[ab ac]")
	n.Cut(nil, nil)
	try("all paths are cut", "[]")
	n.Mend(nil, nil)
	try("all paths are mended", "[ba ca ab ac]")
	n.wantBalance(t)
	if n.slow {
		t.Error("the network still takes the slow path after all cuts were mended")
	}
}

func TestCutLosesWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Delay: time.Second})
		a.send(b, "x")
		n.Cut(a.End, b.End)
		time.Sleep(time.Second)
		synctest.Wait()
		b.want("the path was cut while the datagram was under way")
		n.wantFate(t, FateCut, 1, "the cut lost the datagram")
	})
}

// storyOf sends datagrams over a network with the given seed. It returns a text with the fate of each datagram and its time.
func storyOf(t *testing.T, seed uint64) (story string) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{Seed: seed})
		n.SetConditions(Conditions{
			Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, CE: 0.5, Delay: time.Millisecond, Jitter: 3 * time.Millisecond,
			Rate: 100_000, Queue: 4000,
		})
		start := time.Now()
		var tale strings.Builder
		n.Tap(func(p Packet) {
			fmt.Fprintln(&tale, p.Time.Sub(start), p.Fate, p.TOS, numbers([]string{string(p.Data)}))
		})
		sendNumbered(a, b, 500, 100)
		n.wantBalance(t)
		if s := n.Stats(); s.UnderWay != 0 || s.Fates[FateOverflow] == 0 || s.Fates[FateLost] == 0 || s.Duplicated == 0 {
			t.Errorf("%+v, want no datagram under way, and some overflowed, lost and duplicated", s)
		}
		story = tale.String()
	})
	return story
}

func TestSeedDecidesAll(t *testing.T) {
	one := storyOf(t, 1)
	if again := storyOf(t, 1); again != one {
		t.Error("two runs with the same seed differ")
	}
	if storyOf(t, 2) == one {
		t.Error("two runs with different seeds are equal")
	}
}
