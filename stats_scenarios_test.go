package wireguard_test

import (
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// In a PeerStatus, NextReason says what the device will do next for the peer, and NextDeadline says when.
func TestStatusOfDeadlines(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		want := func(n, o *node, in time.Duration, reason string) {
			w.Helper()
			w.settle()
			if s := n.status(o); s.NextReason != reason || s.NextDeadline < in || s.NextDeadline > in+2*jitter {
				w.Fatalf("%s: the next deadline is %q in %v, want %q in %v", n.name, s.NextReason, s.NextDeadline, reason, in)
			}
		}
		want(a, b, 0, "")
		w.net.Cut(nil, nil)
		a.send(b, "x")
		want(a, b, 5*time.Second, "retransmit the initiation")
		if s := a.status(b); !s.Initiating || s.Attempts != 1 || s.Staged != 1 || s.Session {
			w.Fatalf("the status is %+v, want one attempt, one staged packet and no session", s)
		}
		w.net.Mend(nil, nil)
		w.advance(5*time.Second + jitter)
		want(b, a, 10*time.Second-jitter, "send a keepalive")
		want(a, b, 11*time.Second-jitter, "publish that data went unanswered")
		w.advance(10 * time.Second)
		at := 180*time.Second - a.status(b).SessionAge
		want(a, b, at, "the session expires")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		want(a, b, 25*time.Second, "send a persistent keepalive")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Duration(0))})
		w.advance(at)
		want(a, b, 360*time.Second, "wipe the session")
		if s := a.status(b); s.Session || s.SessionAge != 0 || s.Initiating {
			w.Fatalf("the status is %+v, want no session and no handshake", s)
		}
	})
}

// LastHandshake is the time that the wall clock showed when the handshake happened. It does not change if the clock is set later.
// So a program can compare two values to see whether there was a new handshake.
func TestLastHandshakeIsFixed(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.advance(1500 * time.Millisecond)
		a.send(b, "one")
		w.settle()
		at := a.clock.Wall()
		for _, then := range []struct {
			why string
			do  func()
		}{
			{"at once", func() {}},
			{"later", func() { w.advance(10 * time.Second) }},
			{"when the clock was set", func() { a.clock.stepWall(-time.Hour); b.clock.stepWall(time.Hour) }},
			{"down", func() { a.Down() }},
		} {
			then.do()
			for _, s := range []wireguard.PeerStatus{a.status(b), b.status(a)} {
				if !s.LastHandshake.Equal(at) {
					t.Errorf("%s: the last handshake was at %v, want %v", then.why, s.LastHandshake, at)
				}
			}
		}
	})
}
