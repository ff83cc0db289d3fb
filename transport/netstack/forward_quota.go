package netstack

import "github.com/seed-86b749af/wireguard"

// A quota divides a bounded number of places among peers, so that none starves: a peer may take a place if it holds
// fewer than are free, or fewer than least. A peer alone thus gets half of the places. A second peer finds the other
// half free, and gets half of that. However many places others hold, a peer gets least. All methods are called with
// the forwarder's mutex held.
type quota struct {
	limit, least int
	total        int
	held         map[wireguard.PublicKey]int // without peers that hold nothing
}

// take takes n places for peer and reports whether the peer gets them. A peer that may take one place gets all n.
func (q *quota) take(peer wireguard.PublicKey, n int) bool {
	held := q.held[peer]
	if held >= q.least && held >= q.limit-q.total {
		return false
	}
	if q.held == nil {
		q.held = make(map[wireguard.PublicKey]int)
	}
	q.held[peer] = held + n
	q.total += n
	return true
}

// give returns n places, which may be none.
func (q *quota) give(peer wireguard.PublicKey, n int) {
	if n == 0 {
		return
	}
	q.total -= n
	if q.held[peer] -= n; q.held[peer] == 0 {
		delete(q.held, peer)
	}
}
