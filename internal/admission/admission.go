// Package admission limits how many questions about strangers a program is asked at a time, and how many strangers it admits.
package admission

import "sync"

// A Desk keeps the questions under way, by key. For each it keeps the newest request that waits for the answer. Any goroutine may
// call its methods.
type Desk[K comparable, R any] struct {
	Max, MaxAdmitted int // the most questions under way, and the most of these and admitted strangers together

	mu       sync.Mutex // guards all below; no lock is taken while it is held
	waiting  map[K]R
	admitted int
}

// An Outcome is what became of a request.
type Outcome int

// The outcomes of Put.
const (
	Asks  Outcome = iota // the request waits, and the caller asks
	Joins                // the request replaces an older one with its key, and the question about the key is already under way
	Stale                // an older request with the same key keeps its place
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

// Crowded reports whether at least an eighth of Max questions are under way.
func (d *Desk[K, R]) Crowded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting) > 0 && len(d.waiting) >= d.Max/8
}

// Put lets r wait. If another request with the same key waits already, r takes its place only if replaces returns true.
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

// Admit notes that n strangers were admitted, or, if n is negative, that -n of them are gone.
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
