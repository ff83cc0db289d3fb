package wireguard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

var (
	errNoAnswer   = errors.New("no answer to 20 initiations; check the endpoint, the keys of both ends and what is between them")
	errRemoved    = errors.New("the peer was removed")
	errNoIdentity = errors.New("the device has no private key; set one first")
	errNoEndpoint = errors.New("the peer has no endpoint; set one, or wait until the peer is heard")
)

// Handshake waits until there is a session with a peer, and makes one if there is none. It fails when ctx ends, when the
// device heard nothing of the peer in 20 tries (about 100 s), when the peer is removed or has no endpoint, and when the
// device has no private key or is down: each of them also where it comes while Handshake waits. After Close the error
// wraps net.ErrClosed.
func (d *Device) Handshake(ctx context.Context, key PublicKey) error {
	if err := d.awaitSession(ctx, key); err != nil {
		return fmt.Errorf("wireguard: handshake with %v: %w", key, err)
	}
	return nil
}

func (d *Device) awaitSession(ctx context.Context, key PublicKey) error {
	p := d.peers.find(key)
	switch {
	case p == nil:
		return errors.New("no such peer; add it first")
	case d.closing.Load():
		return errClosed
	case d.running.Load() == nil:
		return errDown
	case d.identity.Load() == nil:
		return errNoIdentity
	}
	ended := d.waiters.add(p)
	defer d.waiters.remove(p, ended)
	var out outbox
	now := d.now()
	p.mu.Lock()
	stands, endpoint := p.current.sendable(now, 1), !p.endpoint.IsZero()
	// Whoever ends the waiters may have been there before this one.
	removed, up, identity := p.removed, d.running.Load() != nil, d.identity.Load() != nil
	if !stands && !removed && up && identity {
		p.initiate(now, false, &out)
	}
	d.release(p, &out)
	switch {
	case removed:
		return errRemoved
	case !up && d.closing.Load():
		return errClosed
	case !up:
		return errDown
	case stands:
		return nil
	case !identity:
		return errNoIdentity
	case !endpoint:
		return errNoEndpoint
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waiters are those who wait for a session. The zero value is ready.
type waiters struct {
	mu     sync.Mutex // guards all below; nothing is taken while it is held
	m      map[*peer][]chan error
	closed bool
}

func (w *waiters) add(p *peer) chan error {
	c := make(chan error, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		c <- errClosed
		return c
	}
	if w.m == nil {
		w.m = make(map[*peer][]chan error)
	}
	w.m[p] = append(w.m[p], c)
	return c
}

func (w *waiters) remove(p *peer, c chan error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.m[p], c); i >= 0 {
		if w.m[p] = slices.Delete(w.m[p], i, i+1); len(w.m[p]) == 0 {
			delete(w.m, p)
		}
	}
}

// end lets those go who wait for p.
func (w *waiters) end(p *peer, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.m[p] {
		c <- err
	}
	delete(w.m, p)
}

// close lets everyone go, and whoever comes.
func (w *waiters) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.endAll(errClosed)
}

func (w *waiters) endAll(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, cs := range w.m {
		for _, c := range cs {
			c <- err
		}
		delete(w.m, p)
	}
}
