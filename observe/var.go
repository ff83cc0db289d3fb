package observe

import (
	"encoding/json"

	"github.com/seed-86b749af/wireguard"
)

// A Var shows a device's counters as a JSON object. It is an expvar.Var:
//
//	expvar.Publish("wireguard", observe.Var{Device: device})
//
// This package does not import expvar, which adds a handler to http.DefaultServeMux. A Var may be copied, and its method is safe
// for concurrent use.
type Var struct {
	Device *wireguard.Device // the device whose counters String shows; must not be nil
	// Peers says whether to include each peer under its public key. False means that String shows only the device. Its text then
	// stays small however many peers there are.
	Peers bool
}

// varTraffic and the types below are the JSON of a Var.
type varTraffic struct {
	SentBytes       uint64 `json:"sent_bytes"`
	SentPackets     uint64 `json:"sent_packets"`
	ReceivedBytes   uint64 `json:"received_bytes"`
	ReceivedPackets uint64 `json:"received_packets"`
}

func (t *varTraffic) add(p *wireguard.PeerStatus) {
	t.SentBytes += p.Sent.Bytes
	t.SentPackets += p.Sent.Packets
	t.ReceivedBytes += p.Received.Bytes
	t.ReceivedPackets += p.Received.Packets
}

type varPeer struct {
	varTraffic
	Session         bool              `json:"session"`
	LatestHandshake int64             `json:"latest_handshake_seconds"` // Unix time; 0 means never
	Drops           map[string]uint64 `json:"drops,omitempty"`
}

type varDevice struct {
	Up       bool               `json:"up"`
	Peers    int                `json:"peers"`
	Sessions int                `json:"sessions"`
	Traffic  varTraffic         `json:"traffic"` // sum over the present peers
	Drops    map[string]uint64  `json:"drops"`
	Cookies  uint64             `json:"cookie_replies"`
	ECN      uint64             `json:"ecn_mismatches"`
	Load     bool               `json:"under_load"`
	ByPeer   map[string]varPeer `json:"by_peer,omitempty"`
}

// String returns the JSON object.
func (v Var) String() string {
	s := v.Device.Status()
	o := varDevice{Up: s.Up, Peers: s.Peers, Drops: dropped(s.Drops), Cookies: s.CookieReplies, ECN: s.ECNMismatches, Load: s.UnderLoad}
	if v.Peers {
		o.ByPeer = make(map[string]varPeer, s.Peers)
	}
	for p := range v.Device.Peers() {
		o.Traffic.add(&p)
		if p.Session {
			o.Sessions++
		}
		if v.Peers {
			q := varPeer{Session: p.Session, Drops: dropped(p.Drops)}
			if !p.LastHandshake.IsZero() {
				q.LatestHandshake = p.LastHandshake.Unix()
			}
			q.add(&p)
			o.ByPeer[p.PublicKey.String()] = q
		}
	}
	text, err := json.Marshal(o)
	if err != nil {
		return "null" // numbers, booleans and names always have a JSON form
	}
	return string(text)
}

// dropped returns the number of drops by reason, without the reasons whose number is 0.
func dropped(d wireguard.Drops) map[string]uint64 {
	m := make(map[string]uint64)
	for reason, n := range d.All() {
		if n != 0 {
			m[reason.String()] = n
		}
	}
	return m
}
