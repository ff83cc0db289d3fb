// Package admission bounds the questions to a program about strangers: those under way, and the strangers that it admitted.
package admission

import "sync"

// A Desk knows the questions under way by key, and the newest request that waits for each answer. Any goroutine may call its
// methods.
type Desk[K comparable, R any] struct {
	Max, MaxAdmitted int // questions under way, and those and admitted strangers together

	mu       sync.Mutex // guards all below; nothing is taken while it is held
	waiting  map[K]R
	admitted int
}

// An Outcome is what became of a request.
type Outcome int

// The outcomes of Put.
const (
	Asks  Outcome = iota // the request waits, and the caller asks
	Joins                // the request waits, in place of another one, for an answer that was asked for
	Stale                // another request keeps its place
	Full                 // there is no room
)

// Takes reports whether a request with this key may wait.
func (d *Desk[K, R]) Takes(key K) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, waits := d.waiting[key]
	return waits || d.hasRoom()
}

// hasRoom reports whether another question may begin. mu is held.
func (d *Desk[K, R]) hasRoom() bool {
	return len(d.waiting) < d.Max && d.admitted+len(d.waiting) < d.MaxAdmitted
}

// Crowded reports whether an eighth of the questions that may be under way are.
func (d *Desk[K, R]) Crowded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting) > 0 && len(d.waiting) >= d.Max/8
}

// Put lets a request wait. If another one with its key waits, r takes its place if replaces says so.
func (d *Desk[K, R]) Put(key K, r R, replaces func(waiting R) bool) Outcome {
	d.mu.Lock()
	defer d.mu.Unlock()
	waiting, joins := d.waiting[key]
	switch {
	case !joins && !d.hasRoom():
		return Full
	case joins && !replaces(waiting):
		return Stale
	case d.waiting == nil:
		d.waiting = make(map[K]R)
	}
	d.waiting[key] = r
	if joins {
		return Joins
	}
	return Asks
}

// Waiting returns the request that waits, or the zero value.
func (d *Desk[K, R]) Waiting(key K) R {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting[key]
}

// End ends a question, and returns the request that waited for the answer.
func (d *Desk[K, R]) End(key K) R {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.waiting[key]
	delete(d.waiting, key)
	return r
}

// Admit notes that n strangers were admitted, or, if n is negative, that so many are gone.
func (d *Desk[K, R]) Admit(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.admitted += n
}

// Len returns how many questions are under way.
func (d *Desk[K, R]) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting)
}
