package wireguard

import (
	"github.com/seed-86b749af/wireguard/internal/boottime"
	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/ratelimit"
)

// If the deadline of a peer moves later, the queue keeps the earlier time. When that time comes, the peer checks its deadlines
// again. The nil peer stands for the sweep of the rate limits.

// schedule makes keepTime look at p when p's next deadline comes. p.mu is held.
func (d *Device) schedule(p *peer) {
	_, at := p.timers.next()
	if at == 0 || p.queued != 0 && p.queued <= at {
		return
	}
	p.queued = at
	d.deadlines.Put(p, &p.deadline, at, d.now)
}

// forgetDeadline removes p from the deadlines. p.mu is held.
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

// expireSome handles deadlines that are due, and sends all keepalives of these together. It stops when a batch of
// keepalives is full, and reports whether more may be due.
func (d *Device) expireSome() (more bool) {
	var lot [layout.MaxPackets]dueFlush
	keepalives := lot[:0]
	for more = true; more && len(keepalives) < layout.MaxPackets; {
		now := d.now() // read each time, since expire may take a while
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
	defer d.cookieMu.Unlock()
	if d.sourceLimit.Sweep(now); d.sourceLimit.Len() > 0 {
		d.scheduleSweep(now)
	}
}

// scheduleSweep schedules a sweep of the rate limits, unless one is scheduled already. cookieMu is held.
func (d *Device) scheduleSweep(now int64) { d.deadlines.Put(nil, &d.sweep, now+ratelimit.Idle, d.now) }
