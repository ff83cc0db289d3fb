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

	flushing bool  // the slow path is to send what is staged
	inSlow   bool  // in the slow path's queue of peers, or about to be
	queued   int64 // the time for which the device's deadlines know this peer; 0 means that they do not

	// turn is whose the outbound direction is at the moment: nil, or the lane of batches that are being sealed and sent with
	// mu released. It alone assigns counters. A goroutine that finds it taken leaves its packets in staged.
	turn     *lane
	under    int32      // runs of the lane's batches that are under way
	turnFree *sync.Cond // wakes sources that wait for the turn; nil: none ever did

	allowed []netip.Prefix // in no order; guarded by the device's configuration lock

	troubled atomic.Int64 // when the bind last failed to send to it and the device reported that

	nextSlow *peer // in the slow path's queue of peers; guarded by that
	deadline int   // place in the device's deadlines, from 1; guarded by them
}

func newPeer(key PublicKey) *peer { return &peer{peerState: peerState{key: key}} }

// prefixes is the list that the table of allowed IPs keeps in step.
func (p *peer) prefixes() *[]netip.Prefix { return &p.allowed }
