package wireguard

import "context"

// Handshake waits until there is a live session with a peer. A session is live if packets can be sent on it, if something was
// received on it since the configuration last changed the peer's endpoint, and if no data that was sent on it has been unanswered
// for 10 s. If there is no live session, Handshake makes one, as Renew does.
//
// Handshake fails when ctx ends. It fails with ErrNoAnswer once 20 initiations in a row went unanswered, which takes about 100 s.
// Initiations from before the call count, if nothing was received from the peer since then. It fails with ErrNoPeer,
// ErrNoEndpoint, ErrNoPrivateKey or ErrDown, also if the reason arises while it waits. After Close, the error wraps
// net.ErrClosed. If the last message to the peer could not be sent, an error that wraps ErrNoAnswer or the error of ctx also
// wraps the Bind's error.
func (d *Device) Handshake(ctx context.Context, key PublicKey) error {
	if err := d.await(ctx, key, false); err != nil {
		return errorf("handshake with %v: %w", key, err)
	}
	return nil
}

// Renew makes a new session with a peer, even if there is a session already, and waits for the new one. If the device has sent an
// initiation to the peer's endpoint in the last 5 s, it sends the next one when the 5 s are over. A peer gets at most 4
// initiations in 5 s, however often its endpoint changes. Renew fails for the same reasons as Handshake. If ctx has ended
// already, Renew begins to make the session, and does not wait for it.
func (d *Device) Renew(ctx context.Context, key PublicKey) error {
	if err := d.await(ctx, key, true); err != nil {
		return errorf("renew the session with %v: %w", key, err)
	}
	return nil
}

// A wish is a call of Handshake or Renew.
type wish struct {
	renew    bool
	asked    bool       // whether the call has asked for an initiation
	sessions uint32     // the peer's count of confirmed sessions when the call asked for an initiation
	news     chan error // receives nil if there may be a session now, or an error that says why there will be none
	next     *wish      // the next wish in the list of the peer
}

func (d *Device) await(ctx context.Context, key PublicKey, renew bool) (err error) {
	p := d.peers.Find(key)
	if p == nil {
		return ErrNoPeer
	}
	w := wish{renew: renew, news: make(chan error, 1)}
	for waits := true; waits && err == nil; {
		if waits, err = d.look(p, &w); waits {
			if ctx.Err() == nil { // if both channels were ready, the select might choose w.news
				select {
				case err = <-w.news:
					continue
				case <-ctx.Done():
				}
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			for at := &p.waits; *at != nil; at = &(*at).next {
				if *at == &w {
					*at = w.next
					break
				}
			}
			return p.because(ctx.Err())
		}
	}
	return err
}

// look reports whether w still has to wait for the session with p. If it has to, look makes sure that an initiation is sent. The
// error says why there can be no session.
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
		w.next, p.waits = p.waits, w
	}
	d.release(p, &out)
	return waits, err
}

// endWaits sends err to the calls of Handshake and Renew that wait for a session with p. If err is nil, each of them calls look
// again, to check for a session. The caller holds p.mu.
func (p *peer) endWaits(err error) {
	for w := p.waits; w != nil; w = w.next {
		w.news <- err // has room: a wish takes the value before it joins the list again
	}
	p.waits = nil
}
