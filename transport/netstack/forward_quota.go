package netstack

// A quota divides a bounded number of places among holders, such as peers, so that none starves: a holder may take a place if it
// holds fewer than are free, or fewer than least. So a single holder gets half of the places. A second holder finds the other
// half free, and gets half of that. However many places others hold, a holder gets least. A quota has no lock.
type quota[K comparable] struct {
	limit, least int
	total        int
	held         map[K]int // without holders that hold nothing
}

// take takes n places for k and reports whether k gets them. A holder that may take one place gets all n.
func (q *quota[K]) take(k K, n int) bool { return q.takeOf(k, n, q.limit) }

// takeOf is take with another limit.
func (q *quota[K]) takeOf(k K, n, limit int) bool {
	if !q.may(k, limit) {
		return false
	}
	q.force(k, n)
	return true
}

// force takes n places for k, whatever others hold.
func (q *quota[K]) force(k K, n int) {
	if q.held == nil {
		q.held = make(map[K]int)
	}
	q.held[k] += n
	q.total += n
}

// may reports whether k may take one of limit places.
func (q *quota[K]) may(k K, limit int) bool {
	held := q.held[k]
	return held < q.least || held < limit-q.total
}

// give returns n places, which may be none.
func (q *quota[K]) give(k K, n int) {
	if n == 0 {
		return
	}
	q.total -= n
	if left := q.held[k] - n; left == 0 {
		delete(q.held, k)
	} else {
		q.held[k] = left
	}
}
