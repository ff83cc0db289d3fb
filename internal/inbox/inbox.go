// Package inbox keeps values for readers that may be slow, and never delays the goroutine that publishes them. Each value has a
// kind and is about a party, such as a peer. A reader gets the newest value of each kind about each party.
package inbox

import (
	"context"
	"slices"
	"sync"
)

// Max is the number of parties that may have an unread value of one kind in one inbox.
const Max = 1 << 16

// Inboxes are the open inboxes of one publisher. K is the kind of a value, P the party that the value is about, and V the value.
// The zero value is ready. Any goroutine may call the methods of Inboxes and of an Inbox.
type Inboxes[K, P comparable, V any] struct {
	mu   sync.Mutex // guards the fields below, and the fields of all inboxes; no other lock is taken while it is held
	open []*Inbox[K, P, V]
	err  error // why no further inboxes are opened
}

// An Inbox has the values that one reader has not read yet. At most one value of each kind is unread for each party. The values
// about one party are read together, in the order in which they were published. The reader gets the party with the oldest unread
// value first. A value that is published while the values about its party are being read waits until that party is read again.
type Inbox[K, P comparable, V any] struct {
	in    *Inboxes[K, P, V]
	kinds []K           // the kinds that the reader wants; empty means all
	ready chan struct{} // holds a token while Next has something to return
	err   error         // why no further values are added; nil means that the inbox is open

	reading []value[K, V]       // the values about the party that is being read
	turns   []P                 // the parties in unread; the one with the oldest value comes first
	unread  map[P][]value[K, V] // at most one value for each kind, the newest last

	count, missed map[K]int // for each kind, the number of unread values, and of values lost since Take last returned one
}

type value[K, V any] struct {
	kind K
	v    V
}

// Open returns an inbox for the values of these kinds that are published from now on. No kinds means all.
func (s *Inboxes[K, P, V]) Open(kinds []K) *Inbox[K, P, V] {
	b := &Inbox[K, P, V]{in: s, kinds: slices.Clone(kinds), ready: make(chan struct{}, 1), count: make(map[K]int), missed: make(map[K]int)}
	b.clear()
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.err = s.err; b.err == nil {
		s.open = append(s.open, b)
	}
	return b
}

// Close closes all inboxes, also those that are opened later. Unread values may still be read; after that, Next fails with err.
func (s *Inboxes[K, P, V]) Close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.open {
		b.err = err
		b.wake()
	}
	s.open, s.err = nil, err
}

// Publish adds a value to the inboxes for its kind. It does not wait for a reader. If an older value of that kind about that
// party is unread, merge returns the value that replaces it. An inbox with unread values of that kind about Max other parties
// does not accept v, and counts it as lost.
func (s *Inboxes[K, P, V]) Publish(kind K, party P, v V, merge func(newer, older V) V) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.open {
		if len(b.kinds) == 0 || slices.Contains(b.kinds, kind) {
			b.add(kind, party, v, merge)
		}
	}
}

func (b *Inbox[K, P, V]) add(kind K, party P, v V, merge func(newer, older V) V) {
	values, waits := b.unread[party]
	switch i := slices.IndexFunc(values, func(old value[K, V]) bool { return old.kind == kind }); {
	case i >= 0:
		v = merge(v, values[i].v)
		values = slices.Delete(values, i, i+1)
	case b.count[kind] == Max:
		b.missed[kind]++
		return
	default:
		b.count[kind]++
	}
	if !waits {
		b.turns = append(b.turns, party)
	}
	b.unread[party] = append(values, value[K, V]{kind, v})
	b.wake()
}

// Next waits for a value and returns it, and how many values of the same kind were lost before it. If ctx has ended, it returns the
// error of ctx, even if values are unread. Any other error says why no value will follow.
func (b *Inbox[K, P, V]) Next(ctx context.Context) (v V, missed int, err error) {
	for ctx.Err() == nil {
		v, missed, ok, err := b.Take()
		if ok || err != nil {
			return v, missed, err
		}
		select {
		case <-b.ready:
		case <-ctx.Done():
		}
	}
	return v, 0, ctx.Err()
}

// Take takes the next unread value, as Next does, and never waits. ok is false if none is unread.
func (b *Inbox[K, P, V]) Take() (v V, missed int, ok bool, err error) {
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	if len(b.reading) == 0 && len(b.turns) > 0 {
		b.reading = b.unread[b.turns[0]]
		delete(b.unread, b.turns[0])
		if b.turns = b.turns[1:]; len(b.turns) == 0 {
			b.clear() // an emptied map keeps its memory
		}
	}
	if err = b.err; len(b.reading) > 0 {
		kind := b.reading[0].kind
		v, missed, ok, err = b.reading[0].v, b.missed[kind], true, nil
		b.reading = b.reading[1:]
		b.count[kind]--
		b.missed[kind] = 0
	}
	if len(b.reading)+len(b.turns) > 0 || b.err != nil {
		b.wake() // another goroutine may wait too
	}
	return v, missed, ok, err
}

// Close closes the inbox and drops its unread values. From now on, Next fails with err.
func (b *Inbox[K, P, V]) Close(err error) {
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	b.in.open = slices.DeleteFunc(b.in.open, func(o *Inbox[K, P, V]) bool { return o == b })
	b.clear()
	b.reading, b.err = nil, err
	b.wake()
}

// clear drops the unread values, but not those that are being read. The caller holds the lock of the inboxes, unless b is not
// open yet.
func (b *Inbox[K, P, V]) clear() { b.turns, b.unread = nil, make(map[P][]value[K, V]) }

// wake makes one goroutine that waits in Next check again. The caller holds the lock of the inboxes.
func (b *Inbox[K, P, V]) wake() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}
