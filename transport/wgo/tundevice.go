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

// errGone is what wireguard-go takes for the quiet end of a tun.Device.
var errGone = fmt.Errorf("wgo: the tunnel is closed: %w", os.ErrClosed)

// TUNDevice makes a packet side of this library serve wireguard-go's device. The tun.Device owns t from then on and
// closes it in Close, which may be called again. It begins with an EventUp, as tun/netstack does, after which
// wireguard-go's device goes up. The next Read or Write notices a new MTU of t and sends an event.
//
// TUNDevice copies each packet that it reads once, and passes packets to write to t as they are. It allocates nothing per
// packet.
//
// TUNDevice refuses a wireguard.Attacher, which pushes its packets into a device of this library, and a tunnel with any
// number of queues but one, since wireguard-go reads one.
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
	return nil, fmt.Errorf("wgo: no packets can come from a %T: implement wireguard.PacketSource", t)
}

// A tunDevice is a wireguard.Tunnel as a tun.Device.
type tunDevice struct {
	tunnel wireguard.Tunnel
	source wireguard.PacketSource
	mtu    atomic.Int64 // the one that the last event told of
	lists  sync.Pool    // of *[][]byte, one a Write that runs

	reading sync.Mutex // guards the fields below: one Read at a time
	batch   wireguard.Batch
	next    int   // the first packet of batch that is still to be read
	err     error // what follows those

	mu     sync.Mutex // guards the fields below
	events chan tun.Event
	closed bool
}

// File is nil: there is none.
func (d *tunDevice) File() *os.File { return nil }

// Name is made up: a tunnel has none.
func (d *tunDevice) Name() (string, error) { return "wgo", nil }

// Events is closed by Close.
func (d *tunDevice) Events() <-chan tun.Event { return d.events }

// BatchSize is that of StdNetBind.
func (d *tunDevice) BatchSize() int { return conn.IdealBatchSize }

// MTU is that of the tunnel.
func (d *tunDevice) MTU() (int, error) { return d.tunnel.MTU(), nil }

// watchMTU tells of a changed MTU. Where there is no room for the event, the next call tries again.
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

// Read copies packets to bufs, from offset on. One that is too large for its buffer has a size of 0.
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
		d.batch.Reset() // gives its memory back before the wait for more
		d.next = 0
	}
	if n == 0 {
		return 0, d.err
	}
	return n, nil
}

// read fills the batch and maps the error to wireguard-go's: os.ErrClosed is a quiet end, all others a loud one.
func (d *tunDevice) read() error {
	err := d.source.ReadPackets(&d.batch)
	d.watchMTU()
	if errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		return errGone
	}
	return err
}

// Write hands on what stands behind offset in each buffer.
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
