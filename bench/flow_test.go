package main

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// send takes up to n packets from the flow and returns them.
func send(f *flow, n int) (packets [][]byte) {
	first, count := f.take(n, make(chan struct{}))
	for i := range count {
		p := make([]byte, len(f.template))
		f.fill(p, first+int64(i))
		packets = append(packets, p)
	}
	return packets
}

// deliver passes packets to the sink of the flow as one batch.
func deliver(f *flow, packets ...[]byte) {
	t := f.begin()
	for _, p := range packets {
		t.add(p)
	}
	t.end()
}

func TestFlowCountsFaults(t *testing.T) {
	f := newFlow(64, addrA, addrB)
	f.allow(10)
	p := send(f, 10)
	deliver(f, p[0], p[2], p[1], p[2]) // packet 1 arrives after packet 2, and packet 2 arrives twice
	deliver(f, p[5], p[6][:40])        // packets 3 and 4 are missing, and packet 6 is truncated
	f.stop()
	if f.late.Load() != 2 || f.mangled.Load() != 1 || f.missing() != 4 {
		t.Errorf("%d packets are late, %d are mangled and %d are missing; want 2, 1, 4", f.late.Load(), f.mangled.Load(), f.missing())
	}
	if err := f.drain(10 * time.Millisecond); !errors.Is(err, errNothingArrives) {
		t.Errorf("drain returns %v while packets are missing, want errNothingArrives", err)
	}
}

func TestFlowGivesBack(t *testing.T) {
	f := newFlow(64, addrA, addrB)
	f.allow(10)
	p := send(f, 10)
	f.giveBack(3)
	f.stop()
	deliver(f, p[:7]...)
	if err := f.drain(time.Second); err != nil || f.missing() != 0 {
		t.Errorf("drain returns %v, and %d packets are missing; want none, because packets that were given back do not count as sent", err, f.missing())
	}
	f.allow(8)
	if next := send(f, 128); len(next) != 1 || next[0][seqAt] != 7 {
		t.Errorf("%d packets follow, want only packet 7", len(next))
	}
}

func TestFlowWindow(t *testing.T) {
	const window = 10
	f := newFlow(64, addrA, addrB)
	f.open(window)
	down := make(chan struct{})
	var wg sync.WaitGroup
	way := make(chan []byte, 100*window)
	wg.Go(func() {
		for {
			first, n := f.take(4, down)
			if n == 0 {
				return
			}
			for i := range n {
				p := make([]byte, len(f.template))
				f.fill(p, first+int64(i))
				way <- p
			}
		}
	})
	for range 1000 {
		deliver(f, <-way)
		f.ahead.Lock()
		n := f.sent - f.received.Load()
		f.ahead.Unlock()
		if n > window {
			t.Fatalf("%d packets are in flight, want at most %d", n, window)
		}
	}
	close(down)
	wg.Wait()
}

func TestTemplateIsIPv4(t *testing.T) {
	f := newFlow(1420, addrA, addrB)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(f.template[i])<<8 | uint32(f.template[i+1])
	}
	if sum = sum>>16 + sum&0xffff; sum != 0xffff {
		t.Errorf("the sum over the IPv4 header is %x, want ffff", sum)
	}
	if got := int(f.template[2])<<8 | int(f.template[3]); got != 1420 {
		t.Errorf("the IPv4 header has the total length %d, want 1420", got)
	}
}

// crossWire sends numbered datagrams of random sizes over a wire with the given number of landings per end, in batches of random
// lengths. It checks that they arrive unchanged and in order. receive returns a function that receives one batch.
func crossWire(t *testing.T, landings int, receive func(*wireSocket) func() ([][]byte, error)) {
	st := &stage{}
	defer st.close()
	w := newWire(st, landings)
	a, b := w.ends[0].open(), w.ends[1].open()
	const total = 20000
	go func() {
		random := rand.New(rand.NewPCG(1, 2))
		for n := 0; n < total; {
			c := crossing{s: a}
			for range min(1+random.IntN(3*wireBatch), total-n) {
				d := make([]byte, 4+random.IntN(wireRoom-4))
				d[0], d[1], d[2], d[len(d)-1] = byte(n), byte(n>>8), byte(n>>16), byte(len(d))
				if err := c.put(d); err != nil {
					panic(err)
				}
				clear(d) // put has copied d, so the datagram must arrive unchanged
				n++
			}
			c.end()
		}
	}()
	next := receive(b)
	for n := 0; n < total; {
		datagrams, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if len(datagrams) == 0 || len(datagrams) > wireBatch {
			t.Fatalf("a batch has %d datagrams, want 1 to 128", len(datagrams))
		}
		for _, d := range datagrams {
			if got := int(d[0]) | int(d[1])<<8 | int(d[2])<<16; got != n {
				t.Fatalf("datagram %d arrived when %d was due", got, n)
			}
			if d[len(d)-1] != byte(len(d)) {
				t.Fatalf("datagram %d arrived with another length than it was sent with", n)
			}
			n++
		}
	}
}

func TestWireThatLends(t *testing.T) {
	crossWire(t, 3, func(s *wireSocket) func() ([][]byte, error) {
		o := &ourSocket{wireSocket: s}
		return func() (ds [][]byte, err error) {
			trains, err := o.Receive()
			for _, t := range trains {
				for data := t.Data; len(data) > 0; {
					n := min(t.Size, len(data))
					ds = append(ds, data[:n])
					data = data[n:]
				}
			}
			return ds, err
		}
	})
}

func TestWireThatFills(t *testing.T) {
	crossWire(t, 0, func(s *wireSocket) func() ([][]byte, error) {
		l := &landing{}
		return func() (ds [][]byte, err error) {
			l.bufs = nil
			for range wireBatch {
				l.bufs = append(l.bufs, make([]byte, wireRoom))
			}
			got, err := s.land(l)
			if err != nil {
				return nil, err
			}
			for i := range got.n {
				ds = append(ds, got.bufs[i][:got.size[i]])
			}
			return ds, nil
		}
	})
}

func TestWireCloses(t *testing.T) {
	for _, landings := range []int{0, 2} {
		for _, shut := range []func(*stage, *wireSocket){
			func(_ *stage, s *wireSocket) { s.close() },
			func(st *stage, _ *wireSocket) { st.close() },
		} {
			st := &stage{}
			w := newWire(st, landings)
			a, b := w.ends[0].open(), w.ends[1].open()
			errs := make(chan error, 2)
			go func() {
				var l *landing
				if landings == 0 {
					l = &landing{bufs: make([][]byte, wireBatch)}
				}
				_, err := b.land(l)
				errs <- err
			}()
			go func() { // nobody receives the batches, so put blocks until the wire is closed
				c := crossing{s: b}
				for range 3 * wireBatch * max(landings, 1) {
					if err := c.put([]byte{1}); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
			shut(st, b)
			for range 2 {
				if err := <-errs; !errors.Is(err, net.ErrClosed) {
					t.Errorf("with %d landings: %v, want net.ErrClosed", landings, err)
				}
			}
			shut(st, a)
			st.close()
		}
	}
	c := crossing{s: newWire(&stage{}, 1).ends[0].open()}
	if err := c.put(make([]byte, wireBatch*wireRoom+1)); !errors.Is(err, errOversized) {
		t.Errorf("put of a datagram that is too large returns %v, want errOversized", err)
	}
}
