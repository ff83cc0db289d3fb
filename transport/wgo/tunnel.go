package wgo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/seed-86b749af/wireguard"
)

const (
	defaultMTU = 1420 // for a tun.Device that cannot tell its MTU

	readFailures = 8 // number of consecutive errors of Read after which ReadPackets fails for good

	closeQuiet = 5 * time.Millisecond
	closeWait  = 100 * time.Millisecond
)

var errClosed = fmt.Errorf("wgo: the tunnel is closed: %w", net.ErrClosed)

// Tunnel returns a wireguard.Tunnel for a device of this library that uses the tun.Device dev of wireguard-go. Close of the
// tunnel closes dev. The tunnel is a [wireguard.PacketSource]. It reads the events of dev: it applies changes of the MTU, and
// ignores the events up and down.
//
// ReadPackets copies each packet into the batch. WritePackets copies each packet into a buffer with the free space around the
// packet that dev needs. Neither allocates memory per packet. No goroutine runs before the first call of ReadPackets.
func Tunnel(dev tun.Device) wireguard.Tunnel { return TunnelWithEvents(dev, nil) }

// TunnelWithEvents does what Tunnel does, and also calls onEvent for each event of dev, one at a time, on a separate goroutine.
// If the device has to go up and down with the interface, as in wireguard-go, the program can call Device.Up and Device.Down
// from onEvent. onEvent may be nil.
func TunnelWithEvents(dev tun.Device, onEvent func(tun.Event)) wireguard.Tunnel {
	t := &tunnel{dev: dev, onEvent: onEvent, reading: make(chan struct{}, 1), closed: make(chan struct{})}
	batch := max(dev.BatchSize(), 1)
	t.runs.New = func() any { return newRun(batch) }
	t.mtu.Store(defaultMTU)
	t.loadMTU()
	return t
}

// A tunnel wraps a tun.Device as a wireguard.Tunnel.
type tunnel struct {
	dev     tun.Device
	onEvent func(tun.Event)
	mtu     atomic.Int32
	follow  sync.Once // starts the goroutine that reads the events

	reading chan struct{} // a semaphore: the goroutine that has put a token into it may read dev and use r
	r       reader

	writing sync.RWMutex // read-locked during dev.Write, locked during dev.Close
	runs    sync.Pool    // contains *run

	closing  sync.Once
	closed   chan struct{} // closed when Close begins
	closeErr error
}

// A reader holds the packets that dev.Read has returned and that are not in a batch yet.
type reader struct {
	bufs    [][]byte
	sizes   []int
	next, n int   // the packets that are not in a batch yet are in bufs[next:n]
	end     error // set when dev.Read has failed for good; then it is not called again
}

// MTU returns the MTU that the tun.Device had at its last MTU event.
func (t *tunnel) MTU() int { return int(t.mtu.Load()) }

func (t *tunnel) loadMTU() {
	if mtu, err := t.dev.MTU(); err == nil && mtu > 0 {
		t.mtu.Store(int32(min(mtu, slot-room)))
	}
}

// takeEvents processes events until the device closes its channel. Close must not wait for takeEvents, because onEvent may be
// in a call that waits for Close.
func (t *tunnel) takeEvents() {
	for e := range t.dev.Events() {
		if e&tun.EventMTUUpdate != 0 {
			t.loadMTU()
		}
		if t.onEvent != nil {
			t.onEvent(e)
		}
	}
}

func (t *tunnel) startEvents() {
	if t.dev.Events() != nil {
		go t.takeEvents()
	}
}

func (t *tunnel) isClosed() bool {
	select {
	case <-t.closed:
		return true
	default:
		return false
	}
}

// ReadPackets appends packets to b. It first uses the packets of the last dev.Read that are not in a batch yet. If there are
// none, it calls dev.Read.
func (t *tunnel) ReadPackets(b *wireguard.Batch) error {
	t.follow.Do(t.startEvents)
	t.reading <- struct{}{}
	defer func() { <-t.reading }()
	r := &t.r
	for b.Len() == 0 {
		if r.next == r.n {
			if err := t.read(); err != nil {
				return err
			}
		}
		for ; r.next < r.n; r.next++ {
			if n := r.sizes[r.next]; n > 0 && !b.Append(r.bufs[r.next][room:room+n]) {
				break
			}
		}
	}
	return nil
}

// read calls dev.Read until dev.Read returns packets or has failed for good. The caller has put a token into t.reading.
func (t *tunnel) read() error {
	r := &t.r
	if r.end == nil && r.bufs == nil {
		batch := max(t.dev.BatchSize(), 1)
		_, r.bufs = newSlots(batch)
		r.sizes = make([]int, batch)
	}
	for failures := 0; r.end == nil; {
		n, err := t.dev.Read(r.bufs, r.sizes, room)
		if r.next, r.n = 0, max(n, 0); r.n > 0 {
			return nil // ignore err, because a permanent error occurs again
		}
		switch {
		case err == nil || errors.Is(err, tun.ErrTooManySegments):
		case gone(err):
			r.end = fmt.Errorf("wgo: the tun.Device has gone: %v", err) // not wrapped, because Close was not called
		case temporary(err) && !t.isClosed():
			t.pause(0)
		default:
			if failures++; failures == readFailures {
				r.end = fmt.Errorf("wgo: reading the tun.Device: %w", err)
			}
			t.pause(failures)
		}
	}
	if r.bufs = nil; t.isClosed() {
		r.end = errClosed
	}
	return r.end
}

// gone reports whether err says that the tun.Device was closed or deleted.
func gone(err error) bool {
	return errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF)
}

func temporary(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && t.Temporary()
}

// pause waits for 1 ms, doubled once per failure, but at most until Close.
func (t *tunnel) pause(failures int) {
	timer := time.NewTimer(time.Millisecond << failures)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.closed:
	}
}

// WritePackets writes pkts with as many calls of dev.Write as the batch size of dev requires. If a call fails, WritePackets still
// makes the remaining calls, and returns the first error.
func (t *tunnel) WritePackets(pkts [][]byte) (n int, err error) {
	t.writing.RLock()
	defer t.writing.RUnlock()
	if t.isClosed() {
		return 0, errClosed
	}
	r := t.runs.Get().(*run)
	defer t.runs.Put(r)
	for len(pkts) > 0 {
		for r.reset(); len(pkts) > 0 && !r.full(); pkts = pkts[1:] {
			r.copy(pkts[0], room)
		}
		m, e := t.write(r.bufs)
		n += m
		if e != nil && err == nil {
			err = fmt.Errorf("wgo: writing the tun.Device: %w", e)
		}
	}
	return n, err
}

// write writes bufs and returns how many of them the device has probably accepted. After an error, it assumes that the device has
// accepted at most all but one.
func (t *tunnel) write(bufs [][]byte) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	n, err := t.dev.Write(bufs, room)
	if err == nil {
		return len(bufs), nil
	}
	return max(0, min(n, len(bufs)-1)), err
}

// Close closes the tun.Device when no Write runs and Read has returned nothing for 5 ms, or after 100 ms. It waits because
// goroutines of the tun.Device may be waiting for a Read, and tun/netstack panics if it is closed while they wait. Close
// continues to read until the tun.Device says that it is closed. Further calls wait for the first call and return its result.
func (t *tunnel) Close() error {
	t.closing.Do(func() {
		close(t.closed)
		t.follow.Do(t.startEvents)
		var reads atomic.Int64
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			t.drain(&reads)
		}()
		t.writing.Lock()
		for last, begin := int64(-1), time.Now(); reads.Load() != last && time.Since(begin) < closeWait; {
			last = reads.Load()
			time.Sleep(closeQuiet)
		}
		t.closeErr = t.dev.Close()
		t.writing.Unlock()
		<-drained
	})
	return t.closeErr
}

// drain reads and drops packets until dev.Read fails for good. It counts the reads that returned packets. It waits until no
// ReadPackets runs. Later calls of ReadPackets return the same error as the last read.
func (t *tunnel) drain(reads *atomic.Int64) {
	t.reading <- struct{}{}
	defer func() { <-t.reading }()
	for t.read() == nil {
		t.r.next = t.r.n
		reads.Add(1)
	}
}
