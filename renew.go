package wireguard

// A session whose keys are still valid may be dead: the peer may have restarted, or the configuration may have changed the peer's
// endpoint. The functions of this file recognise a dead session and replace it.

// maxRecent limits how many initiations are sent to a peer within 5 s.
const maxRecent = 4

// A sentInitiation says when an initiation was sent, and where to.
type sentInitiation struct {
	to     Endpoint
	at     int64
	before *sentInitiation // the initiation before this one; nil if there was none in the 5 s before mayRenew was last called
}

// live reports whether packets that are sent on k can be expected to arrive: k can still send, something was received on it since
// the configuration last changed the endpoint, and no data on it has been unanswered for 10 s.
func (k *keypair) live(now int64) bool {
	return k.sendable(now, 1) && !k.moved && (k.asked == 0 || now-k.asked < keepaliveTimeout)
}

// heardOn is called when something authentic was received on k.
func (p *peerState) heardOn(k *keypair, now int64, out *outbox) {
	out.revived = out.revived || k == p.current && !k.live(now)
	k.asked, k.moved = 0, false
}

// renew asks for an initiation even if there is a session. The initiation is sent now if, in the last 5 s, none was sent to the
// present endpoint and fewer than 4 were sent to the peer at any endpoint. Otherwise putOff postpones it.
func (p *peerState) renew(now int64, out *outbox) {
	p.timers.attempts = 0
	switch {
	case !p.endpoint.IsValid():
	case p.making: // the initiation under way will go to the present endpoint; the peer would refuse another one within 20 ms
	case !p.mayRenew(now):
		p.putOff(now)
	default:
		p.renewing = true
		if !p.initiating {
			p.initiating, out.initiate = true, true
		}
	}
}

// mayRenew forgets initiations that are older than 5 s, and reports whether the others permit one more now.
func (p *peerState) mayRenew(now int64) bool {
	n, here := 0, false
	for at := &p.recent; *at != nil; at = &(*at).before {
		if now-(*at).at >= rekeyTimeout {
			*at = nil // so are those before it
			break
		}
		n, here = n+1, here || (*at).to.SamePlace(p.endpoint)
	}
	return n < maxRecent && !here
}

// setEndpoint sets the endpoint to e, which comes from the configuration. If e is another place than the old endpoint (see
// SamePlace), each session stops being live until something is received on it.
func (p *peerState) setEndpoint(e Endpoint) {
	if !e.SamePlace(p.endpoint) {
		for _, k := range [...]*keypair{p.current, p.previous, p.next} {
			if k != nil {
				k.moved = true
			}
		}
		p.unopened = false
	}
	p.endpoint = e
}

// answerUnopened is called when a response or a cookie reply to this device's last message was not authentic.
func (p *peerState) answerUnopened() {
	if p.handshake != nil && p.handshake.initiator {
		p.unopened = true
	}
}
