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

// errGone is an error of Read that wireguard-go regards as the normal end of a tun.Device.
var errGone = fmt.Errorf("wgo: the tunnel is closed: %w", os.ErrClosed)

// TUNDevice returns a tun.Device for wireguard-go's device that uses the wireguard.Tunnel t. Close of the tun.Device closes t,
// and may be called again. The first event of the tun.Device is EventUp, as in tun/netstack, which brings wireguard-go's device
// up. When the MTU of t has changed, the next Read or Write sends an event.
//
// Read copies each packet once. Write passes packets to t without a copy. Neither allocates memory per packet.
//
// TUNDevice fails if t is a wireguard.Attacher, which can pass its packets only to a device of this library. It also fails if t
// does not have exactly one queue, because wireguard-go reads one queue.
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

// sourceOf returns the only PacketSource of t.
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
	lists  sync.Pool    // contains *[][]byte, one for each running Write

	reading sync.Mutex // locked during a Read; guards the fields below
	batch   wireguard.Batch
	next    int   // index of the first packet of batch that Read has not returned
	err     error // the error that Read returns after the packets of batch

	mu     sync.Mutex // guards the fields below
	events chan tun.Event
	closed bool
}

// File returns nil, because the tunnel has no file.
func (d *tunDevice) File() *os.File { return nil }

// Name returns a fixed name, because a tunnel has no name.
func (d *tunDevice) Name() (string, error) { return "wgo", nil }

// Events returns the channel of events, which Close closes.
func (d *tunDevice) Events() <-chan tun.Event { return d.events }

// BatchSize returns the same batch size as StdNetBind.
func (d *tunDevice) BatchSize() int { return conn.IdealBatchSize }

// MTU returns the MTU of the tunnel.
func (d *tunDevice) MTU() (int, error) { return d.tunnel.MTU(), nil }

// watchMTU sends an event if the MTU has changed. If the channel is full, the next call tries again.
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

// Read copies packets to bufs, each beginning at offset. If a packet is too large for its buffer, Read sets its size to 0.
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
		d.batch.Reset() // free its memory before the next Read waits for packets
		d.next = 0
	}
	if n == 0 {
		return 0, d.err
	}
	return n, nil
}

// read fills the batch, and converts the error for wireguard-go, which regards os.ErrClosed as the normal end and logs all
// other errors.
func (d *tunDevice) read() error {
	err := d.source.ReadPackets(&d.batch)
	d.watchMTU()
	if errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		return errGone
	}
	return err
}

// Write writes the packets to the tunnel. Each buffer contains a packet after the first offset bytes.
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
