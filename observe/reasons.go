package observe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// explain explains p, and updates m, the memory of p.
func (x *Explainer) explain(s wireguard.Status, p *wireguard.PeerStatus, m *memory, now time.Time) (e Explanation) {
	add := func(c Cause, format string, args ...any) {
		e.Reasons = append(e.Reasons, Reason{c, fmt.Sprintf(format, args...)})
	}
	switch {
	case !s.Up:
		*m = memory{}
		add(DeviceDown, "The device is down.")
		return e
	case s.PublicKey.IsZero():
		*m = memory{}
		add(NoPrivateKey, "The device has no private key.")
		return e
	}
	m.note(p, now)
	owed := p.Attempts > 1 || p.Attempts == 1 && now.Sub(m.asking) >= patience || m.gaveUp > 0
	switch {
	case p.Session:
		e.State = Connected
		if owed {
			e.State = Impaired
			add(NothingReceived, "Nothing received since %s: %s went unanswered.", clock(p.LastReceived, now), count(max(p.Attempts, m.gaveUp), "initiation"))
		}
	case m.unopened:
		e.State = Unreachable
		add(WrongKey, "Answers arrive that do not open. Check the preshared key and the public keys of both ends.")
	case owed:
		e.State = Unreachable
		add(NoAnswer, "%s", m.noAnswer(p, now))
	case p.Attempts > 0 || p.Initiating:
		e.State = Connecting
	case m.initiations > 0:
		e.State = Connecting
	default:
		e.State = Idle
	}
	if !p.Session && !p.Endpoint.IsValid() {
		add(NoEndpoint, "It is not known where the peer is. Set an endpoint, or wait until the peer is heard.")
	}
	if !p.Session && m.initiations > 1 {
		e.State = Unreachable
		add(NotConfirmed, "%s of the peer arrived and got answers, but no session followed. Check the preshared key, and whether answers reach the peer.", count(m.initiations, "initiation"))
	}
	if p.Unsent {
		e.State = max(e.State, Impaired)
		add(NotSent, "The newest message to %s could not be sent. Check the network of this machine.", p.Endpoint)
	}
	if p.CookieAsked {
		add(CookieAsked, "The peer is under load and asked for a cookie, which the next initiation carries.")
	}
	if p.Session {
		m.traffic(&e, p, now, add)
	}
	if owed && x.Addresses != nil {
		if addrs := x.Addresses(p.PublicKey); len(addrs) > 0 && !slices.Contains(addrs, p.Endpoint.Addr) {
			add(NameMoved, "The name of the endpoint means %s now, and messages go to %s.", list(addrs), p.Endpoint)
		}
	}
	return e
}

// traffic adds the reasons that follow from the packets inside the tunnel. The peer has a session.
func (m *memory) traffic(e *Explanation, p *wireguard.PeerStatus, now time.Time, add func(Cause, string, ...any)) {
	if !m.refusedAt.IsZero() && now.Sub(m.refusedAt) < recent {
		e.State = max(e.State, Impaired)
		add(SourceNotAllowed, "%s of the peer had a source that its allowed IPs do not contain.", count(int(m.refused), "packet"))
	}
	packets, bytes := p.Sent.Packets-m.sent.Packets, p.Sent.Bytes-m.sent.Bytes
	if e.State != Connected || now.Sub(m.since) < quiet || packets < unreplied || p.Received.Bytes == m.heardThen {
		return
	}
	if m.earlyEnds > 0 && m.everReplied && bytes/packets >= large {
		e.State = Impaired
		add(PathMTU, "Handshakes arrive, but since %s none of %d packets of %d bytes on average was answered. Large packets may get lost on the path: try a smaller MTU.",
			clock(m.since, now), packets, bytes/packets)
		return
	}
	add(NoReplies, "The peer has sent no packet since %s, and got %d. If you expect replies, check that its allowed IPs contain this end's addresses.",
		clock(m.since, now), packets)
}

// noAnswer says how long the peer has been silent, and what to check.
func (m *memory) noAnswer(p *wireguard.PeerStatus, now time.Time) string {
	text := "No answer to " + count(max(p.Attempts, m.gaveUp), "initiation") + "."
	if p.LastReceived.IsZero() {
		return text + fmt.Sprintf(" The peer was never heard. Check its endpoint %s, the keys of both ends and what is between them.", p.Endpoint)
	}
	return text + fmt.Sprintf(" The peer was last heard at %s. Messages go to %s.", clock(p.LastReceived, now), p.Endpoint)
}

// clock returns t as a time of day. If t is 20 hours old or more, clock adds the date.
func clock(t, now time.Time) string {
	t = t.In(now.Location())
	switch {
	case t.IsZero():
		return "the beginning"
	case now.Sub(t) >= 20*time.Hour:
		return t.Format("2006-01-02 15:04")
	}
	return t.Format("15:04:05")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// list returns at most three addresses as text.
func list(addrs []netip.AddrPort) string {
	var b strings.Builder
	for i, a := range addrs {
		switch {
		case i == 3:
			return b.String() + " and others"
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	return b.String()
}
