package wireguard

import (
	"github.com/seed-86b749af/wireguard/internal/boottime"
	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/ratelimit"
)

// The queue of deadlines has at most one time for each peer. If the peer's next deadline moves to a later time, the queue keeps the
// earlier time. At that time, keepTime finds that no deadline of the peer has passed, and puts the later time into the queue. The
// entry of the nil peer is the time of the next call of sweepLimits.

// schedule makes keepTime call expire for p at p's next deadline. The caller holds p.mu.
func (d *Device) schedule(p *peer) {
	_, at := p.timers.next()
	if at == 0 || p.queued != 0 && p.queued <= at {
		return
	}
	p.queued = at
	d.deadlines.Put(p, &p.deadline, at, d.now)
}

// forgetDeadline removes p from the deadlines. The caller holds p.mu.
func (d *Device) forgetDeadline(p *peer) {
	p.queued = 0
	d.deadlines.Remove(&p.deadline)
}

// keepTime handles deadlines until the alarm is closed.
func (d *Device) keepTime(a boottime.Alarm) {
	for a.Wait() {
		d.deadlines.Ringing(d.now())
		for more := true; more; {
			more = d.expireSome()
		}
	}
}

// expireSome handles deadlines that are due, and then sends all keepalives that became due with them at once. It handles no more
// deadlines when these keepalives fill a batch, and reports whether more deadlines may be due.
func (d *Device) expireSome() (more bool) {
	var lot [layout.MaxPackets]dueFlush
	keepalives := lot[:0]
	for more = true; more && len(keepalives) < layout.MaxPackets; {
		now := d.now() // read for each peer, because expire may take a while
		p, due := d.deadlines.Due(now)
		switch {
		case !due:
			more = false
		case p == nil:
			d.sweepLimits(now)
		case d.expire(p, now):
			keepalives = append(keepalives, dueFlush{p, true})
		}
	}
	d.flushAll(keepalives)
	return more
}

// expire handles the timers of p that are due. It reports whether the caller has to send a keepalive.
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
	defer d.cookieMu.Unlock()
	if d.sourceLimit.Sweep(now); d.sourceLimit.Len() > 0 {
		d.scheduleSweep(now)
	}
}

// scheduleSweep schedules a sweep of the rate limits, unless one is scheduled already. The caller holds cookieMu.
func (d *Device) scheduleSweep(now int64) { d.deadlines.Put(nil, &d.sweep, now+ratelimit.Idle, d.now) }
