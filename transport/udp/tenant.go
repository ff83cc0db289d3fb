package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
)

// A Tenant is the [wireguard.Bind] of one device on a [Shared]. Set Config.Bind to it, and Config.IndexPrefix to what IndexPrefix
// returns. [Shared.Join] makes it. It must not be copied. It is safe for concurrent use.
type Tenant struct {
	shared *Shared
	seat   uint16

	key wireguard.PublicKey // guarded by the Shared's mutex
	mac mac1

	open atomic.Pointer[tenantSocket] // the socket that datagrams are posted to; nil while the device is down
}

var (
	errLeft   = fmt.Errorf("udp: the tenant has left: %w", errClosed)
	errPrefix = errors.New("udp: send: the message's session index is not the tenant's: set Config.IndexPrefix to Tenant.IndexPrefix")
)

// IndexPrefix returns how the session indices of the device must begin.
func (t *Tenant) IndexPrefix() wireguard.IndexPrefix {
	return wireguard.IndexPrefix{Value: t.seat, Bits: tenantBits}
}

// SetKey tells the Shared the public key of the device. Call it before the device gets another private key. It fails if
// another tenant has the key. The zero key means none: then no initiation reaches the device.
func (t *Tenant) SetKey(key wireguard.PublicKey) error {
	t.shared.mu.Lock()
	defer t.shared.mu.Unlock()
	if t.shared.seats[t.seat].Load() != t {
		return errLeft
	}
	return t.shared.setKey(t, key)
}

// Leave gives up the tenant's place. Call it when the device is closed. Leaving again does nothing.
func (t *Tenant) Leave() {
	s := t.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seats[t.seat].CompareAndSwap(t, nil) {
		if s.keys[t.key] == t {
			delete(s.keys, t.key)
		}
		s.free = append(s.free, t.seat)
	}
	t.close()
}

// Listen returns a Socket on the port of the Shared. The argument must be that port or 0.
func (t *Tenant) Listen(port uint16) (wireguard.Socket, error) {
	s := t.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errClosed
	case s.seats[t.seat].Load() != t:
		return nil, errLeft
	case port != 0 && port != s.port:
		return nil, fmt.Errorf("udp: a tenant of port %d cannot listen on port %d: set the device's port to 0 or %d", s.port, port, s.port)
	}
	return t.listen(), nil
}

// listen makes a socket that all datagrams are posted to from then on.
func (t *Tenant) listen() *tenantSocket {
	n := &tenantSocket{tenant: t}
	n.box.wake.L = &n.box.mu
	t.open.Store(n)
	return n
}

// close closes the socket of the tenant.
func (t *Tenant) close() {
	if s := t.open.Load(); s != nil {
		s.Close()
	}
}

// isMeant reports whether the initiation m has a mac1 for the tenant's device.
func (t *Tenant) isMeant(m []byte) bool { return t.mac.fits(m) }

// post puts a copy of data, which holds datagrams of train, into the tenant's mailbox.
func (t *Tenant) post(train *wireguard.Train, data []byte) {
	for s := t.open.Load(); s != nil; {
		room, ended := s.box.put(t.shared, train, data)
		if room {
			return
		}
		// If the socket has ended meanwhile, another one may have taken its place.
		next := t.open.Load()
		if !ended || next == s {
			break
		}
		s = next
	}
	rest := wireguard.Train{Data: data, Size: train.Size}
	t.shared.counts.overflow.Add(uint64(rest.Len()))
}

// A tenantSocket is the Socket of a tenant's device.
type tenantSocket struct {
	tenant *Tenant
	closed atomic.Bool
	box    mailbox
}

func (s *tenantSocket) Port() uint16                    { return s.tenant.shared.port }
func (s *tenantSocket) Receivers() []wireguard.Receiver { return []wireguard.Receiver{s} }

// Receive waits for datagrams.
func (s *tenantSocket) Receive() ([]wireguard.Train, error) {
	if ts := s.box.take(s.tenant.shared); len(ts) > 0 {
		return ts, nil
	}
	return nil, errClosed
}

// Send sends the trains on the sockets of the Shared. It learns from handshake messages which addresses the tenant talks to: a
// device sends handshake messages only to an address that is configured, or that an authentic message came from.
func (s *tenantSocket) Send(ts []wireguard.Train) {
	if s.closed.Load() {
		for i := range ts {
			ts[i].Err = errClosed
		}
		return
	}
	t := s.tenant
	from := 0
	for i := range ts {
		m := ts[i].Data[min(ts[i].Headroom, len(ts[i].Data)):]
		if kind := kindOf(m); kind != typeInitiation && kind != typeResponse {
			continue
		}
		if index := binary.LittleEndian.Uint32(m[4:]); index>>(32-tenantBits) != uint32(t.seat) {
			t.shared.send(ts[from:i])
			ts[i].Err = errPrefix
			from = i + 1
			continue
		}
		t.shared.known.learn(sourceOf(ts[i].Endpoint.Addr.Addr()), t.seat)
	}
	t.shared.send(ts[from:])
}

// Renew returns another socket, to which all datagrams are posted from then on. It opens no socket of the system;
// Shared.Wake does that.
func (s *tenantSocket) Renew() (wireguard.Socket, error) {
	if s.closed.Load() {
		return nil, errClosed
	}
	return s.tenant.listen(), nil
}

// Retire lets the receiver return what has been posted until now, and then fail.
func (s *tenantSocket) Retire() { s.box.end(s.tenant.shared, false) }

// Close ends the receiver. Closing again does nothing.
func (s *tenantSocket) Close() error {
	s.closed.Store(true)
	s.tenant.open.CompareAndSwap(s, nil)
	s.box.end(s.tenant.shared, true)
	return nil
}

// A mailbox holds datagrams until the device takes them.
type mailbox struct {
	mu       sync.Mutex // guards the fields below, except for taken
	wake     sync.Cond  // with mu; signalled when there is something to take, and when the mailbox ends
	parcels  []*parcel
	bytes    int64 // the memory of the parcels here and in taken
	retired  bool  // the receiver returns the parcels that are left, and then ends
	finished bool  // nothing is put in any more

	taken *taking // what the receiver has taken; only the receiver uses this; nil while it waits
}

const (
	// maxMailbox limits the memory of the datagrams that wait for one device. All devices together may have maxMailboxes.
	// Beyond that each may still have mailboxReserve, which is enough for the largest train.
	maxMailbox     = 2 << 20
	maxMailboxes   = 64 << 20
	mailboxReserve = slotSize

	maxTaken = 64 // parcels
)

// A parcel is a copied train.
type parcel struct {
	train wireguard.Train
	mem   []byte // its capacity is one of parcelSizes
}

// A taking is what one call of Receive returns.
type taking struct {
	n       int
	parcels [maxTaken]*parcel
	trains  [maxTaken]wireguard.Train
}

var (
	parcelSizes = [...]int{2 << 10, 16 << 10, slotSize}
	parcels     [len(parcelSizes)]sync.Pool
	takings     = sync.Pool{New: func() any { return new(taking) }}
)

// classOf returns the index of the smallest of parcelSizes that n bytes fit into.
func classOf(n int) int {
	class := 0
	for parcelSizes[class] < n {
		class++
	}
	return class
}

// put adds a copy of data, which holds datagrams of train. ended says that the mailbox accepts nothing any more.
func (b *mailbox) put(s *Shared, train *wireguard.Train, data []byte) (room, ended bool) {
	class := classOf(len(data))
	size := int64(parcelSizes[class])
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.finished {
		return false, true
	}
	if total := b.bytes + size; total > mailboxReserve && (total > maxMailbox || s.held.Load()+size > maxMailboxes) {
		return false, false
	}
	p, _ := parcels[class].Get().(*parcel)
	if p == nil {
		p = &parcel{mem: make([]byte, size)}
	}
	p.train = *train
	p.train.Data, p.train.Headroom = p.mem[:copy(p.mem, data)], 0
	b.bytes += size
	s.held.Add(size)
	if b.parcels = append(b.parcels, p); len(b.parcels) == 1 {
		b.wake.Signal()
	}
	return true, false
}

// take waits for datagrams, and returns them. They are valid until the next call. It returns nil once the mailbox has
// ended.
func (b *mailbox) take(s *Shared) []wireguard.Train {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.putBack(s)
	for len(b.parcels) == 0 {
		if b.parcels = nil; b.retired || b.finished {
			b.finished = true
			return nil
		}
		b.wake.Wait()
	}
	t := takings.Get().(*taking)
	t.n = copy(t.parcels[:], b.parcels)
	for i, p := range t.parcels[:t.n] {
		t.trains[i] = p.train
	}
	b.parcels = b.parcels[:copy(b.parcels, b.parcels[t.n:])]
	b.taken = t
	return t.trains[:t.n]
}

// putBack returns the memory of the parcels in taken to the pools. mu is held.
func (b *mailbox) putBack(s *Shared) {
	t := b.taken
	if t == nil {
		return
	}
	b.recycle(s, t.parcels[:t.n])
	clear(t.trains[:t.n])
	t.n, b.taken = 0, nil
	takings.Put(t)
}

// recycle returns the memory of ps to the pools. mu is held.
func (b *mailbox) recycle(s *Shared, ps []*parcel) {
	for i, p := range ps {
		size := len(p.mem)
		b.bytes -= int64(size)
		s.held.Add(-int64(size))
		p.train = wireguard.Train{}
		parcels[classOf(size)].Put(p)
		ps[i] = nil
	}
}

// end makes the receiver end: at once if now is set, and otherwise when it has returned the parcels that are left.
func (b *mailbox) end(s *Shared, now bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retired = true; now {
		b.finished = true
		b.recycle(s, b.parcels)
		b.parcels = nil
	}
	b.wake.Broadcast()
}
