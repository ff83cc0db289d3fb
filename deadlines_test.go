package wireguard

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-86b749af/wireguard/internal/ratelimit"
)

// A setAlarm is an alarm that never rings. It records the time for which it is set.
type setAlarm struct {
	d  *Device
	at int64 // the time for which it is set, or 0
}

func (a *setAlarm) Set(in time.Duration) { a.at = a.d.now() + int64(in) }
func (a *setAlarm) Wait() bool           { return false }
func (a *setAlarm) Close()               {}

// TestDeadlinesModel moves the deadlines of some peers, as their timers do, and lets time pass. It checks that each peer is
// handled when its deadline is due and not earlier, and that the alarm is never set to a later time than the first deadline.
func TestDeadlinesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clock := new(handClock)
		d := &Device{clock: clock}
		a := &setAlarm{d: d}
		d.deadlines.Use(a)
		a.at = 0
		ps := make([]*peer, 8)
		for i := range ps {
			ps[i] = new(peer)
		}
		check := func(where string) {
			earliest := int64(0)
			for i, p := range ps {
				_, at := p.timers.next()
				if at == 0 {
					continue
				}
				if p.queued == 0 || p.queued > at || p.deadline == 0 {
					t.Fatalf("%s: peer %d has a deadline at %d, but is queued for %d", where, i, at, p.queued)
				}
				if earliest == 0 || at < earliest {
					earliest = at
				}
			}
			if earliest != 0 && (a.at == 0 || a.at > max(earliest, d.now())) {
				t.Fatalf("%s: the alarm is set to %d, but the earliest deadline is %d", where, a.at, earliest)
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			p := rapid.SampledFrom(ps).Draw(t, "peer")
			which := timer(rapid.IntRange(0, int(timerCount)-1).Draw(t, "timer"))
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				p.timers.cancel(which)
				d.schedule(p)
			case 1:
				p.timers = timers{}
				d.forgetDeadline(p)
				if p.deadline != 0 || p.queued != 0 {
					t.Fatal("after forgetDeadline, the peer still has a deadline")
				}
			case 2:
				clock.at.Add(rapid.Int64Range(0, 200).Draw(t, "time"))
				now := d.now()
				a.at = 0 // as if the alarm had rung
				for {
					p, ok := d.deadlines.Due(now)
					if !ok {
						break
					}
					if p.queued > now {
						t.Fatalf("Due returned a peer at %d, before its deadline %d", now, p.queued)
					}
					p.queued = 0
					for i := range timerCount {
						if p.timers.due(i, now) {
							p.timers.cancel(i)
						}
					}
					d.schedule(p)
				}
				for i, p := range ps {
					if _, at := p.timers.next(); at != 0 && at <= now {
						t.Fatalf("Due did not return peer %d, which was due %d ns ago", i, now-at)
					}
				}
			default:
				p.timers.set(which, d.now()+rapid.Int64Range(1, 1000).Draw(t, "in"))
				d.schedule(p)
			}
			check("after a step")
		}
		for _, p := range ps {
			d.forgetDeadline(p)
		}
		if p, ok := d.deadlines.Due(1 << 62); ok {
			t.Fatalf("no peer has a deadline, but Due returned the peer %p", p)
		}
	})
}

// TestDeadlineMovesLater checks that a deadline that moves later changes neither the alarm nor the peer's position in the heap. A
// deadline that moves earlier changes both.
func TestDeadlineMovesLater(t *testing.T) {
	d := &Device{clock: new(handClock)}
	a := &setAlarm{d: d}
	d.deadlines.Use(a)
	a.at = 0
	p := new(peer)
	p.timers.set(timerKeepalive, d.now()+100)
	d.schedule(p)
	if a.at != d.now()+100 {
		t.Fatal("the alarm is not set")
	}
	p.timers.set(timerKeepalive, d.now()+200)
	if d.schedule(p); a.at != d.now()+100 {
		t.Error("a deadline that moves later moves the alarm")
	}
	if got, ok := d.deadlines.Due(d.now() + 100); !ok || got != p {
		t.Error("a deadline that moves later changes the peer's position in the heap")
	}
	p.queued = 0
	d.schedule(p)
	p.timers.set(timerKeepalive, d.now()+50)
	if d.schedule(p); a.at != d.now()+50 {
		t.Error("a deadline that moves earlier does not move the alarm")
	}
	if got, ok := d.deadlines.Due(d.now() + 50); !ok || got != p {
		t.Error("a deadline that moves earlier does not change the peer's position in the heap")
	}
}

func TestDeadlinesSweep(t *testing.T) {
	clock := new(handClock)
	d := &Device{clock: clock}
	a := &setAlarm{d: d}
	d.deadlines.Use(a)
	a.at = 0
	due := func(in int64) bool {
		p, ok := d.deadlines.Due(d.now() + in)
		return ok && p == nil
	}
	d.sourceLimit.Allow(sourceNumber(1), d.now())
	d.scheduleSweep(d.now())
	if a.at != d.now()+ratelimit.Idle {
		t.Fatal("the alarm is not set to the time of the sweep")
	}
	clock.at.Add(500)
	d.scheduleSweep(d.now())
	if due(ratelimit.Idle - 501) {
		t.Error("a sweep is due too early")
	}
	if !due(ratelimit.Idle - 500) {
		t.Error("no sweep is due, or scheduleSweep moved a sweep that was already scheduled")
	}
	if due(5 * ratelimit.Idle) {
		t.Error("a second sweep is due")
	}
	d.sweepLimits(d.now())
	if !due(ratelimit.Idle) {
		t.Error("sources are left, but no further sweep is scheduled")
	}
	clock.at.Add(ratelimit.Idle)
	d.sweepLimits(d.now())
	if d.sourceLimit.Len() != 0 || d.sweep != 0 {
		t.Error("sources are left, or a further sweep is scheduled although no source is left")
	}
}

// A tickingClock advances by one second each time it is read.
type tickingClock struct{ handClock }

func (c *tickingClock) Now() time.Duration { return time.Duration(c.at.Add(int64(time.Second))) }

// A ringing is an alarm that rings once.
type ringing struct{ rang bool }

func (a *ringing) Set(time.Duration) {}
func (a *ringing) Close()            {}
func (a *ringing) Wait() bool        { a.rang = !a.rang; return a.rang }

// TestDeadlinesGoByTheTimeOfEach checks that if several deadlines are due together, the device reads the clock again for each of
// them. It must not use the time at which the alarm rang, because handling the earlier deadlines may have taken some time.
func TestDeadlinesGoByTheTimeOfEach(t *testing.T) {
	d, err := New(Config{Tunnel: newDrain(), Bind: newLine(), Clock: new(tickingClock), Peers: []PeerConfig{
		{PublicKey: PublicKey{1}}, {PublicKey: PublicKey{2}}, {PublicKey: PublicKey{3}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for p := range d.allPeers() {
		p.mu.Lock()
		p.timers.attempts = maxAttempts
		p.timers.set(timerRetransmit, 1) // the last try went unanswered
		d.schedule(p)
		p.mu.Unlock()
	}
	d.keepTime(new(ringing))
	wipes := make(map[int64]bool) // the times when sessions are to be wiped: 540 s after the device gave up the peer's handshake
	for p := range d.allPeers() {
		wipes[p.timers.at[timerWipe]] = true
	}
	if len(wipes) != 3 || wipes[0] {
		t.Errorf("the wipes of three peers are due at %v, want three different times", wipes)
	}
}
