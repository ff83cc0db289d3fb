package wireguard

import (
	"context"
	"slices"
	"sync"
)

// Handshake waits for a session with a peer on which packets can be expected to arrive: something was received on it since
// the configuration last changed the peer's endpoint, and no data has been unanswered for 10 s. If there is none, it
// makes one, as Renew does.
//
// It fails when ctx ends, with ErrNoAnswer after 20 attempts (about 100 s), and with ErrNoPeer, ErrNoEndpoint,
// ErrNoPrivateKey or ErrDown, also where that happens while it waits. After Close the error wraps net.ErrClosed. When ctx
// ends, and after 20 attempts, the error also wraps the Bind's error where the last message to the peer was not sent.
func (d *Device) Handshake(ctx context.Context, key PublicKey) error {
	if err := d.await(ctx, key, wish{}); err != nil {
		return errorf("handshake with %v: %w", key, err)
	}
	return nil
}

// Renew makes a new session with a peer now, whatever the present one, and waits for it. An endpoint that got an
// initiation in the last 5 s gets the next one after that time, and a peer gets at most 4 in 5 s, wherever it moves. Renew
// fails as Handshake does.
func (d *Device) Renew(ctx context.Context, key PublicKey) error {
	if err := d.await(ctx, key, wish{renew: true}); err != nil {
		return errorf("renew the session with %v: %w", key, err)
	}
	return nil
}

// A wish is what a call of Handshake or Renew waits for.
type wish struct {
	renew    bool
	asked    bool   // for an initiation
	sessions uint32 // the peer's, at that moment
}

func (d *Device) await(ctx context.Context, key PublicKey, w wish) error {
	p := d.peers.find(key)
	if p == nil {
		return ErrNoPeer
	}
	for {
		ended := d.waiters.add(p) // before the look, which so misses nothing
		stands, err := d.look(p, &w)
		if stands || err != nil {
			d.waiters.remove(p, ended)
			return err
		}
		select {
		case err = <-ended:
			if err == ErrNoAnswer {
				return p.because(err)
			} else if err != nil {
				return err
			}
		case <-ctx.Done():
			d.waiters.remove(p, ended)
			return p.because(ctx.Err())
		}
	}
}

// look reports whether p has the session that is wished for. If not, it sees to it that an initiation is made, or says why
// none can be.
func (d *Device) look(p *peer, w *wish) (stands bool, err error) {
	var out outbox
	now := d.now()
	p.mu.Lock()
	switch {
	case d.closing.Load():
		err = errClosed
	case p.removed:
		err = ErrNoPeer
	case d.running.Load() == nil:
		err = ErrDown
	case p.current.live(now) && (!w.renew || w.asked && p.sessions != w.sessions):
		stands = true
	case d.identity.Load() == nil:
		err = ErrNoPrivateKey
	case !p.endpoint.IsValid():
		err = ErrNoEndpoint
	case !w.asked:
		w.asked, w.sessions = true, p.sessions
		p.renew(now, &out)
	case !p.initiating && !p.timers.pending(timerRetransmit): // the session that was made is not the one, and no other is under way
		p.renew(now, &out)
	}
	d.release(p, &out)
	return stands, err
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

// end lets those go who wait for p; a nil error lets them look again.
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
