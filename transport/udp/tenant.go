package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
)

// A Tenant is the [wireguard.Bind] of one device on a [Shared]. [Shared.Join] makes a Tenant. Set Config.Bind to the Tenant,
// and Config.IndexPrefix to the result of its IndexPrefix. A Tenant must not be copied. It is safe for concurrent use.
type Tenant struct {
	shared *Shared
	seat   uint16

	key wireguard.PublicKey // guarded by the Shared's mutex
	mac mac1

	open atomic.Pointer[tenantSocket] // the socket that receives the tenant's datagrams; nil while the device is down
}

var (
	errLeft   = fmt.Errorf("udp: the tenant has left: %w", errClosed)
	errPrefix = errors.New("udp: send: the message's session index is not the tenant's: set Config.IndexPrefix to Tenant.IndexPrefix")
)

// IndexPrefix returns the prefix with which the session indices of the device must begin.
func (t *Tenant) IndexPrefix() wireguard.IndexPrefix {
	return wireguard.IndexPrefix{Value: t.seat, Bits: tenantBits}
}

// SetKey sets the public key with which the Shared recognizes initiations for the device. Call it before you give the device
// another private key. SetKey fails if another tenant has the key. The zero key means that the device has no key. Then no
// initiation reaches the device.
func (t *Tenant) SetKey(key wireguard.PublicKey) error {
	t.shared.mu.Lock()
	defer t.shared.mu.Unlock()
	if t.shared.seats[t.seat].Load() != t {
		return errLeft
	}
	return t.shared.setKey(t, key)
}

// Leave removes the tenant from the Shared. Call it after you have closed the device. Calling it again does nothing.
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

// listen makes a socket. From then on, post puts all datagrams of the tenant into the mailbox of this socket.
func (t *Tenant) listen() *tenantSocket {
	n := &tenantSocket{tenant: t}
	n.box.wake.L = &n.box.mu
	t.open.Store(n)
	return n
}

// close closes the tenant's open socket, if there is one.
func (t *Tenant) close() {
	if s := t.open.Load(); s != nil {
		s.Close()
	}
}

// isMeant reports whether the initiation m has a mac1 for the tenant's device.
func (t *Tenant) isMeant(m []byte) bool { return t.mac.fits(m) }

// post puts a copy of data into the tenant's mailbox, or counts its datagrams as overflow. data is a part of train's data.
func (t *Tenant) post(train *wireguard.Train, data []byte) {
	for s := t.open.Load(); s != nil; {
		room, ended := s.box.put(t.shared, train, data)
		if room {
			return
		}
		// If the socket was closed or retired meanwhile, the device may already have opened another socket.
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

// Send sends the trains on the sockets of the Shared. If a train is an initiation or a response, Send makes its destination a
// known address of the tenant. This is safe because a device sends these messages only to a configured address, or to an
// address from which an authentic message came.
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

// Renew returns another tenantSocket, which receives all datagrams of the tenant from then on. Renew opens no socket of the
// system. Only Shared.Wake does.
func (s *tenantSocket) Renew() (wireguard.Socket, error) {
	if s.closed.Load() {
		return nil, errClosed
	}
	return s.tenant.listen(), nil
}

// Retire lets Receive return the datagrams that are in the mailbox when Retire is called. After that, Receive fails.
func (s *tenantSocket) Retire() { s.box.end(s.tenant.shared, false) }

// Close makes the receiver fail at once. Closing again does nothing.
func (s *tenantSocket) Close() error {
	s.closed.Store(true)
	s.tenant.open.CompareAndSwap(s, nil)
	s.box.end(s.tenant.shared, true)
	return nil
}

// A mailbox holds the datagrams for one tenantSocket until the device receives them.
type mailbox struct {
	mu       sync.Mutex // guards all fields below except taken
	wake     sync.Cond  // uses mu; signalled when the first parcel is put in, and when the mailbox is retired or closed
	parcels  []*parcel
	bytes    int64 // memory of the parcels in parcels and taken, in bytes
	retired  bool  // the receiver returns the parcels in the mailbox, and then ends
	finished bool  // put accepts no more parcels

	taken *taking // the parcels that the last Receive returned; nil while the receiver waits; used by the receiver only
}

const (
	// maxMailbox limits the memory of the datagrams in one mailbox, in bytes. maxMailboxes limits the memory in all mailboxes
	// of a Shared together. When maxMailboxes is reached, each mailbox may still hold mailboxReserve bytes, which is enough for
	// the largest train.
	maxMailbox     = 2 << 20
	maxMailboxes   = 64 << 20
	mailboxReserve = slotSize

	maxTaken = 64 // the largest number of parcels that one call of Receive returns
)

// A parcel is a copy of a train, or of a part of one.
type parcel struct {
	train wireguard.Train
	mem   []byte // its length is one of parcelSizes
}

// A taking holds the parcels that one call of Receive returns, and their trains.
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

// put adds a copy of data, which is a part of train's data. room reports whether there was space for the copy, and ended whether
// the mailbox accepts no more parcels.
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

// take waits for datagrams, and returns them. The returned trains are valid until the next call of take. take returns nil when
// the mailbox is closed, or when it is retired and empty.
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

// putBack gives the memory of the parcels that the last Receive returned back to the pools. The caller holds mu.
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

// recycle returns the memory of the parcels ps to the pools. The caller holds mu.
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

// end makes the receiver fail. If now is set, the receiver fails at once and the parcels are dropped. Otherwise the receiver
// first returns the parcels in the mailbox.
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
