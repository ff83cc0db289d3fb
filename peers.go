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

// A peer is one other end: what the protocol keeps with it, and what the device needs to call the protocol from many
// goroutines. Its 632 bytes and the allocator's header fill a size class of 640 bytes; TestPeerFitsItsClass guards that.
type peer struct {
	mtu      atomic.Int32 // PeerConfig.MTU; the outbound path reads it without mu
	prefixes atomic.Int32 // the number of allowed IPs; written with the configuration lock held
	serial   uint64       // differs from that of every other peer of the device; constant

	mu sync.Mutex // guards all below, except for the fields that name another lock

	peerState
	received, sent Traffic
	handshakeWall  int64 // wall time of lastHandshake, in ns since 1970
	sendErr        error // why the last message to the peer was not sent; nil: it was

	queued int64 // the time for which the device's deadlines know this peer; 0 means that they do not

	queue   sendQueue // numbered runs that are not sent yet
	handed  bool      // the slow path is to send from the head of queue
	inSlow  bool      // in the slow path's queue of peers, or about to be
	found   bool      // Lookup supplied it, and its initiation waits among the lookups
	answers uint8     // responses and cookie replies to the peer's messages that wait in the slow path

	waits []chan error // of calls that wait for a session; each takes one value before it waits again

	troubled atomic.Int64 // when the bind last failed to send to it and the device reported that

	account staged.Account // what the device's pool counts for staged; guarded by the pool's lock, too

	deadline int32 // place in the device's deadlines, from 1; guarded by their lock
}

func newPeer(key PublicKey) *peer { return &peer{peerState: peerState{key: key}} }

// noteSend keeps why a message to p was not sent. A closed socket is not the network's fault. p.mu is held.
func (p *peer) noteSend(err error) {
	if !errors.Is(err, net.ErrClosed) {
		p.sendErr = err
	}
}

// attemptError says why an attempt at a session failed, or fails. p.mu is held.
func (p *peer) attemptError() error {
	switch {
	case p.sendErr != nil:
		return &sendError{p.endpoint, p.sendErr}
	case p.unopened:
		return errUnopened
	}
	return ErrNoAnswer
}

// because adds to err what is known of the attempt that it ends. The next attempt forgets that, so because is called at the
// moment when the attempt ends. It makes no text: that calls the program, and p.mu is held.
func (p *peer) because(err error) error {
	if cause := p.attemptError(); cause != ErrNoAnswer {
		return errors.Join(err, cause)
	}
	return err
}

func (p *peer) serialNumber() uint64 { return p.serial }
func (p *peer) addPrefixes(n int)    { p.prefixes.Add(int32(n)) }

// A peerTable finds peers by their public key, and lists them in the order of their keys. Readers take no lock. The
// device's configuration lock serialises writers, which publish a new state. The zero value is empty.
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
	// Keys are random, so that their first bytes nearly always decide.
	if a, b := binary.BigEndian.Uint64(k.key[:]), binary.BigEndian.Uint64(other.key[:]); a != b {
		return cmp.Compare(a, b)
	}
	return bytes.Compare(k.key[:], other.key[:])
}

func (t *peerTable) find(key PublicKey) *peer {
	found, _ := t.published.Load().Get(keyedPeer{key: key})
	return found.p
}

// after returns the peers of the moment when the loop begins whose keys are greater than key, in order.
func (t *peerTable) after(key PublicKey) iter.Seq[*peer] {
	return func(yield func(*peer) bool) {
		for k := range t.published.Load().From(keyedPeer{key: key}) {
			if k.key != key && !yield(k.p) {
				return
			}
		}
	}
}

// all returns the peers of the moment when the loop begins, in order. The zero key is nobody's.
func (t *peerTable) all() iter.Seq[*peer] { return t.after(PublicKey{}) }
