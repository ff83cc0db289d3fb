// Package deadlines keeps parties in the order of their deadlines, and sets an alarm for the earliest one. Times are nanoseconds on
// the caller's clock.
package deadlines

import (
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/internal/boottime"
	"github.com/seed-86b749af/wireguard/internal/ordered"
)

// Interval is the least time between two rings of the alarm. A deadline that comes less than Interval after a ring is handled late,
// by at most Interval, together with all deadlines that have come by then. The protocol needs no better precision, because the
// limits of a session are checked when the session is used. With 250 timer ticks per second, Linux rounds a timer of 25 s up to a
// multiple of 2 s (kernel/time/timer.c).
const Interval = int64(time.Second / 100)

// A Queue holds the parties that have a deadline. A party without a deadline is not in the queue, and costs nothing. The zero
// value is empty, and has no alarm.
type Queue[P any] struct {
	mu      sync.Mutex // guards the fields below, and *place of each party; taken after the lock of a party
	entries ordered.Heap[entry[P]]
	rang    int64          // when the alarm last rang
	alarm   boottime.Alarm // nil while no goroutine waits for an alarm
}

type entry[P any] struct {
	at    int64
	party P
	place *int32
}

func (e entry[P]) Before(o entry[P]) bool { return e.at < o.at }
func (e entry[P]) Place() *int32          { return e.place }

// Put sets the party's deadline, which is the time at. From that time on, Due returns the party. If the party has an earlier
// deadline already, Put keeps that deadline. The queue keeps the party's position, counted from 1, in *place, which is 0 while the
// party is not in the queue. now returns the time.
func (q *Queue[P]) Put(party P, place *int32, at int64, now func() int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if *place != 0 && q.entries[*place-1].at <= at {
		return
	}
	if q.entries.Put(entry[P]{at, party, place}); *place == 1 {
		q.wake(now())
	}
}

// Remove removes the party whose position in the queue is *place, unless *place is 0.
func (q *Queue[P]) Remove(place *int32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.entries.Remove(entry[P]{place: place})
}

// Due removes a party whose deadline has come, and returns it. If there is none, Due sets the alarm for the next deadline, and
// returns false.
func (q *Queue[P]) Due(now int64) (party P, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) > 0 && q.entries[0].at <= now {
		e := q.entries[0]
		q.entries.Remove(e)
		return e.party, true
	}
	q.wake(now)
	return party, false
}

// wake sets the alarm for the earliest deadline. The caller holds mu.
func (q *Queue[P]) wake(now int64) {
	if len(q.entries) > 0 && q.alarm != nil {
		q.alarm.Set(time.Duration(max(q.entries[0].at, q.rang+Interval) - now))
	}
}

// Ringing records that the alarm rings now.
func (q *Queue[P]) Ringing(now int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rang = now
}

// Use gives the queue another alarm, and makes the new alarm ring at once. Nil means no alarm.
func (q *Queue[P]) Use(a boottime.Alarm) {
	q.mu.Lock()
	q.alarm = a
	q.mu.Unlock()
	q.Ring()
}

// Ring makes the alarm ring now.
func (q *Queue[P]) Ring() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.alarm != nil {
		q.alarm.Set(0)
	}
}
