package wireguard

import (
	"encoding/binary"

	"github.com/seed-86b749af/wireguard/internal/ratelimit"
)

// The workers of the slow path run the steps of a handshake. Each step copies its inputs from the peer while it holds the peer's
// mutex, and computes without the mutex. It then locks the mutex again, checks that the inputs have not changed, stores the
// results in the peer, and sends the message.

// sendInitiation makes an initiation to p and sends it.
func (d *Device) sendInitiation(p *peer) {
	wall := TimestampOf(d.clock.Wall())
	if !wall.After(d.sentTimestamp) {
		wall = d.sentTimestamp.next()
	}
	var out outbox

	p.mu.Lock()
	// If the device has no private key (id is nil) or is down (r is nil), p.initiating becomes false before p.mu is unlocked. A
	// goroutine that sets the first private key, or takes the device up, locks p.mu afterwards. If packets are staged for p, that
	// goroutine asks for an initiation. Its request has an effect only while p.initiating is false.
	id, r, now := d.identity.Load(), d.running.Load(), d.now()
	if id == nil || r == nil {
		p.initiating = false
		p.mu.Unlock()
		return
	}
	ts, ok := p.beginInitiation(now, wall)
	d.release(p, &out)
	if !ok {
		return
	}

	static, err := d.staticSecret(p, id)
	var ephemeral PrivateKey
	d.random(ephemeral[:])
	local, full := d.sessions.reserve(p, d.random)
	if err == nil {
		err = full
	}
	var h *handshake // nil once the peer owns the handshake, so that the deferred function does not wipe it
	var m [initiationSize]byte
	defer func() {
		clear(static[:])
		clear(ephemeral[:])
		h.wipe()
	}()
	if err == nil {
		h, m, err = createInitiation(id, &p.key, &static, ephemeral.clamped(), ts, local)
	}

	out, now = outbox{}, d.now()
	p.mu.Lock()
	p.making = false
	if p.removed || d.identity.Load() != id || d.running.Load() != r || !p.endpoint.IsValid() {
		out.free(local)
		p.initiate(now, true, &out) // decides again whether to send an initiation, because the peer or the device has changed
		d.release(p, &out)
		return
	}
	if err != nil {
		// No message can be made, because the peer's public key is of low order, or no index is free. The attempt counts as one
		// that gets no answer, so the next attempt follows as usual.
		out.free(local)
		p.initiated(now)
		d.drop(p, reasonOf(err), 1)
		d.release(p, &out)
		return
	}
	p.commitInitiation(h, m[:], now, &out)
	h = nil
	to, psk := p.endpoint, p.psk
	d.release(p, &out)
	d.logKeys(id, p, ephemeral, &psk)
	clear(psk[:])
	d.sendHandshake(r, p, m[:], to)
}

// staticSecret returns the shared secret of the static keys of the device and of p. The secret does not depend on any message. So
// p keeps the secret even if the message that needed it turns out to be forged. Otherwise each initiation that is forged in the
// name of p would cost two X25519 computations instead of one.
func (d *Device) staticSecret(p *peer, id *identity) (s secret, err error) {
	p.mu.Lock()
	s, of := p.static, p.staticOf
	p.mu.Unlock()
	if of == id {
		return s, nil
	}
	if s, err = id.private.shared(&p.key); err != nil {
		return s, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.removed && d.identity.Load() == id {
		p.static, p.staticOf = s, id
	}
	return s, nil
}

// sendHandshake sends a handshake message to p.
func (d *Device) sendHandshake(r *running, p *peer, m []byte, to Endpoint) {
	t := d.transmitAlone(r, m, to)
	d.sendTrouble(p, &to, t.Err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteSend(&to, t.Err)
	if t.Err == nil {
		p.sent.Bytes += uint64(len(m))
	}
	if to.Source.IsValid() && !t.Endpoint.Source.IsValid() && p.endpoint == to {
		p.endpoint.forgetSource()
	}
}

// transmitAlone sends one handshake message, and returns the train that carried it. The Err of the train is nil if the message
// was sent.
func (d *Device) transmitAlone(r *running, m []byte, to Endpoint) Train {
	b := make([]byte, d.headroom+len(m))
	copy(b[d.headroom:], m)
	ts := [1]Train{{Data: b, Size: len(b), Headroom: d.headroom, Endpoint: to, TOS: handshakeTOS}}
	d.transmit(r, ts[:])
	return ts[0]
}

// handshakeTOS is the type of service of handshake messages, DSCP AF41 without ECN: "handshake packets use 0x88" (Linux,
// messages.h).
const handshakeTOS = 0x88

// receiveHandshake handles a handshake message that a worker took from a queue of the slow path. It reports whether checkMACs has
// accepted an initiation or a response, so that an X25519 may have been computed for it. Afterwards the caller sends the cookie
// replies in w.replies.
func (d *Device) receiveHandshake(m *handshakeMessage, now int64, loaded bool, w *worker) (costly bool) {
	id, r := d.identity.Load(), d.running.Load()
	if p := m.to; p != nil {
		p.mu.Lock()
		p.answers--
		p.mu.Unlock()
	}
	switch {
	case r == nil:
		d.drops.add(DropDown, 1)
	case m.b[0] == typeInitiation && now-m.at >= rekeyTimeout:
		d.drops.add(DropSuperseded, 1) // the sender has sent a newer initiation by now, and would refuse a response to this one
	case id == nil:
		d.drops.add(DropNoIdentity, 1)
	case m.b[0] == typeCookie:
		d.receiveCookie(m, now)
	case !d.checkMACs(m, id, r, now, loaded, w):
	case m.b[0] == typeInitiation:
		d.receiveInitiation(m, id, r)
		return true
	case m.b[0] == typeResponse:
		d.receiveResponse(m, id, r)
		return true
	}
	return false
}

// checkMACs reports whether m may cost an X25519. Its mac1 must be valid. Under load, its mac2 must be valid too, and its source
// must not send too many messages (whitepaper, section 5.3). The parameter loaded says whether the device is under load. If it is, and mac2 is not valid,
// checkMACs adds a cookie reply to w.replies. checkMACs does not hold cookieMu while it computes a MAC, seals a cookie, or calls
// the program's code.
func (d *Device) checkMACs(m *handshakeMessage, id *identity, r *running, now int64, loaded bool, w *worker) bool {
	c := &w.checker
	if !c.validMAC1(m.bytes(), id) {
		d.drops.add(DropBadMAC, 1)
		return false
	}
	if !loaded {
		return true
	}
	c.secret = d.secretAt(now)

	source := m.from.appendSource(c.source[:0])
	if !c.validMAC2(m.bytes(), source, now, d.random) {
		reply := c.reply(m.bytes(), source, id, now, d.random)
		d.addReply(&w.replies, r, &reply, m.from)
		return false
	}
	from := sourceOf(&m.from)
	d.cookieMu.Lock()
	allowed := d.sourceLimit.Allow(from, now)
	d.scheduleSweep(now)
	d.cookieMu.Unlock()
	if !allowed {
		d.drops.add(DropRateLimited, 1)
	}
	return allowed
}

// sourceOf returns the source of a message from e, for the rate limit: the key of the Link or, without a Link, the IPv4 address or
// the /64 network of the IPv6 address.
func sourceOf(e *Endpoint) ratelimit.Source {
	if e.Link != nil {
		return ratelimit.SourceOfKey(e.Link.Key())
	}
	return ratelimit.SourceOf(e.Addr.Addr())
}

// cookieReplies are cookie replies that are sent with one call of Socket.Send. Under a flood, a system call for each reply would
// cost more than all other work for that reply. A cookieReplies belongs to one goroutine. The zero value is empty.
type cookieReplies struct {
	r      *running // the replies are sent on the socket of r
	trains []Train
	room   []byte // memory for takeAtOnce replies, each behind its headroom; nil until the first reply
}

// addReply adds a reply to c. If c is full, or holds replies for another socket, addReply first sends the replies in c.
func (d *Device) addReply(c *cookieReplies, r *running, reply *[cookieSize]byte, to Endpoint) {
	if len(c.trains) == takeAtOnce || c.r != r {
		d.sendReplies(c)
	}
	size := d.headroom + cookieSize
	if c.r = r; c.room == nil {
		c.room = make([]byte, takeAtOnce*size)
	}
	b := c.room[len(c.trains)*size:][:size:size]
	clear(b[:d.headroom])
	copy(b[d.headroom:], reply[:])
	c.trains = append(c.trains, Train{Data: b, Size: size, Headroom: d.headroom, Endpoint: to, TOS: handshakeTOS})
}

// sendReplies sends the replies in c, and empties c. A reply that cannot be sent is lost, as if the network had dropped it: the
// initiator of the handshake tries again.
func (d *Device) sendReplies(c *cookieReplies) {
	if len(c.trains) == 0 {
		return
	}
	d.drops.add(DropCookieRequired, len(c.trains))
	d.transmit(c.r, c.trains)
	clear(c.trains)
	c.trains = c.trains[:0]
}

// secretAt returns the secret from which this device makes its cookies at the time now. It takes a lock only if a new secret is
// needed.
func (d *Device) secretAt(now int64) cookieSecret {
	if s := d.cookieSecret.Load(); s != nil && !s.expired(now) {
		return *s
	}
	d.cookieMu.Lock()
	defer d.cookieMu.Unlock()
	var s cookieSecret
	if old := d.cookieSecret.Load(); old != nil {
		s = *old // another worker may have renewed the secret meanwhile
	}
	s.renew(now, d.random)
	d.cookieSecret.Store(&s)
	return s
}

// receiverOf returns the receiver index of a response or a cookie reply.
func receiverOf(m []byte) uint32 {
	if m[0] == typeResponse {
		m = m[responseReceiver-cookieReceiver:]
	}
	return binary.LittleEndian.Uint32(m[cookieReceiver:])
}

// receiveCookie handles a cookie reply. It stores the cookie if the reply is authentic, and drops the reply if not.
func (d *Device) receiveCookie(m *handshakeMessage, now int64) {
	p := m.to
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.cookie.wantsReply()
	if !p.cookie.consume(m.bytes(), p.key, now) {
		d.drop(p, DropBadCookie, 1)
		if asked {
			p.answerUnopened()
		}
	}
}

// An initiation is what was read from a received initiation message. Once openInitiation has returned it without an error, the
// message is authentic: its sender has the private key that belongs to the public key in the field key.
type initiation struct {
	*handshake // nil once the peer owns the handshake, so that wipe does not clear it
	key        PublicKey
	static     secret // the shared secret of the two static keys
	timestamp  Timestamp
	from       Endpoint
	r          *running // the device's running state when the message was read
}

// wipe clears the secrets of the initiation.
func (in *initiation) wipe() {
	in.handshake.wipe()
	clear(in.static[:])
}

// receiveInitiation handles an initiation whose MACs are valid, and answers it.
func (d *Device) receiveInitiation(m *handshakeMessage, id *identity, r *running) {
	in, p, err := d.openInitiation(m, id, r)
	switch {
	case err != nil:
		in.wipe()
		d.drops.add(reasonOf(err), 1)
	case p == nil:
		d.lookUp(in)
	default:
		d.acceptInitiation(p, in)
	}
}

// openInitiation reads an initiation, and finds the peer that sent it. If the sender is not a peer of the device, but Config.Lookup
// may know the sender, openInitiation returns a nil p without an error.
func (d *Device) openInitiation(m *handshakeMessage, id *identity, r *running) (in *initiation, p *peer, err error) {
	in = &initiation{from: m.from, r: r}
	if in.handshake, in.key, err = consumeInitiation(id, m.bytes()); err != nil {
		return in, nil, err
	}
	p = d.peers.Find(in.key)
	switch {
	case p != nil:
		in.static, err = d.staticSecret(p, id)
	case d.lookup == nil || in.key == id.public:
		err = refusal(DropUnknownPeer)
	case !d.lookups.Takes(in.key):
		err = refusal(DropLookupFull)
	default:
		in.static, err = id.private.shared(&in.key)
	}
	if err == nil {
		in.timestamp, err = in.openTimestamp(m.bytes(), &in.static)
	}
	return in, p, err
}

// acceptInitiation begins a new exchange with p, the sender of the initiation *in, and answers the initiation. Any earlier exchange
// with p ends. The caller must not use *in afterwards.
func (d *Device) acceptInitiation(p *peer, in *initiation) {
	h, r, id := in.handshake, in.r, in.id
	var psk PresharedKey
	defer func() {
		in.wipe()
		clear(psk[:])
	}()
	var out outbox
	now := d.now()
	p.mu.Lock()
	if p.removed || d.identity.Load() != id || d.running.Load() != r {
		d.drop(p, DropSuperseded, 1)
		d.release(p, &out)
		return
	}
	p.static, p.staticOf = in.static, id
	reason, ok := p.acceptInitiation(h, in.timestamp, in.from, now, &out)
	if !ok {
		d.drop(p, reason, 1)
		d.release(p, &out)
		return
	}
	in.handshake = nil
	p.received.Bytes += initiationSize
	step := *h
	psk = p.psk
	d.release(p, &out)
	d.sendResponse(p, h, &step, &psk, r)
}

// sendResponse answers the initiation from which h was made. It computes on step, a copy of *h, because p.mu guards *h and is not
// held during the computation.
func (d *Device) sendResponse(p *peer, h, step *handshake, psk *PresharedKey, r *running) {
	var ephemeral PrivateKey
	d.random(ephemeral[:])
	local, err := d.sessions.reserve(p, d.random)
	var m [responseSize]byte
	var keys sessionKeys
	if err == nil {
		m, keys, err = step.createResponse(&p.key, psk, ephemeral.clamped(), local)
	}
	defer func() {
		step.wipe()
		clear(ephemeral[:])
		keys = sessionKeys{}
	}()

	var out outbox
	now := d.now()
	p.mu.Lock()
	if p.removed || p.handshake != h || p.psk != *psk || d.running.Load() != r {
		err = refusal(DropSuperseded)
	}
	if err != nil {
		out.free(local)
		if p.handshake == h {
			p.endHandshake(&out)
		}
		d.drop(p, reasonOf(err), 1)
		d.release(p, &out)
		return
	}
	k := newKeypair(&keys.send, &keys.receive, local, step.remote, false, now)
	id := h.id // commitResponse wipes h
	k.id = id
	d.sessions.set(local, p, k)
	p.commitResponse(k, m[:], now, &out)
	to := p.endpoint
	d.release(p, &out)
	d.logKeys(id, p, ephemeral, psk)
	d.sendHandshake(r, p, m[:], to)
}

// receiveResponse handles a response whose MACs are valid.
func (d *Device) receiveResponse(m *handshakeMessage, id *identity, r *running) {
	p, local := m.to, receiverOf(m.bytes())
	p.mu.Lock()
	h := p.handshake
	if h == nil || !h.initiator || h.local != local || h.id != id {
		d.drop(p, DropSuperseded, 1)
		p.mu.Unlock()
		return
	}
	step, psk := *h, p.psk
	p.mu.Unlock()

	keys, remote, err := step.consumeResponse(m.bytes(), &psk)
	defer func() {
		step.wipe()
		clear(psk[:])
		keys = sessionKeys{}
	}()

	var out outbox
	now := d.now()
	p.mu.Lock()
	// The state is checked again: the response must still answer the exchange under way.
	if p.removed || p.handshake != h || p.psk != psk || d.identity.Load() != id || d.running.Load() != r {
		err = refusal(DropSuperseded)
	}
	if err != nil {
		if reasonOf(err) == DropForged {
			p.answerUnopened()
		}
		d.drop(p, reasonOf(err), 1)
		d.release(p, &out)
		return
	}
	k := newKeypair(&keys.send, &keys.receive, local, remote, true, now)
	k.id = id
	d.sessions.set(local, p, k)
	p.received.Bytes += uint64(m.size)
	p.commitSession(k, m.from, now, &out)
	d.release(p, &out)
}
