package wireguard

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"iter"
	"net"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/ordered"
	"github.com/seed-86b749af/wireguard/internal/staged"
)

// A peer is the protocol's state for one peer, together with what the device needs to use this state from many goroutines. Its
// 632 bytes and the allocator's header fill a size class of 640 bytes; TestPeerFitsItsClass checks that.
type peer struct {
	mtu      atomic.Int32 // PeerConfig.MTU; the outbound path reads it without mu
	prefixes atomic.Int32 // the number of allowed IPs; written with the configuration lock held
	serial   uint64       // differs from that of every other peer of the device; constant

	mu sync.Mutex // guards the fields below, except for atomic ones and those that name another lock

	peerState
	received, sent Traffic
	handshakeWall  int64 // wall time of lastHandshake, in ns since 1970
	sendErr        error // why the last message to the peer was not sent; nil if it was sent

	queued int64 // the time of the peer's entry in the device's deadlines; 0 means that the peer has no entry

	queue   sendQueue // numbered runs that are not sent yet
	handed  bool      // whether the slow path has to send the runs at the head of queue
	inSlow  bool      // whether the peer is in the slow path's queue of peers, or about to be
	found   bool      // whether Lookup supplied the peer and its initiation still waits in the device's lookups
	answers uint8     // how many responses and cookie replies for this peer wait in the slow path

	waits []chan error // one channel per call that waits for a session; the call takes a value from it before it waits again

	troubled atomic.Int64 // when the device last reported that the bind failed to send to the peer

	account staged.Account // what the device's pool counts for the staged packets; guarded by mu and by the pool's lock

	deadline int32 // position in the device's deadlines, counted from 1; 0 means none; guarded by the lock of the deadlines
}

func newPeer(key PublicKey) *peer { return &peer{peerState: peerState{key: key}} }

// noteSend stores err, the result of sending a message to p. It ignores net.ErrClosed, because a closed socket says nothing about
// the network. The caller holds p.mu.
func (p *peer) noteSend(err error) {
	if !errors.Is(err, net.ErrClosed) {
		p.sendErr = err
	}
}

// attemptError returns why the last attempt to make a session failed, or has not succeeded yet. The caller holds p.mu.
func (p *peer) attemptError() error {
	switch {
	case p.sendErr != nil:
		return &sendError{p.endpoint, p.sendErr}
	case p.unopened:
		return errUnopened
	}
	return ErrNoAnswer
}

// because adds the known cause, if there is one, to the error with which an attempt to make a session ends. It is called when the
// attempt ends, because the next attempt overwrites the cause. It does not make the text of the error, because that calls the
// program's code, and the caller holds p.mu.
func (p *peer) because(err error) error {
	if cause := p.attemptError(); cause != ErrNoAnswer {
		return errors.Join(err, cause)
	}
	return err
}

func (p *peer) serialNumber() uint64 { return p.serial }
func (p *peer) addPrefixes(n int)    { p.prefixes.Add(int32(n)) }

// A peerTable finds peers by their public key, and lists them in the order of their keys. A goroutine that reads the table takes
// no lock. A goroutine that changes the table holds the configuration lock, and publishes a new state. The zero value is empty.
type peerTable struct {
	published ordered.Published[keyedPeer]
}

// A keyedPeer is a peer with a copy of its key. A search compares the copies, so it does not read the memory of the peers.
type keyedPeer struct {
	key PublicKey
	p   *peer
}

// Compare orders by key.
func (k keyedPeer) Compare(other keyedPeer) int {
	// Keys are random, so their first 8 bytes nearly always differ.
	if a, b := binary.BigEndian.Uint64(k.key[:]), binary.BigEndian.Uint64(other.key[:]); a != b {
		return cmp.Compare(a, b)
	}
	return bytes.Compare(k.key[:], other.key[:])
}

func (t *peerTable) find(key PublicKey) *peer {
	found, _ := t.published.Load().Get(keyedPeer{key: key})
	return found.p
}

// after returns, in order, the peers that exist when the loop begins and whose keys are greater than key.
func (t *peerTable) after(key PublicKey) iter.Seq[*peer] {
	return func(yield func(*peer) bool) {
		for k := range t.published.Load().From(keyedPeer{key: key}) {
			if k.key != key && !yield(k.p) {
				return
			}
		}
	}
}

// all returns, in order, the peers that exist when the loop begins. No peer has the zero key.
func (t *peerTable) all() iter.Seq[*peer] { return t.after(PublicKey{}) }
