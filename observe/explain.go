package observe

import (
	"net/netip"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A State says in a word whether packets get through to a peer.
type State uint8

// The states of a peer.
const (
	Stopped     State = iota // the device is down or has no private key
	Idle                     // there is no session, and the device does not try to establish one
	Connecting               // the first initiation waits for its answer
	Connected                // there is a session
	Impaired                 // there is a session, but packets are lost or refused
	Unreachable              // initiations go unanswered, or cannot be sent
	states
)

var stateNames = [states]string{"stopped", "idle", "connecting", "connected", "impaired", "unreachable"}

// String returns the state in lower-case letters.
func (s State) String() string {
	if s >= states {
		return "unknown"
	}
	return stateNames[s]
}

// MarshalText returns what String returns.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Cause is one thing that is known or suspected about a peer, for programs to branch on.
type Cause uint8

// The causes. Those marked as suspected are inferred from traffic.
const (
	DeviceDown       Cause = iota // the device is down
	NoPrivateKey                  // the device has no private key
	NoEndpoint                    // the device knows no endpoint of the peer
	NoAnswer                      // initiations got no answer
	WrongKey                      // answers arrived that could not be decrypted: a key or the preshared key is wrong
	NotSent                       // the Bind could not send the newest message
	NotConfirmed                  // answers to the peer's initiations led to no session: its preshared key may be wrong (suspected)
	CookieAsked                   // the peer is under load and asked for a cookie
	NothingReceived               // there is a session, but initiations go unanswered
	SourceNotAllowed              // the peer sends packets from addresses outside its allowed IPs
	NoReplies                     // the peer is heard, but sends no packets: it may refuse this device's addresses (suspected)
	PathMTU                       // large packets are lost on the path to the peer (suspected)
	NameMoved                     // the name of the peer's endpoint resolves to other addresses now
	causes
)

var causeNames = [causes]string{
	"device down", "no private key", "no endpoint", "no answer", "wrong key", "not sent", "not confirmed", "cookie asked",
	"nothing received", "source not allowed", "no replies", "path mtu", "name moved",
}

// String returns the cause in lower-case words.
func (c Cause) String() string {
	if c >= causes {
		return "unknown"
	}
	return causeNames[c]
}

// MarshalText returns what String returns.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// A Reason is a cause in a sentence.
type Reason struct {
	Cause Cause  `json:"cause"` // what is wrong
	Text  string `json:"text"`  // the same in one or two sentences, with figures and what to check
}

// An Explanation gives the state of a peer, and the reasons for it. It contains no secrets.
type Explanation struct {
	State   State    `json:"state"`   // whether packets get through
	Reasons []Reason `json:"reasons"` // the most important one first; empty if nothing is wrong
}

// Has reports whether c is among the reasons.
func (e Explanation) Has(c Cause) bool {
	for _, r := range e.Reasons {
		if r.Cause == c {
			return true
		}
	}
	return false
}

var stateTexts = [states]string{
	"Stopped.", "Idle: there is nothing to send.", "Connecting: the first initiation waits for its answer.", "Connected.",
	"Connected, with trouble.", "Unreachable.",
}

// String returns the explanation in sentences.
func (e Explanation) String() string {
	var b strings.Builder
	if e.State < states && (len(e.Reasons) == 0 || e.State == Connected) {
		b.WriteString(stateTexts[e.State])
	}
	for _, r := range e.Reasons {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(r.Text)
	}
	return b.String()
}

// Explain explains a peer from what the device shows now, and reports whether the device has that peer. It cannot find causes
// that show only over time (NotConfirmed, NoReplies, PathMTU). An Explainer can.
func Explain(d *wireguard.Device, peer wireguard.PublicKey) (Explanation, bool) {
	p, ok := d.Peer(peer)
	if !ok {
		return Explanation{}, false
	}
	var x Explainer
	return x.explain(d.Status(), &p, &memory{}, time.Now()), true
}

// An Explainer explains the peers of one device. It compares the status of each peer with the status at earlier calls of Each, so
// call Each at regular intervals: once per second is enough, and once per 10 s is enough for most causes. It remembers about 300
// bytes per peer of the device, and forgets a removed peer at the next Each. The zero value is ready. It must not be copied after
// its first use, or used by two goroutines at once.
type Explainer struct {
	// Addresses returns the addresses that the name of a peer's endpoint has now, with the port. An empty result means that the
	// addresses are not known. A nil function means that no name is known. Each calls Addresses for peers that do not answer, so
	// Addresses must not block: resolve names in another goroutine.
	Addresses func(wireguard.PublicKey) []netip.AddrPort

	memories map[wireguard.PublicKey]*memory
	looks    uint64 // how many times Each was called
}

// Each calls yield with the status of each peer and its explanation, in the order of Device.Peers, until yield returns false. now
// is the wall time. The texts show times in the location of now.
func (x *Explainer) Each(d *wireguard.Device, now time.Time, yield func(*wireguard.PeerStatus, Explanation) bool) {
	if x.memories == nil {
		x.memories = make(map[wireguard.PublicKey]*memory)
	}
	x.looks++
	s := d.Status()
	for p := range d.Peers() {
		m := x.memories[p.PublicKey]
		if m == nil {
			m = &memory{}
			x.memories[p.PublicKey] = m
		}
		m.look = x.looks
		if !yield(&p, x.explain(s, &p, m, now)) {
			break
		}
	}
	if len(x.memories) <= s.Peers {
		return // the usual case: no peer is gone
	}
	for key, m := range x.memories {
		if m.look == x.looks {
			continue
		}
		if _, ok := d.Peer(key); !ok { // if yield ended the loop early, the device still has the peers that were not visited
			delete(x.memories, key)
		}
	}
}
