package wireguard

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// A peer is one other end: what the protocol keeps with it, and what the device needs to call the protocol from many
// goroutines.
type peer struct {
	mtu atomic.Int32 // PeerConfig.MTU; the outbound path reads it without mu

	mu sync.Mutex // guards all below, except for the fields that name another lock

	peerState
	received, sent Traffic
	handshakeWall  int64 // wall time of lastHandshake, in ns since 1970
	sendErr        error // why the last message to the peer was not sent; nil: it was

	inSlow bool  // in the slow path's queue of peers, or about to be
	queued int64 // the time for which the device's deadlines know this peer; 0 means that they do not

	queue  sendQueue // numbered runs that are not sent yet
	handed bool      // the slow path is to send from the head of queue

	waits []chan error // of calls that wait for a session; each takes one value before it waits again

	allowed []netip.Prefix // in no order; guarded by the device's configuration lock

	troubled atomic.Int64 // when the bind last failed to send to it and the device reported that

	nextSlow *peer // in the slow path's queue of peers; guarded by that
	deadline int   // place in the device's deadlines, from 1; guarded by them
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

// prefixes is the list that the table of allowed IPs keeps in step.
func (p *peer) prefixes() *[]netip.Prefix { return &p.allowed }
