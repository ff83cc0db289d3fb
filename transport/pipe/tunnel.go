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
	tunnelPackets = 1024    // maximum number of packets queued per direction
	tunnelBytes   = 4 << 20 // maximum number of bytes queued per direction
	spareBuffers  = 128
	spareBuffer   = 2 << 10 // maximum size of a free buffer, in bytes
)

// A Tunnel is a [wireguard.Tunnel] for tests. The device reads, encrypts and sends the packets that Send queues. Receive
// returns the packets that the device has received and decrypted. NewTunnel makes a Tunnel. It must not be copied. All methods
// are safe for concurrent use. A Tunnel holds up to 1024 packets and 4 MiB in each direction.
type Tunnel struct {
	mu      sync.Mutex // guards the fields below
	changed sync.Cond  // signalled after every change
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

// packets is a first-in, first-out queue of packets.
type packets struct {
	all   [][]byte
	bytes int
}

// hasRoom reports whether a packet of n bytes fits into the queue. Any packet fits into an empty queue.
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

// NewTunnel makes a tunnel with the given MTU, in bytes. 0 means 1420.
func NewTunnel(mtu int) *Tunnel {
	if mtu <= 0 {
		mtu = 1420
	}
	t := &Tunnel{mtu: mtu}
	t.changed.L = &t.mu
	return t
}

// MTU returns the MTU that the device sees, in bytes. The tunnel itself also accepts larger packets.
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

// Send queues IP packets for the device, in order and without other packets between them. The device reads up to 128 queued
// packets as one batch. Send waits until all its packets fit into the queue, or, if there are too many for the queue, until the
// queue is empty. It copies the packets. It fails when ctx ends, when the tunnel is closed, or if a packet is empty or larger
// than 65535 bytes. If it fails, it has queued no packet.
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

// TrySend queues packets as Send does, but does not wait. It reports whether it has queued the packets.
func (t *Tunnel) TrySend(ps ...[]byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ok := !t.closed && areIP(ps) && t.fits(ps)
	if ok {
		t.queue(ps)
	}
	return ok
}

// areIP reports whether each packet has a length that an IP packet can have. Other packets would not fit into a Batch.
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

// Receive waits for the next packet that the device has delivered, and returns it. The packet belongs to the caller. After
// Close, Receive still returns the packets that were delivered before Close.
func (t *Tunnel) Receive(ctx context.Context) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.wait(ctx, func() bool { return len(t.out.all) > 0 }); err != nil {
		return nil, err
	}
	return t.first(), nil
}

// TryReceive returns the next packet as Receive does, but does not wait. It returns nil if the device has delivered no packet.
func (t *Tunnel) TryReceive() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.out.all) == 0 {
		return nil
	}
	return t.first()
}

// first removes the oldest delivered packet from the queue and returns it. The packet's memory then belongs to the caller of
// Receive, so it is not put into spare. The caller holds t.mu.
func (t *Tunnel) first() []byte {
	p := t.out.all[0]
	t.out.drop(1)
	return p
}

// Queued returns how many packets the device has not read yet, and how many packets that the device has delivered Receive has not
// returned yet.
func (t *Tunnel) Queued() (toRead, delivered int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.in.all), len(t.out.all)
}

// Dropped returns how many packets from the device were dropped because the queue was full or the tunnel was closed.
func (t *Tunnel) Dropped() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropped
}

// wait waits until ready returns true. It fails if the tunnel is closed or ctx ends before that. The caller holds t.mu, which
// wait unlocks while it waits.
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

// ReadPackets waits until Send has queued packets, and moves them into b. Only the device calls it.
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

// WritePackets queues packets for Receive. Only the device calls it.
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

// Close closes the tunnel and ends all waits. Packets that the device has not read are dropped.
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
