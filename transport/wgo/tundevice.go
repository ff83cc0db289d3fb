package wgo

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/seed-86b749af/wireguard"
)

// errGone is the error that wireguard-go takes for a normal end of a tun.Device.
var errGone = fmt.Errorf("wgo: the tunnel is closed: %w", os.ErrClosed)

// TUNDevice makes a packet side of this library serve wireguard-go's device. The tun.Device takes over t and closes it
// in Close, which may be called again. Its first event is EventUp, as in tun/netstack, which brings wireguard-go's
// device up. When the MTU of t changes, the next Read or Write sends an event.
//
// The tun.Device copies each packet that it reads once, and passes written packets to t without a copy. It allocates
// nothing per packet.
//
// TUNDevice refuses a wireguard.Attacher, which pushes its packets into a device of this library. It also refuses a
// tunnel that does not have exactly one queue, because wireguard-go reads one queue.
func TUNDevice(t wireguard.Tunnel) (tun.Device, error) {
	source, err := sourceOf(t)
	if err != nil {
		return nil, err
	}
	d := &tunDevice{tunnel: t, source: source, events: make(chan tun.Event, 4)}
	d.lists.New = func() any { return new([][]byte) }
	d.mtu.Store(int64(t.MTU()))
	d.events <- tun.EventUp
	return d, nil
}

// sourceOf returns the one source of t's packets.
func sourceOf(t wireguard.Tunnel) (wireguard.PacketSource, error) {
	switch t := t.(type) {
	case wireguard.Attacher:
		return nil, fmt.Errorf("wgo: a %T pushes its packets through Device.Send and cannot be read: use it with a wireguard.Device", t)
	case wireguard.Queues:
		queues := t.Queues()
		if len(queues) != 1 {
			return nil, fmt.Errorf("wgo: a %T with %d queues cannot be read by one goroutine: make it with one queue", t, len(queues))
		}
		return queues[0], nil
	case wireguard.PacketSource:
		return t, nil
	}
	return nil, fmt.Errorf("wgo: a %T cannot be read: implement wireguard.PacketSource", t)
}

// A tunDevice wraps a wireguard.Tunnel as a tun.Device.
type tunDevice struct {
	tunnel wireguard.Tunnel
	source wireguard.PacketSource
	mtu    atomic.Int64 // the MTU that the last event reported
	lists  sync.Pool    // of *[][]byte, one per running Write

	reading sync.Mutex // held during a Read; guards the fields below
	batch   wireguard.Batch
	next    int   // the first unread packet of batch
	err     error // returned after these packets

	mu     sync.Mutex // guards the fields below
	events chan tun.Event
	closed bool
}

// File returns nil, because the tunnel has no file.
func (d *tunDevice) File() *os.File { return nil }

// Name returns a fixed name, because a tunnel has no name.
func (d *tunDevice) Name() (string, error) { return "wgo", nil }

// Events returns a channel that Close closes.
func (d *tunDevice) Events() <-chan tun.Event { return d.events }

// BatchSize returns the batch size of StdNetBind.
func (d *tunDevice) BatchSize() int { return conn.IdealBatchSize }

// MTU returns the MTU of the tunnel.
func (d *tunDevice) MTU() (int, error) { return d.tunnel.MTU(), nil }

// watchMTU sends an event after the MTU has changed. If the channel has no room for the event, the next call tries
// again.
func (d *tunDevice) watchMTU() {
	mtu := int64(d.tunnel.MTU())
	if d.mtu.Load() == mtu {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.mtu.Load() == mtu {
		return
	}
	select {
	case d.events <- tun.EventMTUUpdate:
		d.mtu.Store(mtu)
	default:
	}
}

// Read copies packets to bufs, from offset on. A packet that is too large for its buffer has a size of 0.
func (d *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	if d.next == d.batch.Len() {
		d.batch.Reset()
		d.next = 0
		if d.err == nil {
			d.err = d.read()
		}
	}
	for n < len(bufs) && d.next < d.batch.Len() {
		p := d.batch.Packet(d.next)
		if sizes[n] = 0; len(p) <= len(bufs[n])-offset {
			sizes[n] = copy(bufs[n][offset:], p)
		}
		n++
		d.next++
	}
	if d.next == d.batch.Len() {
		d.batch.Reset() // frees its memory before the wait for more packets
		d.next = 0
	}
	if n == 0 {
		return 0, d.err
	}
	return n, nil
}

// read fills the batch and maps the error for wireguard-go, which takes os.ErrClosed for a normal end and logs all
// other errors.
func (d *tunDevice) read() error {
	err := d.source.ReadPackets(&d.batch)
	d.watchMTU()
	if errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		return errGone
	}
	return err
}

// Write passes on the bytes after offset in each buffer.
func (d *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	d.watchMTU()
	list := d.lists.Get().(*[][]byte)
	defer d.lists.Put(list)
	pkts := (*list)[:0]
	for _, b := range bufs {
		if len(b) > offset {
			pkts = append(pkts, b[offset:len(b):len(b)])
		}
	}
	n, err := d.tunnel.WritePackets(pkts)
	clear(pkts)
	*list = pkts
	return n, err
}

// Close closes the tunnel and the channel of events. Closing again does nothing.
func (d *tunDevice) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	close(d.events)
	d.mu.Unlock()
	return d.tunnel.Close()
}
