package wireguard

import (
	"crypto/cipher"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/seed-86b749af/wireguard/internal/noise"
)

// A data message has type 4 (whitepaper, section 5.4.6). A keepalive is a data message whose packet is empty. In a batch,
// a packet has room for the rest of its message around it:
//
//	 0          4              8         16                  16+padded   32+padded
//	| type (4) | receiver (4) | counter | packet and padding | tag       |
const (
	messageHeader   = 16
	messageTag      = chacha20poly1305.Overhead
	messageOverhead = messageHeader + messageTag
)

// Types of messages. The type is the first byte. The three bytes after it are zero.
const (
	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	typeData       = 4
)

// A keypair holds the two keys of one session, one per direction, and the message counters of both directions. The peer's mutex
// guards it, except for the ciphers, indices, time of creation and role, which never change.
//
// The keys are not wiped from memory when a keypair is dropped, because x/crypto keeps its own copies out of reach. The
// garbage collector frees them.
type keypair struct {
	sender, receiver cipher.AEAD
	local, remote    uint32 // session indices
	created          int64
	initiator        bool // whether this device sent the initiation

	id      *identity // the device's identity when the session was made; nil if retired, so that the old private key is not kept
	retired bool      // nothing more is sent with this keypair, because the device has another identity
	moved   bool      // the configuration has changed the peer's endpoint since the last message was received on this keypair
	asked   int64     // when the oldest data that still has no answer was sent on this keypair; 0 means that all data has one
	counter uint64    // the counter of the next message to send
	window  window
}

// newKeypair makes the keypair of a session. The caller sets its id.
func newKeypair(send, receive *[32]byte, local, remote uint32, initiator bool, now int64) *keypair {
	return &keypair{sender: noise.AEAD(send), receiver: noise.AEAD(receive), local: local, remote: remote, initiator: initiator, created: now}
}

// age returns how old the session is.
func (k *keypair) age(now int64) int64 { return now - k.created }

// sendable reports whether n more messages may be sent.
func (k *keypair) sendable(now int64, n int) bool {
	return k != nil && !k.retired && k.age(now) < rejectAfterTime && k.counter+uint64(n) <= rejectAfterMessages
}

// number reserves the counters of the next n messages, and returns the first of these counters.
func (k *keypair) number(n int) uint64 {
	first := k.counter
	k.counter += uint64(n)
	return first
}

// seal makes m a data message. The argument padded is the padded packet. It lies either at its offset in m, or in memory that
// does not overlap m.
//
// The nonce is 32 zero bits and the counter. While the receiver index in the header is zero, bytes 4 to 15 of the header equal the
// nonce, so the nonce needs no memory of its own.
func (k *keypair) seal(m, padded []byte, counter uint64) {
	binary.LittleEndian.PutUint32(m, typeData)
	clear(m[4:8])
	binary.LittleEndian.PutUint64(m[8:], counter)
	k.sender.Seal(m[messageHeader:messageHeader], m[4:16], padded, nil)
	binary.LittleEndian.PutUint32(m[4:], k.remote)
}

// open opens the data message m in place and returns the padded packet in it, or false if the message is forged. m must have at
// least 32 bytes. open overwrites the receiver index in m.
func (k *keypair) open(m []byte) (packet []byte, ok bool) {
	clear(m[4:8])
	p, err := k.receiver.Open(m[messageHeader:messageHeader], m[4:16], m[messageHeader:], nil)
	return p, err == nil
}

// keypairs are the sessions of one peer.
//
//	         initiator: response received        responder: initiation received
//	(new) ──────────────────▶ current     (new) ──────▶ next
//	                             │                        │ first data message on it
//	                             ▼                        ▼
//	                          previous ◀────────────── current
//
// Packets are sent only on current, and received on all three.
type keypairs struct {
	current, previous, next *keypair
}

// addInitiated makes k current, because the response confirmed k. It returns the keypairs that are no longer in ks. Either may be
// nil.
func (ks *keypairs) addInitiated(k *keypair) (dropped, alsoDropped *keypair) {
	dropped = ks.previous
	if ks.next != nil {
		// The peer initiated a session too, which is not confirmed yet. The peer may still send on that session, so the session
		// becomes previous.
		alsoDropped = ks.current
		ks.previous, ks.next = ks.next, nil
	} else {
		ks.previous = ks.current
	}
	ks.current = k
	return dropped, alsoDropped
}

// addResponded makes k next. Nothing may be sent on k before the initiator has confirmed k. addResponded returns the keypairs
// that are no longer in ks. Either may be nil.
func (ks *keypairs) addResponded(k *keypair) (dropped, alsoDropped *keypair) {
	dropped, alsoDropped = ks.previous, ks.next
	ks.previous, ks.next = nil, k
	return dropped, alsoDropped
}

// confirm is called when a message was received on k. If k is next, confirm makes k current, and returns true and the keypair
// that is no longer in ks, which may be nil.
func (ks *keypairs) confirm(k *keypair) (dropped *keypair, confirmed bool) {
	if k != ks.next {
		return nil, false
	}
	dropped = ks.previous
	ks.previous, ks.current, ks.next = ks.current, ks.next, nil
	return dropped, true
}

// sends reports whether this device sends messages with the receiver index remote, or sent them lately.
func (ks *keypairs) sends(remote uint32) bool {
	return ks.current != nil && ks.current.remote == remote || ks.previous != nil && ks.previous.remote == remote
}

// holds reports whether k is still in ks.
func (ks *keypairs) holds(k *keypair) bool {
	return k != nil && (k == ks.current || k == ks.previous || k == ks.next)
}
