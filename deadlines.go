package wireguard

import (
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/internal/boottime"
	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/ordered"
)

// deadlines are the peers that have a deadline, the earliest first. A peer without one is not in it, and costs nothing.
// Where a peer's deadline moves later, it stays where it is: when its time comes, the peer looks again.
type deadlines struct {
	mu    sync.Mutex // guards all below; taken after a peer's
	peers ordered.Heap[deadlineEntry]
	sweep int64          // when the rate limits are to be swept; 0: not
	rang  int64          // when the alarm last rang
	alarm boottime.Alarm // nil while the device is down
}

// alarmInterval is the least time between two rings of the alarm. A deadline that comes sooner after a ring is late by up to
// this, and those that come by then are carried out together. The protocol needs no more: the limits of a session are checked
// when it is used. At 250 Hz, Linux rounds a timer of 25 s up to a multiple of 2 s (kernel/time/timer.c).
const alarmInterval = second / 100

// A deadlineEntry is a peer with the time when the device looks at it.
type deadlineEntry struct {
	at int64
	p  *peer
}

func (e deadlineEntry) Before(o deadlineEntry) bool { return e.at < o.at }
func (e deadlineEntry) Place() *int32               { return &e.p.deadline }

// schedule sees to it that p is looked at when its next deadline comes. p.mu is held.
func (d *Device) schedule(p *peer) {
	_, at := p.timers.next()
	if at == 0 || p.queued != 0 && p.queued <= at {
		return
	}
	p.queued = at
	ds := &d.deadlines
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.peers.Put(deadlineEntry{at, p}); p.deadline == 1 {
		ds.wake(d.now())
	}
}

// forgetDeadline removes the entry of p. p.mu is held.
func (d *Device) forgetDeadline(p *peer) {
	p.queued = 0
	ds := &d.deadlines
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.peers.Remove(deadlineEntry{p: p})
}

// sweepAt schedules a sweep of the rate limits for at, unless an earlier one is due.
func (ds *deadlines) sweepAt(at, now int64) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.sweep == 0 {
		ds.sweep = at
		ds.wake(now)
	}
}

// wake sets the alarm for the earliest deadline. mu is held.
func (ds *deadlines) wake(now int64) {
	at := ds.sweep
	if len(ds.peers) > 0 && (at == 0 || ds.peers[0].at < at) {
		at = ds.peers[0].at
	}
	if at != 0 && ds.alarm != nil {
		ds.alarm.Set(time.Duration(max(at, ds.rang+alarmInterval) - now))
	}
}

// ringing notes that the alarm rings.
func (ds *deadlines) ringing(now int64) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.rang = now
}

// use sets the alarm. A nil alarm means that the device is down.
func (ds *deadlines) use(a boottime.Alarm) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.alarm = a
}

// ring makes the alarm ring now.
func (ds *deadlines) ring() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.alarm != nil {
		ds.alarm.Set(0)
	}
}

// due removes and returns a peer whose deadline is due. If there is none, it sets the alarm for the next and returns nil.
func (ds *deadlines) due(now int64) (p *peer, sweep bool) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.sweep != 0 && ds.sweep <= now {
		ds.sweep = 0
		return nil, true
	}
	if len(ds.peers) > 0 && ds.peers[0].at <= now {
		p = ds.peers[0].p
		ds.peers.Remove(ds.peers[0])
		return p, false
	}
	ds.wake(now)
	return nil, false
}

// keepTime handles deadlines until the alarm is closed.
func (d *Device) keepTime(a boottime.Alarm) {
	for a.Wait() {
		d.deadlines.ringing(d.now())
		for more := true; more; {
			more = d.expireSome()
		}
	}
}

// expireSome carries out what is due, and sends the keepalives among it together. It stops when a batch is full, and
// reports whether more may be due.
func (d *Device) expireSome() (more bool) {
	var lot [layout.MaxPackets]dueFlush
	keepalives := lot[:0]
	for more = true; more && len(keepalives) < layout.MaxPackets; {
		now := d.now() // each time: to expire may take a while
		p, sweep := d.deadlines.due(now)
		switch {
		case sweep:
			d.sweepLimits(now)
		case p == nil:
			more = false
		case d.expire(p, now):
			keepalives = append(keepalives, dueFlush{p, true})
		}
	}
	d.flushAll(keepalives)
	return more
}

// expire carries out what is due for p. It reports whether the caller is to send a keepalive.
func (d *Device) expire(p *peer, now int64) (keepalive bool) {
	var out outbox
	p.mu.Lock()
	p.queued = 0
	if !p.removed {
		p.expire(now, &out)
	}
	return d.releaseBut(p, &out)
}

func (d *Device) sweepLimits(now int64) {
	d.cookieMu.Lock()
	d.sourceLimit.sweep(now)
	left := len(d.sourceLimit.sources)
	d.cookieMu.Unlock()
	if left > 0 {
		d.deadlines.sweepAt(now+limiterIdle, now)
	}
}
