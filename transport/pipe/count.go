package pipe

import (
	"encoding/binary"
	"sync/atomic"
)

// A MessageType is the type of a WireGuard message, as far as an observer without keys can see it.
type MessageType uint8

// These are the message types. A datagram's type field and its length determine its type.
const (
	TypeOther       MessageType = iota // not a WireGuard message
	TypeInitiation                     // the first message of a handshake
	TypeResponse                       // the second message of a handshake
	TypeCookieReply                    // a message that gives its receiver a cookie, with which the receiver proves its address
	TypeData                           // a message with an encrypted IP packet
	TypeKeepalive                      // a data message of 32 bytes, which contains no IP packet
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

// Counts holds numbers of datagrams by message type, and the sum of their sizes without UDP and IP headers. Counts is a
// comparable type.
type Counts struct {
	Initiations, Responses, CookieReplies, Data, Keepalives, Other uint64 // datagrams of each type
	Bytes                                                          uint64 // sum of the sizes of all datagrams
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

// counters has the same numbers as Counts, in atomic fields.
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

// A Fate says what happened to a datagram in the end.
type Fate uint8

// These are the fates of datagrams.
const (
	FateDelivered Fate = iota // it was put into the queue of the receiving socket
	FateFiltered              // a Filter dropped it
	FateLost                  // Conditions.Loss dropped it
	FateCut                   // the path was cut when the datagram was sent or when it would have arrived
	FateTooBig                // it was larger than Conditions.MTU
	FateOverflow              // the queue for Conditions.Rate was full, or too many bytes were under way in the network
	FateBlocked               // a NAT had no mapping for it, or could not make one
	FateNoSocket              // no socket was open at its destination address
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

// Fates holds the number of datagrams for each fate. For example, f[FateLost] is the number of lost datagrams. Fates is a
// comparable type.
type Fates [fates]uint64

// Total returns the sum over all fates.
func (f Fates) Total() (n uint64) {
	for _, v := range f {
		n += v
	}
	return n
}

// Stats counts what a network has done. Stats is a comparable type. It counts every datagram. While no goroutine is sending,
// this holds:
//
//	Sent.Total() + Duplicated + Injected == Fates.Total() + UnderWay
type Stats struct {
	Sent       Counts // datagrams that sockets sent
	Duplicated uint64 // duplicates that Conditions.Duplicate made
	Injected   uint64 // datagrams that Inject made
	Fates      Fates  // datagrams by their fates
	UnderWay   int    // datagrams that have no fate yet, including those that a Filter holds
}

// Stats returns the current counters.
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

// Sent counts the datagrams that all sockets have sent, including those that were dropped later.
func (n *Network) Sent() Counts { return n.sent.load() }
