package pipe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/seed-86b749af/wireguard"
)

const (
	tunnelPackets = 1024    // most packets per direction
	tunnelBytes   = 4 << 20 // most bytes per direction
	spareBuffers  = 128
	spareBuffer   = 2 << 10 // bytes
)

// A Tunnel is the packet side of a device, for a test. The device reads, seals and sends the packets that Send queues,
// and Receive returns the packets that the device received and opened. NewTunnel makes it. It must not be copied. All
// methods are safe for concurrent use. It holds up to 1024 packets and 4 MiB in each direction.
type Tunnel struct {
	mu      sync.Mutex // guards the fields below
	changed sync.Cond  // signals every change
	in, out packets
	spare   [][]byte
	mtu     int
	dropped uint64
	closed  bool
}

var _ wireguard.Tunnel = (*Tunnel)(nil)

var (
	errTunnelClosed = fmt.Errorf("pipe: the tunnel is closed: %w", net.ErrClosed)
	errPacketSize   = errors.New("pipe: tunnel: want packets of 1 to 65535 bytes")
)

// packets is a queue of packets, in order.
type packets struct {
	all   [][]byte
	bytes int
}

// hasRoom reports whether n bytes fit. An empty queue has room for anything.
func (q *packets) hasRoom(n int) bool {
	return len(q.all) == 0 || len(q.all) < tunnelPackets && q.bytes+n <= tunnelBytes
}

func (q *packets) push(p []byte) {
	q.all = append(q.all, p)
	q.bytes += len(p)
}

// drop removes the first n packets.
func (q *packets) drop(n int) {
	for _, p := range q.all[:n] {
		q.bytes -= len(p)
	}
	q.all = slices.Delete(q.all, 0, n)
}

// NewTunnel makes a tunnel that carries packets of up to mtu bytes. 0 means 1420.
func NewTunnel(mtu int) *Tunnel {
	if mtu <= 0 {
		mtu = 1420
	}
	t := &Tunnel{mtu: mtu}
	t.changed.L = &t.mu
	return t
}

// MTU returns the size of the largest packet, in bytes. The tunnel does not refuse larger ones.
func (t *Tunnel) MTU() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mtu
}

// SetMTU changes the MTU while the device runs.
func (t *Tunnel) SetMTU(mtu int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mtu = mtu
}

// Send queues IP packets for the device, in order and without others between them. The device reads a burst of up to 128
// waiting packets as one batch. Send waits until the packets fit; a burst that can never fit waits until the queue is
// empty. It copies the packets. It fails when ctx ends, when the tunnel closes, or if a packet is empty or larger than
// 65535 bytes. If it fails, it has queued no packet.
func (t *Tunnel) Send(ctx context.Context, ps ...[]byte) error {
	if !areIP(ps) {
		return errPacketSize
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.wait(ctx, func() bool { return t.closed || t.fits(ps) })
	switch {
	case err != nil:
		return err
	case t.closed:
		return errTunnelClosed
	}
	t.queue(ps)
	return nil
}

// TrySend is Send without waiting. It reports whether the packets were queued.
func (t *Tunnel) TrySend(ps ...[]byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ok := !t.closed && areIP(ps) && t.fits(ps)
	if ok {
		t.queue(ps)
	}
	return ok
}

// areIP reports whether each packet has a length that an IP packet can have. Others would never fit a Batch.
func areIP(ps [][]byte) bool {
	for _, p := range ps {
		if len(p) == 0 || len(p) > 65535 {
			return false
		}
	}
	return true
}

func (t *Tunnel) fits(ps [][]byte) bool {
	bytes := 0
	for _, p := range ps {
		bytes += len(p)
	}
	return len(t.in.all) == 0 || len(t.in.all)+len(ps) <= tunnelPackets && t.in.bytes+bytes <= tunnelBytes
}

func (t *Tunnel) queue(ps [][]byte) {
	for _, p := range ps {
		t.in.push(t.copy(p))
	}
	t.changed.Broadcast()
}

// Receive waits for the next packet that the device delivered. The packet belongs to the caller. After Close it still
// returns the packets that were delivered before.
func (t *Tunnel) Receive(ctx context.Context) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.wait(ctx, func() bool { return len(t.out.all) > 0 }); err != nil {
		return nil, err
	}
	return t.first(), nil
}

// TryReceive is Receive without waiting. It returns nil if there is no packet.
func (t *Tunnel) TryReceive() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.out.all) == 0 {
		return nil
	}
	return t.first()
}

// first takes the oldest delivered packet out of the queue. The packet's memory belongs to the caller from then on, so it
// does not return to spare. t.mu is held.
func (t *Tunnel) first() []byte {
	p := t.out.all[0]
	t.out.drop(1)
	return p
}

// Queued returns how many packets the device has not read yet, and how many delivered ones nobody has received yet.
func (t *Tunnel) Queued() (toRead, delivered int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.in.all), len(t.out.all)
}

// Dropped returns how many packets of the device found the queue full, or the tunnel closed.
func (t *Tunnel) Dropped() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropped
}

// wait waits until ready returns true, or fails when the tunnel closes or ctx ends. t.mu is held, except during the
// wait.
func (t *Tunnel) wait(ctx context.Context, ready func() bool) error {
	if ready() {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.changed.Broadcast()
	})
	defer stop()
	for !ready() {
		if t.closed {
			return errTunnelClosed
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("pipe: tunnel: %w", err)
		}
		t.changed.Wait()
	}
	return nil
}

// ReadPackets is for the device.
func (t *Tunnel) ReadPackets(b *wireguard.Batch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.in.all) == 0 {
		if t.closed {
			return errTunnelClosed
		}
		t.changed.Wait()
	}
	n := 0
	for n < len(t.in.all) && b.Append(t.in.all[n]) {
		n++
	}
	t.recycle(t.in.all[:n])
	t.in.drop(n)
	t.changed.Broadcast()
	return nil
}

// WritePackets is for the device.
func (t *Tunnel) WritePackets(pkts [][]byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		t.dropped += uint64(len(pkts))
		return 0, errTunnelClosed
	}
	n := 0
	for n < len(pkts) && t.out.hasRoom(len(pkts[n])) {
		t.out.push(t.copy(pkts[n]))
		n++
	}
	t.dropped += uint64(len(pkts) - n)
	t.changed.Broadcast()
	return n, nil
}

// Close ends all waits. Packets that the device has not read are lost.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.in, t.spare = packets{}, nil
	t.changed.Broadcast()
	return nil
}

func (t *Tunnel) copy(p []byte) []byte {
	if last := len(t.spare) - 1; last >= 0 && len(p) <= spareBuffer {
		var b []byte
		b, t.spare = t.spare[last], t.spare[:last]
		return append(b[:0], p...)
	}
	return append([]byte(nil), p...)
}

func (t *Tunnel) recycle(ps [][]byte) {
	for _, p := range ps {
		if len(t.spare) < spareBuffers && cap(p) <= spareBuffer {
			t.spare = append(t.spare, p)
		}
	}
}
