package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// The inbound path of a Shared:
//
//	Receiver.Receive ─▶ dispatch: each datagram's tenant ─▶ post: copy to its mailbox ─▶ Receive of the tenant's device
//	 one goroutine each      │                                tenant.go
//	                         ├ data, response, cookie reply: by the first bits of the receiver's index
//	                         └ initiation: by mac1, with the keys of the tenants that its sender is known to talk to,
//	                           or else with all keys, in a separate queue (strangers.go)

// A Shared is a UDP port that many devices use. Each device has a [Tenant] of the Shared as its Bind. [Bind.Share] opens a
// Shared. A Shared must not be copied. It is safe for concurrent use.
//
//	shared, err := (&udp.Bind{}).Share(51820)
//	tenant, err := shared.Join(key.Public())
//	device, err := wireguard.New(wireguard.Config{PrivateKey: key, Bind: tenant, IndexPrefix: tenant.IndexPrefix(), ...})
//
// The Shared finds the device of a data message in constant time, however many tenants there are, because session indices begin
// with the tenant's prefix. An initiation shows its receiver only through mac1, a hash that is keyed with the receiver's public
// key. The Shared first tries the keys of the tenants, at most 8, that have sent handshake messages to the sender's address
// before. Initiations that fit none of these keys, and those from other addresses, wait in a separate queue. One goroutine tries
// each of them with the keys of all tenants. Trying one initiation takes half a microsecond per tenant, and this goroutine uses
// at most half of one core. A flood of initiations from other addresses can exceed what this goroutine can try. During such a
// flood, peers at known addresses still reach their tenants, but an initiation from an unknown address finds space in the queue
// only by chance.
//
// Each tenant has a queue of received datagrams, so that a slow device does not delay the others.
type Shared struct {
	bind *Bind
	port uint16

	seats [maxTenants]atomic.Pointer[Tenant] // the tenants; a tenant's position in this array (its seat) is its index prefix
	top   atomic.Int32                       // number of seats that have ever had a tenant; they are the first ones

	held  atomic.Int64                 // memory of the datagrams in the mailboxes of all tenants, in bytes
	using atomic.Pointer[sharedSocket] // the sockets on which the tenants send

	mu     sync.Mutex // guards the fields below
	free   []uint16   // seats below top that no tenant has
	keys   map[wireguard.PublicKey]*Tenant
	mark   uint32
	closed bool

	known     knownSources
	strangers strangers
	counts    sharedCounts
}

const (
	tenantBits = 14
	maxTenants = 1 << tenantBits

	// readPauseMin and readPauseMax are the shortest and the longest pause of a reading goroutine after an error of its socket.
	readPauseMin = time.Millisecond
	readPauseMax = 100 * time.Millisecond
)

// A sharedSocket is a Socket, with a WaitGroup for the goroutines that read it.
type sharedSocket struct {
	*Socket
	readers sync.WaitGroup
}

// Share opens the sockets as Listen does, and returns a Shared through which many devices use them.
func (b *Bind) Share(port uint16) (*Shared, error) {
	own := *b
	s := &Shared{bind: &own, keys: make(map[wireguard.PublicKey]*Tenant)}
	socket, err := s.bind.Listen(port)
	if err != nil {
		return nil, err
	}
	s.port = socket.Port()
	s.use(socket)
	return s, nil
}

// use makes the tenants send on socket, and starts the goroutines that read it.
func (s *Shared) use(socket wireguard.Socket) {
	n := &sharedSocket{Socket: socket.(*Socket)}
	s.using.Store(n)
	for _, r := range n.Receivers() {
		n.readers.Go(func() { s.read(r) })
	}
}

// Port returns the local port.
func (s *Shared) Port() uint16 { return s.port }

// SetMark marks all datagrams that the tenants send from now on; see [Socket.SetMark].
func (s *Shared) SetMark(mark uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.using.Load().SetMark(mark)
	if err == nil {
		s.mark = mark
	}
	return err
}

// Wake replaces the sockets by new ones on the same port. Call it after the machine slept or its network changed, and before
// you call Device.Wake of the tenants' devices. On Linux it loses no datagram. If the sockets cannot be opened, nothing is sent
// or received until the next Wake.
func (s *Shared) Wake() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	old := s.using.Load()
	n, err := s.marked(old.Renew())
	if err == nil {
		s.use(n)
		old.Retire()
	} else {
		old.Close()
		if n, err = s.marked(s.bind.Listen(s.port)); err == nil {
			s.use(n)
		}
	}
	old.readers.Wait()
	old.Close()
	return err
}

// marked sets the mark of s on n, a socket that was just opened, and returns n. If that fails, it closes n. If err is not nil,
// opening n failed, and marked returns err. The caller holds mu.
func (s *Shared) marked(n wireguard.Socket, err error) (wireguard.Socket, error) {
	if err != nil || s.mark == 0 {
		return n, err
	}
	if err := n.(*Socket).SetMark(s.mark); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close closes the sockets of the Shared and of all tenants. The tenants' receivers then fail with an error that wraps
// net.ErrClosed. Closing again does nothing.
func (s *Shared) Close() error {
	s.mu.Lock()
	s.closed = true
	socket := s.using.Load()
	socket.Close()
	s.mu.Unlock()
	socket.readers.Wait()
	s.strangers.close()
	for i := range s.top.Load() {
		if t := s.seats[i].Load(); t != nil {
			t.close()
		}
	}
	return nil
}

// read dispatches the datagrams of one receiver until its socket is closed or retired.
func (s *Shared) read(r wireguard.Receiver) {
	pause := readPauseMin
	for {
		ts, err := r.Receive()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(pause)
			pause = min(2*pause, readPauseMax)
			continue
		}
		pause = readPauseMin
		for i := range ts {
			s.dispatch(&ts[i])
		}
	}
}

// These are the types of WireGuard's messages, and their sizes in bytes.
const (
	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	typeData       = 4

	initiationSize = 148
	responseSize   = 92
	cookieSize     = 64
	dataSizeMin    = 32
)

// kindOf returns the type of the message m, or 0 if m has no such type or does not have the length of its type.
func kindOf(m []byte) int {
	if len(m) < dataSizeMin {
		return 0
	}
	switch kind, n := binary.LittleEndian.Uint32(m), len(m); {
	case kind == typeData,
		kind == typeInitiation && n == initiationSize,
		kind == typeResponse && n == responseSize,
		kind == typeCookie && n == cookieSize:
		return int(kind)
	}
	return 0
}

// dispatch posts the datagrams of t to their tenants. Consecutive datagrams for the same tenant stay in one train.
func (s *Shared) dispatch(t *wireguard.Train) {
	var to *Tenant
	begin, at := 0, 0
	post := func() {
		if to != nil {
			to.post(t, t.Data[begin:at])
		}
		begin = at
	}
	for m := range t.Datagrams() {
		next := s.tenantOf(m, t)
		if next != to {
			post()
			to = next
		}
		if at += len(m); to == nil {
			begin = at
		}
	}
	post()
}

// tenantOf returns the tenant to which the datagram m of the train t must be posted. It returns nil if there is no such tenant,
// or if m is an initiation that has to wait until its tenant is found.
func (s *Shared) tenantOf(m []byte, t *wireguard.Train) (to *Tenant) {
	switch kindOf(m) {
	case typeData, typeCookie:
		to = s.seatOf(binary.LittleEndian.Uint32(m[4:]))
	case typeResponse:
		to = s.seatOf(binary.LittleEndian.Uint32(m[8:]))
	case typeInitiation:
		return s.meant(m, t)
	}
	if to == nil {
		s.counts.unknown.Add(1)
	}
	return to
}

// seatOf returns the tenant whose prefix is the first bits of index, or nil.
func (s *Shared) seatOf(index uint32) *Tenant { return s.seats[index>>(32-tenantBits)].Load() }

// meant returns the tenant that the initiation m is for, if that tenant is one of those known for the sender's address.
// Otherwise meant queues m and returns nil.
func (s *Shared) meant(m []byte, t *wireguard.Train) *Tenant {
	source := sourceOf(t.Endpoint.Addr.Addr())
	known := s.known.of(source)
	for _, seat := range known.seats[:known.n] {
		if to := s.seats[seat].Load(); to != nil && to.isMeant(m) {
			return to
		}
	}
	if !s.strangers.push(s, source, m, t) {
		s.counts.refused.Add(1)
	}
	return nil
}

// send sends the trains of a tenant. If a train fails because Wake closed the socket meanwhile, send tries again on the new
// socket.
func (s *Shared) send(ts []wireguard.Train) {
	socket := s.using.Load()
	socket.Send(ts)
	for next := s.using.Load(); next != socket; next = s.using.Load() {
		socket = next
		for i := range ts {
			if errors.Is(ts[i].Err, net.ErrClosed) {
				ts[i].Err = nil
				socket.Send(ts[i : i+1])
			}
		}
	}
}

// Join adds a tenant whose device has the given public key. The zero key means that the device has no key yet; see
// [Tenant.SetKey]. Join fails if another tenant has the key, or if there are already 16,384 tenants.
func (s *Shared) Join(key wireguard.PublicKey) (*Tenant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	t := &Tenant{shared: s}
	if err := s.setKey(t, key); err != nil {
		return nil, err
	}
	if n := len(s.free); n > 0 {
		t.seat = s.free[n-1]
		s.free = slices.Delete(s.free, n-1, n)
	} else if n := s.top.Load(); n < maxTenants {
		t.seat = uint16(n)
		s.top.Store(n + 1)
	} else {
		delete(s.keys, key)
		return nil, fmt.Errorf("udp: port %d has %d tenants; open another port for more", s.port, maxTenants)
	}
	s.seats[t.seat].Store(t)
	return t, nil
}

// setKey makes key the public key of t's device. The caller holds mu.
func (s *Shared) setKey(t *Tenant, key wireguard.PublicKey) error {
	if other := s.keys[key]; other != nil && other != t {
		return fmt.Errorf("udp: another tenant of port %d has the public key %v; each device needs its own", s.port, key)
	}
	delete(s.keys, t.key)
	if t.key = key; !key.IsZero() {
		s.keys[key] = t
	}
	t.mac.set(key)
	return nil
}

type sharedCounts struct {
	unknown, overflow, tried, unclaimed, refused atomic.Uint64
}

// SharedStats counts what a Shared has done since it was opened. SharedStats is a comparable type.
type SharedStats struct {
	Socket  Stats // counters of the sockets that Share or the last Wake opened
	Tenants int   // number of tenants now

	Unknown  uint64 // datagrams that are not WireGuard messages, or whose session index belongs to no tenant
	Overflow uint64 // datagrams dropped because the queue of their tenant was full or its device was down

	// Tried counts the queued initiations that were tried with the keys of all tenants. Unclaimed counts the tried initiations that
	// fitted no tenant's key. Refused counts the initiations that were dropped untried, because the queue had no space for them or
	// they had waited for more than 5 seconds.
	Tried, Unclaimed, Refused uint64
}

// Stats returns the counters. Each counter is exact, but the counters are not read at the same instant. Stats may be called
// after Close.
func (s *Shared) Stats() SharedStats {
	s.mu.Lock()
	tenants := int(s.top.Load()) - len(s.free)
	s.mu.Unlock()
	c := &s.counts
	return SharedStats{
		Socket: s.using.Load().Stats(), Tenants: tenants,
		Unknown: c.unknown.Load(), Overflow: c.overflow.Load(),
		Tried: c.tried.Load(), Unclaimed: c.unclaimed.Load(), Refused: c.refused.Load(),
	}
}
