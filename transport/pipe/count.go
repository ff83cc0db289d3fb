package pipe

import (
	"encoding/binary"
	"sync/atomic"
)

// A MessageType is what a datagram looks like to an observer without keys.
type MessageType uint8

// The message types of WireGuard, by type field and length.
const (
	TypeOther       MessageType = iota // not a WireGuard message
	TypeInitiation                     // the first message of a handshake
	TypeResponse                       // the second message of a handshake
	TypeCookieReply                    // asks a sender to prove its address
	TypeData                           // a packet of the tunnel
	TypeKeepalive                      // data of 32 bytes: an empty packet
	types
)

var typeNames = [types]string{"other", "initiation", "response", "cookie reply", "data", "keepalive"}

// String returns the type in lower-case words.
func (t MessageType) String() string {
	if t < types {
		return typeNames[t]
	}
	return "unknown"
}

// TypeOf returns the type of a datagram. It keeps no reference to data.
func TypeOf(data []byte) MessageType {
	if len(data) < 32 {
		return TypeOther
	}
	switch kind := binary.LittleEndian.Uint32(data); {
	case kind == 1 && len(data) == 148:
		return TypeInitiation
	case kind == 2 && len(data) == 92:
		return TypeResponse
	case kind == 3 && len(data) == 64:
		return TypeCookieReply
	case kind == 4 && len(data) == 32:
		return TypeKeepalive
	case kind == 4:
		return TypeData
	}
	return TypeOther
}

// Counts are numbers of datagrams by message type, and their bytes without UDP and IP headers. It is a comparable value.
type Counts struct {
	Initiations, Responses, CookieReplies, Data, Keepalives, Other uint64 // datagrams of each type
	Bytes                                                          uint64 // of all of them
}

// Total returns the number of datagrams.
func (c Counts) Total() uint64 {
	return c.Initiations + c.Responses + c.CookieReplies + c.Data + c.Keepalives + c.Other
}

func (c *Counts) of(t MessageType) *uint64 {
	switch t {
	case TypeInitiation:
		return &c.Initiations
	case TypeResponse:
		return &c.Responses
	case TypeCookieReply:
		return &c.CookieReplies
	case TypeData:
		return &c.Data
	case TypeKeepalive:
		return &c.Keepalives
	}
	return &c.Other
}

func countTrain(data []byte, size int) (c Counts) {
	c.Bytes = uint64(len(data))
	for len(data) > 0 {
		one := min(size, len(data))
		*c.of(TypeOf(data[:one]))++
		data = data[one:]
	}
	return c
}

type counter = atomic.Uint64

// counters is Counts with atomic fields.
type counters struct {
	types [types]counter
	bytes counter
}

func (cs *counters) add(c *Counts) {
	for t := range types {
		if n := *c.of(t); n > 0 {
			cs.types[t].Add(n)
		}
	}
	cs.bytes.Add(c.Bytes)
}

func (cs *counters) load() (c Counts) {
	for t := range types {
		*c.of(t) = cs.types[t].Load()
	}
	c.Bytes = cs.bytes.Load()
	return c
}

// A Fate says what became of a datagram.
type Fate uint8

// What becomes of datagrams.
const (
	FateDelivered Fate = iota // it is in the queue of the socket that it was sent to
	FateFiltered              // a Filter dropped it
	FateLost                  // Conditions.Loss dropped it
	FateCut                   // the path was cut when it was sent or when it would have arrived
	FateTooBig                // it was larger than Conditions.MTU
	FateOverflow              // too many bytes waited for Conditions.Rate, or too many datagrams were under way
	FateBlocked               // its NAT had no mapping for it, and could not make one
	FateNoSocket              // no socket was open where it was sent
	FateQueueFull             // the receiving socket's queue was full
	fates
)

var fateNames = [fates]string{
	"delivered", "filtered", "lost", "cut", "too big", "overflow", "blocked", "no socket", "queue full",
}

// String returns the fate in lower-case words.
func (f Fate) String() string {
	if f < fates {
		return fateNames[f]
	}
	return "unknown"
}

// Fates are numbers of datagrams by what became of them, as in f[FateLost]. It is a comparable value.
type Fates [fates]uint64

// Total returns the sum over all fates.
func (f Fates) Total() (n uint64) {
	for _, v := range f {
		n += v
	}
	return n
}

// Stats counts what a network did. It is a comparable value. No datagram is lost uncounted: while nobody is sending,
//
//	Sent.Total() + Duplicated + Injected == Fates.Total() + UnderWay
type Stats struct {
	Sent       Counts // datagrams that sockets sent
	Duplicated uint64 // copies that Conditions.Duplicate made
	Injected   uint64 // datagrams that Inject made
	Fates      Fates  // datagrams by what became of them
	UnderWay   int    // datagrams that have no fate yet: under way, or held by a Filter
}

// Stats returns what the network counted until now.
func (n *Network) Stats() Stats {
	n.mu.RLock()
	defer n.mu.RUnlock()
	s := Stats{
		Sent:       n.sent.load(),
		Duplicated: n.duplicated.Load(),
		Injected:   n.injected.Load(),
		UnderWay:   n.flying,
	}
	for f := range n.fates {
		s.Fates[f] = n.fates[f].Load()
	}
	return s
}

// Sent counts the datagrams that all sockets sent, whatever became of them.
func (n *Network) Sent() Counts { return n.sent.load() }
