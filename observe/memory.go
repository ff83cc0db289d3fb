package observe

import (
	"time"

	"github.com/seed-86b749af/wireguard"
)

const (
	patience  = 2 * time.Second  // how long an answer may take before it counts as missing
	recent    = 30 * time.Second // how long after a refused packet an explanation mentions it
	quiet     = 15 * time.Second // how long a peer may send no packet before packets to it count as unanswered
	unreplied = 5                // how many packets to a peer must go unanswered before an explanation mentions it
	early     = 60 * time.Second // a session that is replaced sooner than this was not replaced because of its age
	large     = 1000             // if unanswered packets have at least this many bytes on average, their size is suspected
)

// A memory is what an Explainer remembers of a peer from earlier calls of Each. Such a call is a look. The zero value belongs to
// a peer that no look has found.
type memory struct {
	look uint64 // the number of the newest look that found the peer
	seen bool   // whether an earlier look found the peer

	heard    uint64    // Received.Bytes at the last look
	attempts int       // Attempts at the last look
	asking   time.Time // when the first look found the initiations that are unanswered now; zero means that there are none
	gaveUp   int       // how many initiations went unanswered before the device stopped sending them; 0 if it did not stop
	unopened bool      // whether an answer that could not be decrypted arrived since the peer was last heard

	timestamp   wireguard.Timestamp // the timestamp of the peer's newest initiation, at the last look
	handshake   time.Time           // LastHandshake at the last look
	initiations int                 // how many new initiations of the peer were seen since the last session began

	refused   uint64    // how many packets had a source outside the allowed IPs, at the last look
	refusedAt time.Time // when refused grew last; zero means never

	// The fields below describe the period since the peer's last packet. Handshakes and keepalives do not end the period.
	packets     uint64            // Received.Packets when the period began
	since       time.Time         // when the period began
	sent        wireguard.Traffic // Sent when the period began
	heardThen   uint64            // Received.Bytes when the period began
	earlyEnds   int               // how many sessions in the period were replaced less than 60 s (early) after they began
	everReplied bool              // whether packets of the peer arrived before the period
}

// note compares the status p with the last look, and stores in m what the next look needs.
func (m *memory) note(p *wireguard.PeerStatus, now time.Time) {
	news := p.Received.Bytes != m.heard || !m.seen
	m.noteAttempts(p, news, now)
	m.noteHandshakes(p)
	if n := p.Drops[wireguard.DropSourceNotAllowed]; n != m.refused {
		if m.refused = n; n != 0 {
			m.refusedAt = now
		}
	}
	if !m.seen || p.Received.Packets != m.packets || p.Sent.Packets < m.sent.Packets {
		m.packets, m.since, m.sent, m.heardThen, m.earlyEnds = p.Received.Packets, now, p.Sent, p.Received.Bytes, 0
		m.everReplied = p.Received.Packets > 0
	}
	m.heard, m.seen = p.Received.Bytes, true
}

// noteAttempts records since when the peer owes an answer. news is whether the peer was heard since the last look.
func (m *memory) noteAttempts(p *wireguard.PeerStatus, news bool, now time.Time) {
	if news {
		m.asking, m.gaveUp, m.unopened = time.Time{}, 0, false
	}
	switch {
	case p.Attempts == 0 && m.attempts > 0 && !news && p.Endpoint.IsValid():
		m.gaveUp = m.attempts
	case p.Attempts > 0 && m.asking.IsZero():
		m.asking = now
	}
	m.unopened = m.unopened || p.Unopened
	m.attempts = p.Attempts
}

// noteHandshakes counts the peer's initiations that no session followed, and sessions that were replaced early.
func (m *memory) noteHandshakes(p *wireguard.PeerStatus) {
	switch {
	case !p.LastHandshake.Equal(m.handshake):
		if !m.handshake.IsZero() && p.LastHandshake.Sub(m.handshake) < early {
			m.earlyEnds++
		}
		m.initiations = 0
	case m.seen && p.Timestamp.After(m.timestamp):
		m.initiations++
	}
	m.handshake, m.timestamp = p.LastHandshake, p.Timestamp
}
