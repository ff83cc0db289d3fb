package wireguard

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// A peer is one other end: what the protocol keeps with it, and what the device needs to call the protocol from many
// goroutines.
type peer struct {
	mu sync.Mutex // guards all below, except for the fields that name another lock

	peerState
	received, sent Traffic
	handshakeWall  int64 // wall time of lastHandshake, in ns since 1970

	inSlow bool  // in the slow path's queue of peers, or about to be
	queued int64 // the time for which the device's deadlines know this peer; 0 means that they do not

	queue  sendQueue // numbered runs that are not sent yet
	handed bool      // the slow path is to send from the head of queue

	allowed []netip.Prefix // in no order; guarded by the device's configuration lock

	troubled atomic.Int64 // when the bind last failed to send to it and the device reported that

	nextSlow *peer // in the slow path's queue of peers; guarded by that
	deadline int   // place in the device's deadlines, from 1; guarded by them
}

func newPeer(key PublicKey) *peer { return &peer{peerState: peerState{key: key}} }

// prefixes is the list that the table of allowed IPs keeps in step.
func (p *peer) prefixes() *[]netip.Prefix { return &p.allowed }
