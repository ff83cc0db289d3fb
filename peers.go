package wireguard

import (
	"errors"
	"iter"
	"net"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/staged"
)

// A peer is the protocol's state for one peer, together with what the device needs to use this state from many goroutines. Its
// 568 bytes and the allocator's header fill a size class of 576 bytes; TestPeerFitsItsClass checks that.
type peer struct {
	mtu      atomic.Int32 // PeerConfig.MTU; the outbound path reads it without mu
	prefixes atomic.Int32 // the number of allowed IPs; written with the configuration lock held
	serial   uint64       // differs from that of every other peer of the device; constant

	mu sync.Mutex // guards the fields below, except for atomic ones and those that name another lock

	peerState
	received, sent Traffic
	handshakeWall  int64      // wall time of lastHandshake, in ns since 1970
	sendErr        *sendError // why the last message was not sent; nil if it was sent; readers copy it

	queued int64 // the time of the peer's entry in the device's deadlines; 0 means that the peer has no entry

	queue   sendQueue // numbered runs that are not sent yet
	handed  bool      // whether the slow path has to send the runs at the head of queue
	inSlow  bool      // whether the peer is in the slow path's queue of peers, or about to be
	found   bool      // whether Lookup supplied the peer and its initiation still waits in the device's lookups
	answers uint8     // how many responses and cookie replies for this peer wait in the slow path

	deadline int32 // position in the device's deadlines, counted from 1; 0 means none; guarded by the lock of the deadlines

	waits *wish // the calls that wait for a session, as a list; nil if there are none

	troubled atomic.Int64 // when the device last reported that the bind failed to send to the peer

	account staged.Account // what the device's pool counts for the staged packets; guarded by mu and by the pool's lock
}

func newPeer(key PublicKey) *peer { return &peer{peerState: peerState{key: key}} }

// noteSend stores err, the result of sending a message to p at the endpoint to. It ignores net.ErrClosed, because a closed socket
// says nothing about the network. While messages keep failing, it allocates nothing. The caller holds p.mu.
func (p *peer) noteSend(to *Endpoint, err error) {
	switch {
	case err == nil:
		p.sendErr = nil
	case errors.Is(err, net.ErrClosed):
	case p.sendErr == nil:
		p.sendErr = &sendError{*to, err}
	default:
		*p.sendErr = sendError{*to, err}
	}
}

// attemptError returns why the last attempt to make a session failed, or has not succeeded yet. The caller holds p.mu.
func (p *peer) attemptError() error {
	switch {
	case p.sendErr != nil:
		e := *p.sendErr // a copy, because noteSend changes the original
		return &e
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

// Key returns the peer's public key, for the device's table of peers.
func (p *peer) Key() [32]byte { return p.key }

// allPeers returns, in the order of their keys, the peers that exist when the loop begins. No peer has the zero key.
func (d *Device) allPeers() iter.Seq[*peer] { return d.peers.After(PublicKey{}) }
