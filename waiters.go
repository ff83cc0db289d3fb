package wireguard

import (
	"context"
	"slices"
)

// Handshake waits for a session with a peer on which packets can be expected to arrive: something was received on it since
// the configuration last changed the peer's endpoint, and no data has been unanswered for 10 s. If there is no such
// session, Handshake makes one, as Renew does.
//
// Handshake fails when ctx ends. It fails with ErrNoAnswer once 20 initiations went unanswered, which takes about 100 s;
// initiations from before the call count, unless the peer was heard since then. It fails with ErrNoPeer, ErrNoEndpoint,
// ErrNoPrivateKey or ErrDown, also if the reason arises while it waits. After Close the error wraps net.ErrClosed. When ctx
// ends, and with ErrNoAnswer, the error also wraps the Bind's error if the last message to the peer was not sent.
func (d *Device) Handshake(ctx context.Context, key PublicKey) error {
	if err := d.await(ctx, key, false); err != nil {
		return errorf("handshake with %v: %w", key, err)
	}
	return nil
}

// Renew makes a new session with a peer now, even if there is one, and waits for the new one. An endpoint that got an
// initiation in the last 5 s gets the next one when the 5 s are over. A peer gets at most 4 initiations in 5 s, however
// often its endpoint changes. Renew fails as Handshake does. If ctx has ended already, Renew begins to make the session
// and does not wait for it.
func (d *Device) Renew(ctx context.Context, key PublicKey) error {
	if err := d.await(ctx, key, true); err != nil {
		return errorf("renew the session with %v: %w", key, err)
	}
	return nil
}

// A wish is a call of Handshake or Renew.
type wish struct {
	renew    bool
	asked    bool       // whether it has asked for an initiation
	sessions uint32     // the peer's count of sessions when it asked
	news     chan error // nil says that the session may be there, an error that there will be none
}

func (d *Device) await(ctx context.Context, key PublicKey, renew bool) (err error) {
	p := d.peers.find(key)
	if p == nil {
		return ErrNoPeer
	}
	w := wish{renew: renew, news: make(chan error, 1)}
	for waits := true; waits && err == nil; {
		if waits, err = d.look(p, &w); waits {
			if ctx.Err() == nil { // if both are ready, a select might take the news
				select {
				case err = <-w.news:
					continue
				case <-ctx.Done():
				}
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.waits = slices.DeleteFunc(p.waits, func(c chan error) bool { return c == w.news })
			return p.because(ctx.Err())
		}
	}
	return err
}

// look reports whether w still has to wait for the session with p. If so, it makes sure that an initiation is made. The error
// says why no session can be made.
func (d *Device) look(p *peer, w *wish) (waits bool, err error) {
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
	case d.identity.Load() == nil:
		err = ErrNoPrivateKey
	case !p.endpoint.IsValid():
		err = ErrNoEndpoint
	default:
		if !w.asked {
			w.asked, w.sessions = true, p.sessions
			p.renew(now, &out)
		} else if !p.initiating && !p.timers.pending(timerRetransmit) {
			p.renew(now, &out) // the session that was made is not the wanted one, and no initiation is under way
		}
		waits = true
		p.waits = append(p.waits, w.news)
	}
	d.release(p, &out)
	return waits, err
}

// endWaits tells err to the calls that wait for p. p.mu is held.
func (p *peer) endWaits(err error) {
	for _, c := range p.waits {
		c <- err
	}
	p.waits = nil
}
