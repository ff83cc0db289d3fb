package wireguard

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// These tests are about feeds. A feed reads packets from a source (a Tunnel), and several goroutines share the work of sealing
// and sending them.

// A well is a source that gets its packets from the function fill. It checks that no two goroutines read it at the same time,
// that no goroutine reads it after its end, and that each batch is empty when the device passes it.
type well struct {
	t     *testing.T
	fill  func(b *Batch) error
	busy  atomic.Bool
	ended atomic.Bool
}

func (w *well) ReadPackets(b *Batch) error {
	if !w.busy.CompareAndSwap(false, true) {
		w.t.Error("two goroutines read the source at the same time")
	}
	defer w.busy.Store(false)
	if w.ended.Load() {
		w.t.Error("a goroutine read the source after the source had returned an error")
	}
	if b.Len() != 0 || b.mtu != 1420 {
		w.t.Errorf("the device passed a batch with %d packets and MTU %d, want an empty batch with MTU 1420", b.Len(), b.mtu)
	}
	err := w.fill(b)
	w.ended.Store(err != nil)
	return err
}

// A tape opens the messages that a device sends to the remote r, and checks the order of their packets. A packet has the number
// of its sender at offset 20, and its own number at offset 24. The map next has, for each sender, the number that the sender's
// next packet must have.
type tape struct {
	t    *testing.T
	r    *remote
	mu   sync.Mutex
	next map[uint32]uint32
	last uint64 // the counter that the next message must have
}

func (tp *tape) take(ts []Train) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for i := range ts {
		for m := range ts[i].Datagrams() {
			if counter := binary.LittleEndian.Uint64(m[8:]); counter != tp.last {
				tp.t.Errorf("a message has the counter %d, want %d", counter, tp.last)
			}
			tp.last++
			p, _, ok := packet.Unpad(tp.r.open(tp.t, append([]byte(nil), m...)))
			if !ok {
				tp.t.Error("a message does not contain a valid packet")
				continue
			}
			from, n := binary.BigEndian.Uint32(p[20:]), binary.BigEndian.Uint32(p[24:])
			if n != tp.next[from] {
				tp.t.Errorf("packet %d of sender %d was sent next, want packet %d", n, from, tp.next[from])
			}
			tp.next[from] = n + 1
		}
	}
}

func (tp *tape) of(sender uint32) uint32 {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.next[sender]
}

// packetOf returns the packet with number n of the sender.
func packetOf(sender, n uint32, size int, to *remote) []byte {
	p := packet4(size, here, to.addr)
	binary.BigEndian.PutUint32(p[20:], sender)
	binary.BigEndian.PutUint32(p[24:], n)
	return p
}

// feeding returns a device (an end) that has a session with a remote, and a tape of the messages from the device to the remote.
// The test runs with GOMAXPROCS set to cores. The feed starts helpers (additional goroutines that share its work) even if other
// programs use the cores.
func feeding(t *testing.T, cores int) (*end, *remote, *tape) {
	if cores > 1 {
		testkit.NeedsThreads(t, "several goroutines must share the work of one sender")
	}
	before := runtime.GOMAXPROCS(cores)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	r := newRemote(1, testKey(1).Public())
	e := newEndOf(t, Config{PrivateKey: testKey(1), Peers: []PeerConfig{r.config()}, Helpers: cores})
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	e.connect(t, r)
	tp := &tape{t: t, r: r, next: map[uint32]uint32{}, last: e.peer(r).current.counter}
	e.line.send = tp.take
	return e, r, tp
}

// feed starts a feed that reads from a new well with the function fill.
func (e *end) feed(t *testing.T, fill func(f *feed, b *Batch) error) (*feed, *well) {
	w := &well{t: t}
	f := e.newFeed(w)
	w.fill = func(b *Batch) error { return fill(f, b) }
	e.wg.Go(f.carry)
	return f, w
}

// comes is like eventually, but it calls Error instead of Fatal, so goroutines of the device may call it.
func comes(t *testing.T, why string, ok func() bool) bool {
	for start := time.Now(); !ok(); time.Sleep(50 * time.Microsecond) {
		if time.Since(start) > patience {
			t.Error(why)
			return false
		}
	}
	return true
}

// TestFeedSharesInOrder checks that while one goroutine is sending its batch, another goroutine reads and seals the next batch.
// The second batch is sent only after the first one, so the packets stay in order. If the source fails, the device sends all
// packets that it has read from the source before the device ends.
func TestFeedSharesInOrder(t *testing.T) {
	for name, end := range map[string]error{"the source ends": io.EOF, "the source fails": errors.New("failed")} {
		for batches, last := range map[int]string{1: "an error alone", 8: "an error with packets"} {
			t.Run(name+", "+last, func(t *testing.T) {
				e, r, tp := feeding(t, 2)
				read, n := make(chan struct{}, batches+1), uint32(0)
				first := true
				var fed atomic.Pointer[feed]
				e.line.send = func(ts []Train) {
					if first {
						first = false
						comes(t, "no other goroutine read the next batch from the source", func() bool { return len(read) >= 2 })
						if batches > 1 {
							comes(t, "no goroutine sealed the next batch", func() bool { return waiting(e.peer(r)) > 0 })
						}
						if e.running.Load() == nil {
							t.Error("the device ended before it had sent all packets that it had read")
						}
					}
					tp.take(ts)
				}
				f, w := e.feed(t, func(f *feed, b *Batch) error {
					fed.Store(f)
					read <- struct{}{}
					if len(read) > batches {
						return end
					}
					for b.Append(packetOf(1, n, 1400, r)) {
						n++
					}
					if len(read) == 8 {
						return end
					}
					return nil
				})
				eventually(t, "the source ends", w.ended.Load)
				if end == io.EOF {
					eventually(t, "all batches are sent", func() bool { return f.UnderWay() == 0 })
					e.Close()
				} else {
					<-e.Done()
				}
				if tp.of(1) != n {
					t.Errorf("%d of %d packets were sent", tp.of(1), n)
				}
				if n := f.UnderWay(); n != 0 {
					t.Errorf("%d batches were read and not sent, want 0", n)
				}
			})
		}
	}
}

// TestFeedEndsAfterItsPackets checks that if a source returns packets together with an error, the device sends these packets
// before the device ends, even if the packets are queued behind packets of another sender.
func TestFeedEndsAfterItsPackets(t *testing.T) {
	e, r, tp := feeding(t, 2)
	leave := e.occupy(t, r, tp.take, tp.take)
	failed := errors.New("failed")
	e.feed(t, func(f *feed, b *Batch) error {
		b.Append(packetOf(1, 0, 100, r))
		return failed
	})
	eventually(t, "the packet of the source is queued", func() bool { return waiting(e.peer(r)) == 1 })
	select {
	case <-e.Done():
		t.Fatal("the device ended while a packet waits to be sent")
	case <-time.After(5 * time.Millisecond):
	}
	leave()
	if <-e.Done(); !errors.Is(e.Err(), failed) || tp.of(1) != 1 {
		t.Errorf("the device ended with the error %v after %d packets of the source were sent, want the source's error and 1 packet", e.Err(), tp.of(1))
	}
}

// TestFeedsAndSenders checks that the packets of several sources and senders to one peer keep their order, and that none is lost,
// no matter how the goroutines are scheduled. After each burst, the additional goroutines end. One goroutine of a feed must
// remain to read the next burst.
func TestFeedsAndSenders(t *testing.T) {
	const cores, bursts, feeds, senders = 4, 300, 2, 2
	e, r, tp := feeding(t, cores)
	var wg sync.WaitGroup
	var all []*feed
	sent := make([]uint32, feeds+senders)
	for i := range feeds {
		var burst, n uint32 // the number of packets left in the burst, and of all packets read so far
		more := make(chan uint32)
		f, _ := e.feed(t, func(f *feed, b *Batch) error {
			if out := f.Out(); out >= cores {
				t.Errorf("the feed has %d helpers, want fewer than the number of cores", out)
			}
			if burst == 0 {
				var ok bool
				if burst, ok = <-more; !ok {
					return io.EOF
				}
			}
			for ; burst > 0 && b.Append(packetOf(uint32(i), n, 1400, r)); burst-- {
				n++
			}
			return nil
		})
		all = append(all, f)
		wg.Go(func() {
			for range bursts {
				size := 1 + rand.Uint32N(400)
				more <- size
				sent[i] += size
				if rand.IntN(8) == 0 {
					time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
				}
			}
			eventually(t, "the helpers of the feed end", func() bool { return f.Out() == 0 })
			close(more)
		})
	}
	for i := feeds; i < feeds+senders; i++ {
		wg.Go(func() {
			b := e.NewBatch()
			for range bursts {
				for range 1 + rand.IntN(3) {
					b.Append(packetOf(uint32(i), sent[i], 100, r))
					sent[i]++
				}
				e.Device.Send(b)
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			}
		})
	}
	wg.Wait()
	for i, n := range sent {
		eventually(t, "all packets are sent", func() bool { return tp.of(uint32(i)) == n })
	}
	p := e.peer(r)
	eventually(t, "no goroutine leads the queue, and no packet is queued or staged", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return !p.queue.led && p.queue.head == nil && p.staged.N == 0
	})
	drops := e.Status().Drops
	if n := drops.Total(); n != 0 {
		t.Errorf("%d packets were dropped, want 0", n)
	}
	for _, f := range all {
		if f.Most() == 0 {
			t.Error("the feed never wanted a helper")
		}
	}
}

// TestFeedAlone checks that one goroutine does all the work of a feed if there is only one core, if the batches are small, or if
// the packets have to wait for a session.
func TestFeedAlone(t *testing.T) {
	for name, c := range map[string]struct {
		cores, packets int
		waits          bool
	}{"one core": {1, 80, false}, "small batches": {4, 5, false}, "no session": {4, 80, true}} {
		t.Run(name, func(t *testing.T) {
			e, r, tp := feeding(t, c.cores)
			n, to := uint32(0), r
			if c.waits {
				to = newRemote(2, testKey(1).Public())
				e.SetPeer(to.config())
				e.line.send = func([]Train) {}
			}
			f, w := e.feed(t, func(f *feed, b *Batch) error {
				if f.Out() != 0 {
					t.Error("the feed has helpers, want none")
				}
				if n == 300*uint32(c.packets) {
					return io.EOF
				}
				for range c.packets {
					b.Append(packetOf(1, n, 1400, to))
					n++
				}
				return nil
			})
			eventually(t, "the source ends", w.ended.Load)
			if !c.waits && tp.of(1) != n {
				t.Errorf("%d of %d packets were sent", tp.of(1), n)
			}
			if f.Most() != 0 {
				t.Error("the feed wanted a helper, want none")
			}
		})
	}
}

// TestFeedIsHeldBack checks that while packets of a source are queued behind packets of another sender, the device reads only a
// few more batches from that source. This must hold even if most packets in these batches go to another peer. No packet may be
// dropped.
func TestFeedIsHeldBack(t *testing.T) {
	e, r, tp := feeding(t, 2)
	busy := newRemote(2, testKey(1).Public())
	if err := e.SetPeer(busy.config()); err != nil {
		t.Fatal(err)
	}
	e.line.send = nil
	e.connect(t, busy)
	before := e.drops.load()
	leave := e.occupy(t, r, tp.take, func(ts []Train) {
		for i := range ts {
			if ts[i].Endpoint.SamePlace(r.from) {
				tp.take(ts[i : i+1])
			}
		}
	})
	const batches = 50
	var reads atomic.Int32
	n := uint32(0)
	_, w := e.feed(t, func(f *feed, b *Batch) error {
		if reads.Add(1) > batches {
			return io.EOF
		}
		b.Append(packetOf(1, n, 100, r))
		n++
		for b.Append(packetOf(1, 0, 1400, busy)) {
		}
		return nil
	})
	eventually(t, "the device reads more than 2 batches", func() bool { return reads.Load() > 2 })
	time.Sleep(20 * time.Millisecond)
	if reads.Load() > 4 {
		t.Errorf("the device read the source %d times while nothing was sent, want at most 4 times", reads.Load())
	}
	leave()
	eventually(t, "the source ends", w.ended.Load)
	eventually(t, "all packets of the source are sent", func() bool { return tp.of(1) == batches })
	e.wantDrops(t, before, 0, 0, "the device reads less from the source and drops no packets")
}

// TestFeedAsksInVain checks a feed whose source pauses after each batch, so that helpers find no work. After a few attempts, the
// feed must try to start helpers only at every 32nd batch, even if the batches are large.
func TestFeedAsksInVain(t *testing.T) {
	e, r, _ := feeding(t, 2)
	e.line.send = func([]Train) {}
	const batches = 4*32 + 16 // the feed tries to start a helper again at every 32nd batch
	n := 0
	f, w := e.feed(t, func(f *feed, b *Batch) error {
		for deadline := time.Now().Add(patience); f.UnderWay() != 0 && time.Now().Before(deadline); {
			runtime.Gosched() // the source returns the next batch only when the previous one has been sent
		}
		if n++; n > batches {
			return io.EOF
		}
		for b.Append(packetOf(1, 0, 1400, r)) {
		}
		return nil
	})
	eventually(t, "the source ends", w.ended.Load)
	if f.Wanted() {
		t.Error("the feed still asks for helpers")
	}
}

// TestFeedAllocatesNothing checks that a feed whose goroutines share the work allocates nothing except, occasionally, a goroutine
// and a batch.
func TestFeedAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	e, r, _ := feeding(t, 2)
	e.line.send = func([]Train) {}
	const warm, batches = 500, 3000
	p := packetOf(1, 0, 1400, r)
	var before, after runtime.MemStats
	n := 0
	_, w := e.feed(t, func(f *feed, b *Batch) error {
		switch n++; n {
		case warm:
			runtime.ReadMemStats(&before)
		case warm + batches:
			runtime.ReadMemStats(&after)
			return io.EOF
		}
		for b.Append(p) {
		}
		return nil
	})
	eventually(t, "the source ends", w.ended.Load)
	if m := after.Mallocs - before.Mallocs; m > batches/10 {
		t.Errorf("%d allocations for %d batches of 90 packets, want at most one per 10 batches", m, batches)
	}
}

// TestHelpers checks that Config.Helpers limits the number of helpers of each source, of each sender's batch, and of each
// receiver.
func TestHelpers(t *testing.T) {
	for _, helpers := range []int{0, 2, -1} {
		e := newEndOf(t, Config{PrivateKey: testKey(1), Helpers: helpers})
		l := newLoad(0)
		l.seal(e.helpers)
		for name, limit := range map[string]int{"source": e.newFeed(e.tunnel).Limit, "sender": l.fork.Limit, "receiver": e.newInbound().fork.Limit} {
			if limit != helpers {
				t.Errorf("with Config.Helpers = %d, the helpers of a %s are limited to %d", helpers, name, limit)
			}
		}
	}
}
