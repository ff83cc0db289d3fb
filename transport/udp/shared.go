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

// A Shared is a UDP port that many devices use, each of which is a [Tenant]. [Bind.Share] opens it. It must not be copied. It is
// safe for concurrent use.
//
//	shared, err := (&udp.Bind{}).Share(51820)
//	tenant, err := shared.Join(key.Public())
//	device, err := wireguard.New(wireguard.Config{PrivateKey: key, Bind: tenant, IndexPrefix: tenant.IndexPrefix(), ...})
//
// The Shared finds the device of a data message in constant time, however many tenants there are, because session indices
// begin with the tenant's prefix. An initiation names its receiver only through mac1, a hash with the receiver's key. The
// Shared first tries the keys of the tenants that have shaken hands with the sender's address before, at most 8. Initiations
// from other addresses wait in a separate queue. One goroutine tries each of them with the keys of all tenants. This takes half
// a microsecond per tenant, and at most half of one core in all. While a flood of such initiations exceeds that, known
// addresses still reach their tenants, but a peer at an address that no tenant knows succeeds only by chance.
//
// Each tenant has a queue of received datagrams, so that a slow device delays no other.
type Shared struct {
	bind *Bind
	port uint16

	seats [maxTenants]atomic.Pointer[Tenant] // by index prefix
	top   atomic.Int32                       // seats from this number on were never taken

	held  atomic.Int64                 // bytes in the mailboxes of all tenants
	using atomic.Pointer[sharedSocket] // for senders

	mu     sync.Mutex // guards the fields below
	free   []uint16   // seats below top that nobody has
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

	// readPauseMin and readPauseMax are the shortest and the longest pause after an error of a socket.
	readPauseMin = time.Millisecond
	readPauseMax = 100 * time.Millisecond
)

// A sharedSocket is a Socket and the goroutines that read it.
type sharedSocket struct {
	*Socket
	readers sync.WaitGroup
}

// Share opens the sockets as Listen does, for many devices.
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

// use makes socket the one that the tenants use.
func (s *Shared) use(socket wireguard.Socket) {
	n := &sharedSocket{Socket: socket.(*Socket)}
	s.using.Store(n)
	for _, r := range n.Receivers() {
		n.readers.Go(func() { s.read(r) })
	}
}

// Port returns the local port.
func (s *Shared) Port() uint16 { return s.port }

// SetMark marks what all tenants send from now on; see [Socket.SetMark].
func (s *Shared) SetMark(mark uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.using.Load().SetMark(mark)
	if err == nil {
		s.mark = mark
	}
	return err
}

// Wake opens the sockets anew, on the same port, after the machine slept or its network changed. Call it before
// Device.Wake of the tenants. On Linux it loses no datagram. If the sockets cannot be opened, nothing is sent or received until
// the next Wake.
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

// marked gives a socket that was just opened the mark. If that fails, it closes the socket. mu is held.
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

// Close closes the sockets, and with them those of all tenants, whose receivers then fail with an error that wraps
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

// read reads one receiver until its socket is closed or retired.
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

// The types of the protocol's messages, and their sizes in bytes.
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

// kindOf returns the type of the message m, or 0 if m does not have the length of that type.
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

// dispatch posts the datagrams of t to their tenants. Neighbours with the same tenant stay one train.
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

// tenantOf returns the tenant to which the datagram m of t is posted, or nil if there is none or m waits for its tenant
// to be found.
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

// seatOf returns the tenant whose indices begin as index does.
func (s *Shared) seatOf(index uint32) *Tenant { return s.seats[index>>(32-tenantBits)].Load() }

// meant returns the tenant that the initiation m is for, if its sender is known to talk to it. Otherwise it queues m.
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

// send sends the trains of a tenant. Trains that fail because Wake closed their socket are sent on the next socket.
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

// Join adds a tenant whose device has the public key. The zero key means that it has none yet; see [Tenant.SetKey]. It fails
// if another tenant has the key, and if there are 16,384 tenants.
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

// setKey gives t the key. mu is held.
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

// SharedStats counts what a Shared did since it was opened. It is a comparable value.
type SharedStats struct {
	Socket  Stats // of the sockets that the last Wake opened
	Tenants int   // tenants at present

	Unknown  uint64 // datagrams that are not of the protocol, or whose index is not a tenant's
	Overflow uint64 // datagrams that the queue of their tenant had no room for

	// Tried counts initiations from addresses that no tenant knows, which were tried with the keys of all tenants.
	// Unclaimed counts those of them that fitted no key. Refused counts initiations that were dropped untried, because too
	// many waited or they had waited for too long.
	Tried, Unclaimed, Refused uint64
}

// Stats returns the counters. Each is exact, but they are not of one instant. It may be called after Close.
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
