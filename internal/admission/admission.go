// Package admission limits how many questions about strangers a program is asked at a time, and how many strangers it admits. A
// stranger is a peer that the device does not know, and a question asks whether to admit it.
package admission

import "sync"

// A Desk keeps the open questions, which are those that the program has not answered, by the key of the stranger. With each
// question it keeps the stranger's newest request, which waits for the answer. Any goroutine may call the Desk's methods.
type Desk[K comparable, R any] struct {
	Max, MaxAdmitted int // the largest number of open questions, and that of open questions and admitted strangers together

	mu       sync.Mutex // guards all below; no lock is taken while it is held
	waiting  map[K]R
	admitted int
}

// An Outcome says what Put did with a request.
type Outcome int

// The outcomes of Put.
const (
	Asks  Outcome = iota // the request waits, and the caller must ask the question
	Joins                // the request replaces an older one with the same key; the question is already open
	Stale                // an older request with the same key stays, and the new one is dropped
	Full                 // there is no room for another question
)

// Takes reports whether a request with this key may wait.
func (d *Desk[K, R]) Takes(key K) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, waits := d.waiting[key]
	return waits || d.hasRoom()
}

// hasRoom reports whether another question may be asked. The caller holds mu.
func (d *Desk[K, R]) hasRoom() bool {
	return len(d.waiting) < d.Max && d.admitted+len(d.waiting) < d.MaxAdmitted
}

// Crowded reports whether at least an eighth of Max questions are open.
func (d *Desk[K, R]) Crowded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting) > 0 && len(d.waiting) >= d.Max/8
}

// Put makes the request r wait for an answer. If another request with the same key waits already, r replaces that request only if
// the function replaces returns true for it.
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

// Waiting returns the request that waits with this key, or the zero value.
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

// Admit records that n strangers were admitted, or, if n is negative, that -n of them are gone.
func (d *Desk[K, R]) Admit(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.admitted += n
}

// Len returns the number of open questions.
func (d *Desk[K, R]) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting)
}
