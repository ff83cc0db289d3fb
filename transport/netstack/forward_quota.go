package netstack

// A quota divides a limited number of places (limit) among holders, such as peers, so that every holder gets some. A holder may
// take a place if it holds fewer places than are free, or fewer than the guaranteed minimum (least). So a single holder gets
// half of the places, and a second holder then gets half of the rest. A holder gets the guaranteed minimum even if other
// holders have all places. A quota has no lock.
type quota[K comparable] struct {
	limit, least int
	total        int
	held         map[K]int // how many places each holder holds; a holder without places is not in the map
}

// take takes n places for the holder k, and reports whether k gets them. If k may take one place, it gets all n.
func (q *quota[K]) take(k K, n int) bool { return q.takeOf(k, n, q.limit) }

// takeOf is like take, but with the given limit instead of q.limit.
func (q *quota[K]) takeOf(k K, n, limit int) bool {
	if !q.may(k, limit) {
		return false
	}
	q.force(k, n)
	return true
}

// force takes n places for k, however many places are free.
func (q *quota[K]) force(k K, n int) {
	if q.held == nil {
		q.held = make(map[K]int)
	}
	q.held[k] += n
	q.total += n
}

// may reports whether k may take a place, if there are limit places in all.
func (q *quota[K]) may(k K, limit int) bool {
	held := q.held[k]
	return held < q.least || held < limit-q.total
}

// give returns n places that k holds. n may be 0.
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
