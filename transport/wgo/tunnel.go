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

	readFailures = 8 // consecutive errors after which a tun.Device counts as broken

	closeQuiet = 5 * time.Millisecond
	closeWait  = 100 * time.Millisecond
)

var errClosed = fmt.Errorf("wgo: the tunnel is closed: %w", net.ErrClosed)

// Tunnel makes a tun.Device of wireguard-go serve as the packet side of a device of this library. The tunnel takes over
// dev and closes it in Close. It is a [wireguard.PacketSource]. It reads dev's events, follows a change of MTU, and
// ignores up and down.
//
// Reading copies each packet into the batch, and writing copies it into a buffer of the kind that dev needs. Neither
// allocates. No goroutine runs before the first ReadPackets.
func Tunnel(dev tun.Device) wireguard.Tunnel { return TunnelWithEvents(dev, nil) }

// TunnelWithEvents is like Tunnel, and calls onEvent for each event of dev, one at a time, on a separate goroutine. A
// program whose device follows the interface calls Up and Down from onEvent, as wireguard-go does. onEvent may be nil.
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

	reading chan struct{} // a goroutine that has put in a token may read dev and use r
	r       reader

	writing sync.RWMutex // read-held during dev.Write, write-held during dev.Close
	runs    sync.Pool    // of *run

	closing  sync.Once
	closed   chan struct{} // closed when Close begins
	closeErr error
}

// A reader holds the packets that dev.Read returned and no batch has taken yet.
type reader struct {
	bufs    [][]byte
	sizes   []int
	next, n int   // bufs[next:n] are still to be taken
	end     error // set once dev.Read has failed for good; dev.Read is then not called again
}

// MTU returns the MTU of the tun.Device, as of its last event.
func (t *tunnel) MTU() int { return int(t.mtu.Load()) }

func (t *tunnel) loadMTU() {
	if mtu, err := t.dev.MTU(); err == nil && mtu > 0 {
		t.mtu.Store(int32(min(mtu, slot-room)))
	}
}

// takeEvents runs until the device closes its channel. Nothing may wait for takeEvents, because onEvent may be in a
// call that waits for Close.
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

// ReadPackets returns the packets that were read before, or else reads the device.
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

// read calls dev.Read until it yields packets or has failed for good. The caller has the token.
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
			return nil // a permanent error occurs again
		}
		switch {
		case err == nil || errors.Is(err, tun.ErrTooManySegments):
		case gone(err):
			r.end = fmt.Errorf("wgo: the tun.Device has gone: %v", err) // not wrapped, because nobody called Close
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

// gone reports whether err says that the device has ended.
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

// pause waits for 1 ms, doubled for each failure, or until Close.
func (t *tunnel) pause(failures int) {
	timer := time.NewTimer(time.Millisecond << failures)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.closed:
	}
}

// WritePackets writes pkts in runs of the device's batch size. It writes each run even if an earlier run failed.
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

// write writes bufs and guesses how many of them the device took. After an error, it counts at least one of them as not
// taken.
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

// Close closes the device once no Write runs and Read has returned nothing for 5 ms, or after 100 ms. Goroutines of the
// device may be waiting for a reader, and tun/netstack panics if it is closed while they wait. Close keeps reading
// until the device says that it is closed. Further calls wait for the first call and return its result.
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

// drain reads until the device ends, and counts and drops the packets. It takes turns with a reader of the tunnel,
// which sees the same end.
func (t *tunnel) drain(reads *atomic.Int64) {
	t.reading <- struct{}{}
	defer func() { <-t.reading }()
	for t.read() == nil {
		t.r.next = t.r.n
		reads.Add(1)
	}
}
