package wireguard

import (
	"net/netip"
	"testing"
	"time"
)

// A core is the state of a peer without a device. It also has the test's time, and the outbox, which lists what the last step
// asks the device to do.
type core struct {
	*peerState
	t   *testing.T
	now int64
	out outbox

	index uint32 // index of the last session or handshake
	wall  time.Time
}

const coreT0 = 10000 * second

var coreEndpoint = EndpointOf(netip.MustParseAddrPort("192.0.2.1:51820"))

func newCore(t *testing.T) *core {
	c := &core{peerState: &peerState{key: PublicKey{1}, endpoint: coreEndpoint}, t: t, now: coreT0, wall: epoch}
	c.timers.seed = 77
	return c
}

// at sets the time to d after the start (coreT0).
func (c *core) at(d time.Duration) *core { c.now = coreT0 + int64(d); return c }

// after moves the time forward by d.
func (c *core) after(d int64) *core { c.now += d; return c }

// step replaces the outbox with an empty one, and returns it.
func (c *core) step() *outbox { c.out = outbox{}; return &c.out }

// initiator makes a session now, in which the core is the initiator.
func (c *core) initiator() *keypair {
	c.index++
	c.handshake = &handshake{initiator: true, local: c.index}
	k := &keypair{local: c.index, initiator: true, created: c.now}
	c.commitSession(k, c.endpoint, c.now, c.step())
	return k
}

// responded makes a session now, in which the core is the responder. The session is not confirmed.
func (c *core) responded() *keypair {
	c.index++
	c.handshake = &handshake{}
	k := &keypair{local: c.index, created: c.now}
	c.commitResponse(k, make([]byte, responseSize), c.now, c.step())
	return k
}

// responder makes a session now, in which the core is the responder, and confirms it with a keepalive from the initiator.
func (c *core) responder() *keypair {
	k := c.responded()
	c.receives(k, false)
	return k
}

// receives makes the core receive an authentic message of the keypair k. data is false for a keepalive.
func (c *core) receives(k *keypair, data bool) {
	c.peerState.receive(k, &coreEndpoint, data, c.now, c.step())
}

// sends makes the core send a message in the current session. data is false for a keepalive.
func (c *core) sends(data bool) {
	c.t.Helper()
	if !c.sending(1, c.now, c.step()) {
		c.t.Fatal("the core has no session in which it can send")
	}
	c.sentOn(data, c.heard, c.now, &c.out)
}

// initiates makes an initiation, as a worker of a device does when the outbox asks for one.
func (c *core) initiates() Timestamp {
	c.t.Helper()
	if !c.out.initiate {
		c.t.Fatal("the core did not ask for an initiation")
	}
	ts, ok := c.beginInitiation(c.now, TimestampOf(c.wall.Add(time.Duration(c.now))))
	if !ok {
		c.t.Fatal("beginInitiation refused to make the initiation")
	}
	c.index++
	c.commitInitiation(&handshake{initiator: true, local: c.index}, make([]byte, initiationSize), c.now, c.step())
	return ts
}

// accepts makes the core handle an initiation from the peer. The first byte of its timestamp is n.
func (c *core) accepts(n byte) (DropReason, bool) {
	return c.acceptInitiation(&handshake{}, Timestamp{n}, coreEndpoint, c.now, c.step())
}

// expires moves the time to the next deadline, and does what is due then. It returns the timer that was due.
func (c *core) expires() timer {
	c.t.Helper()
	which, at := c.timers.next()
	if at == 0 {
		c.t.Fatal("no timer is set")
	}
	c.now = max(c.now, at)
	c.elapse()
	return which
}

// elapse makes the core handle all timers that are due now.
func (c *core) elapse() { c.expire(c.now, c.step()) }

func (c *core) wantInitiation(want bool, why string) {
	c.t.Helper()
	if c.out.initiate != want {
		c.t.Errorf("the core asks for an initiation: %v, want %v: %s", c.out.initiate, want, why)
	}
}

func (c *core) wantKeepalive(want bool, why string) {
	c.t.Helper()
	if c.out.keepalive != want {
		c.t.Errorf("the core asks for a keepalive: %v, want %v: %s", c.out.keepalive, want, why)
	}
}

func (c *core) wantNone(i timer, why string) {
	c.t.Helper()
	if c.timers.pending(i) {
		c.t.Errorf("the timer %q is set, want it not set: %s", timerNames[i], why)
	}
}

// wantIn fails unless the timer i is set to fire between d and d+jitter nanoseconds from now.
func (c *core) wantIn(i timer, d, jitter int64, why string) {
	c.t.Helper()
	if in := c.timers.at[i] - c.now; !c.timers.pending(i) || in < d || in > d+jitter {
		c.t.Errorf("the timer %q fires in %v, want in %v (and up to %v more): %s", timerNames[i], time.Duration(in), time.Duration(d), time.Duration(jitter), why)
	}
}

func (c *core) wantEvents(why string, kinds ...EventKind) {
	c.t.Helper()
	ok := len(c.out.events) == len(kinds)
	for i := range min(len(kinds), len(c.out.events)) {
		ok = ok && c.out.events[i].kind == kinds[i]
	}
	if !ok {
		c.t.Errorf("the events are %v, want %v: %s", c.out.events, kinds, why)
	}
}

func (c *core) wantFreed(why string, indices ...uint32) {
	c.t.Helper()
	ok := len(c.out.freed) == len(indices)
	for i := range min(len(indices), len(c.out.freed)) {
		ok = ok && c.out.freed[i] == indices[i]
	}
	if !ok {
		c.t.Errorf("the freed indices are %v, want %v: %s", c.out.freed, indices, why)
	}
}
