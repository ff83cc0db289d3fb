package wireguard

import (
	"crypto/cipher"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"
)

// A data message, type 4 (whitepaper, section 5.4.6). A keepalive is one whose packet is empty. Messages in memory
// leave the same room round a packet:
//
//	 0          4              8         16                  16+padded   32+padded
//	| type (4) | receiver (4) | counter | packet and padding | tag       |
const (
	messageHeader   = 16
	messageTag      = chacha20poly1305.Overhead
	messageOverhead = messageHeader + messageTag
	maxPadding      = 15
)

// Types of messages: the first byte; the three bytes after it are zero.
const (
	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	typeData       = 4
)

// A keypair is the keys of one session, one for each direction, and what was sent and received with them. The peer's
// mutex guards it but for the ciphers, indices, birth and role, which never change.
//
// Its keys are not wiped from memory when it is dropped: x/crypto keeps its own copy out of reach. They go with the
// garbage collector.
type keypair struct {
	sender, receiver cipher.AEAD
	local, remote    uint32 // indices
	created          int64
	initiator        bool // whether this device sent the initiation

	id      *identity // that it was made with; nil once it is retired, so that the private key is not kept
	retired bool      // not to be sent on any more: the device has another identity
	moved   bool      // the configuration changed the endpoint since anything was received on it
	asked   int64     // when data was sent on it first since anything was received on it; 0: all is answered
	counter uint64    // of the next message
	window  window
}

// newKeypair makes the keypair of a session, whose id is for the caller to set.
func newKeypair(send, receive *[32]byte, local, remote uint32, initiator bool, now int64) *keypair {
	s, err1 := chacha20poly1305.New(send[:])
	r, err2 := chacha20poly1305.New(receive[:])
	if err1 != nil || err2 != nil {
		panic("wireguard: a ChaCha20-Poly1305 key of 32 bytes was refused")
	}
	return &keypair{sender: s, receiver: r, local: local, remote: remote, initiator: initiator, created: now}
}

// age is how old the session is.
func (k *keypair) age(now int64) int64 { return now - k.created }

// sendable reports whether n more messages may be sent.
func (k *keypair) sendable(now int64, n int) bool {
	return k != nil && !k.retired && k.age(now) < rejectAfterTime && k.counter+uint64(n) <= rejectAfterMessages
}

// number takes n counters and returns the first.
func (k *keypair) number(n int) uint64 {
	first := k.counter
	k.counter += uint64(n)
	return first
}

// seal makes a data message of m in place: m is the whole message, with the padded packet where it belongs.
//
// The nonce is 32 zero bits and the counter. That is what stands in the message's own header from byte 4 on while the
// receiver's index is still zero, so it needs no memory of its own.
func (k *keypair) seal(m []byte, counter uint64) {
	k.sealTo(m, m[messageHeader:len(m)-messageTag], counter)
}

// sealTo is seal for a padded packet that stands elsewhere, in memory that does not overlap m.
func (k *keypair) sealTo(m, padded []byte, counter uint64) {
	binary.LittleEndian.PutUint32(m, typeData)
	clear(m[4:8])
	binary.LittleEndian.PutUint64(m[8:], counter)
	k.sender.Seal(m[messageHeader:messageHeader], m[4:16], padded, nil)
	binary.LittleEndian.PutUint32(m[4:], k.remote)
}

// open opens the data message m in place and returns the padded packet in it, or false if it is a forgery. The
// message must have at least 32 bytes; its receiver's index gets lost.
func (k *keypair) open(m []byte) (packet []byte, ok bool) {
	clear(m[4:8])
	p, err := k.receiver.Open(m[messageHeader:messageHeader], m[4:16], m[messageHeader:], nil)
	return p, err == nil
}

// keypairs are the sessions of one peer.
//
//	         initiator: response came            responder: initiation came
//	(new) ──────────────────▶ current     (new) ──────▶ next
//	                             │                        │ first data message on it
//	                             ▼                        ▼
//	                          previous ◀────────────── current
//
// Packets are sent on current alone, and received on all three.
type keypairs struct {
	current, previous, next *keypair
}

// addInitiated makes k current: the response confirmed it. It returns the keypairs that have no place any more; nil
// entries are none.
func (ks *keypairs) addInitiated(k *keypair) (dropped [2]*keypair) {
	dropped[0] = ks.previous
	if ks.next != nil {
		// The peer initiated too and its session is not confirmed: the peer may send on it all the same.
		dropped[1] = ks.current
		ks.previous, ks.next = ks.next, nil
	} else {
		ks.previous = ks.current
	}
	ks.current = k
	return dropped
}

// addResponded makes k next: it may not be used before the initiator confirmed it.
func (ks *keypairs) addResponded(k *keypair) (dropped [2]*keypair) {
	dropped = [2]*keypair{ks.previous, ks.next}
	ks.previous, ks.next = nil, k
	return dropped
}

// confirm makes k current if it is next, because a message came on it, and reports whether it was.
func (ks *keypairs) confirm(k *keypair) (dropped *keypair, confirmed bool) {
	if k != ks.next {
		return nil, false
	}
	dropped = ks.previous
	ks.previous, ks.current, ks.next = ks.current, ks.next, nil
	return dropped, true
}

// sends reports whether messages with the peer's index remote are sent on one of ks, or lately were.
func (ks *keypairs) sends(remote uint32) bool {
	return ks.current != nil && ks.current.remote == remote || ks.previous != nil && ks.previous.remote == remote
}

// holds reports whether k still has a place.
func (ks *keypairs) holds(k *keypair) bool {
	return k != nil && (k == ks.current || k == ks.previous || k == ks.next)
}
