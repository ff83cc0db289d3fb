package page

import (
	"cmp"
	"slices"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe"
)

// A row is what the page shows of a peer. look compares rows to find what has changed, so no field may change merely because time
// passes.
type row struct {
	Key       string        `json:"key"`
	Name      string        `json:"name,omitempty"`
	Endpoint  string        `json:"endpoint,omitempty"`
	Allowed   string        `json:"allowed,omitempty"` // the first prefixes
	More      int           `json:"more,omitempty"`    // how many further prefixes there are
	State     observe.State `json:"state"`
	Text      string        `json:"text"`
	Received  uint64        `json:"received"` // bytes
	Sent      uint64        `json:"sent"`
	Heard     int64         `json:"heard,omitempty"`     // Unix time in ms; 0 means never
	Handshake int64         `json:"handshake,omitempty"` // Unix time in ms; 0 means never
	Drops     uint64        `json:"drops,omitempty"`
	Gateway   GatewayPeer   `json:"gateway,omitzero"`
}

// A head is what the page shows of a device besides its peers.
type head struct {
	Name      string            `json:"name,omitempty"`
	Key       string            `json:"key,omitempty"`
	Up        bool              `json:"up"`
	Port      uint16            `json:"port,omitempty"`
	Count     int               `json:"count"`             // the number of peers
	Gateway   bool              `json:"gateway,omitempty"` // whether there is a gateway; peers without counters then show zeros
	UnderLoad bool              `json:"under_load,omitempty"`
	Drops     map[string]uint64 `json:"drops,omitempty"`
}

// A view is the whole status of a device, or the part of it that has changed since the last look.
type view struct {
	head
	Peers []row    `json:"peers,omitempty"`
	Gone  []string `json:"gone,omitempty"` // keys of the peers that the device no longer has
}

// A report is the JSON of status.json and of a stream's messages.
type report struct {
	Time     int64  `json:"time"`               // Unix time in ms
	Interval int64  `json:"interval,omitempty"` // the time between two reports of a stream, in ms
	Devices  []view `json:"devices"`
}

// A watched is a device with the rows that the last look found.
type watched struct {
	Device
	explainer observe.Explainer
	rows      map[wireguard.PublicKey]*seenRow
	looks     uint64
}

type seenRow struct {
	row
	look uint64 // the number of the newest look that found the peer
}

// look reads the status of the device, and returns what has changed since the last look.
func (d *watched) look(c *Config, now time.Time) (changes view) {
	if d.rows == nil {
		d.rows = make(map[wireguard.PublicKey]*seenRow)
	}
	d.looks++
	changes.head = d.headOf()
	var gateway map[wireguard.PublicKey]GatewayPeer
	if d.Gateway != nil {
		gateway = d.Gateway()
	}
	d.explainer.Each(d.Device.Device, now, func(p *wireguard.PeerStatus, e observe.Explanation) bool {
		seen := d.rows[p.PublicKey]
		if seen == nil {
			seen = &seenRow{}
			d.rows[p.PublicKey] = seen
		}
		r := d.rowOf(c, p, e, &seen.row)
		r.Gateway = gateway[p.PublicKey]
		if seen.look = d.looks; r != seen.row {
			seen.row = r
			changes.Peers = append(changes.Peers, r)
		}
		return true
	})
	for key, seen := range d.rows {
		if seen.look != d.looks {
			delete(d.rows, key)
			changes.Gone = append(changes.Gone, seen.Key)
		}
	}
	return changes
}

func (d *watched) headOf() head {
	s := d.Device.Device.Status()
	h := head{Name: d.Name, Up: s.Up, Port: s.ListenPort, Count: s.Peers, Gateway: d.Gateway != nil, UnderLoad: s.UnderLoad}
	if !s.PublicKey.IsZero() {
		h.Key = s.PublicKey.String()
	}
	for reason, n := range s.Drops.All() {
		if n != 0 {
			if h.Drops == nil {
				h.Drops = make(map[string]uint64)
			}
			h.Drops[reason.String()] = n
		}
	}
	return h
}

// rowOf returns the row of p. old is the peer's row from the last look.
func (d *watched) rowOf(c *Config, p *wireguard.PeerStatus, e observe.Explanation, old *row) row {
	r := row{Key: old.Key, State: e.State, Text: e.String(), Received: p.Received.Bytes, Sent: p.Sent.Bytes, Drops: p.Drops.Total()}
	if r.Key == "" {
		r.Key = p.PublicKey.String()
	}
	if c.Name != nil {
		r.Name = c.Name(p.PublicKey)
	}
	if p.Endpoint.IsValid() {
		r.Endpoint = p.Endpoint.String()
	}
	r.Allowed, r.More = d.allowed(p)
	// The device computes LastReceived from the present time, so LastReceived changes a little even without a message.
	if r.Heard = old.Heard; !p.LastReceived.IsZero() && (r.Heard == 0 || p.Received.Bytes != old.Received) {
		r.Heard = p.LastReceived.UnixMilli()
	}
	if !p.LastHandshake.IsZero() {
		r.Handshake = p.LastHandshake.UnixMilli()
	}
	return r
}

// shownPrefixes is how many prefixes of a peer the page shows.
const shownPrefixes = 2

func (d *watched) allowed(p *wireguard.PeerStatus) (text string, more int) {
	n := 0
	for prefix := range d.Device.Device.AllowedIPs(p.PublicKey) {
		if n++; n > shownPrefixes {
			break
		}
		if text != "" {
			text += ", "
		}
		text += prefix.String()
	}
	return text, max(p.AllowedIPs-shownPrefixes, 0)
}

// all returns the status of the device and the rows that the last look found. The rows are in the order of the keys' text.
func (d *watched) all() (v view) {
	v.head = d.headOf()
	v.Peers = make([]row, 0, len(d.rows))
	for _, seen := range d.rows {
		v.Peers = append(v.Peers, seen.row)
	}
	slices.SortFunc(v.Peers, func(a, b row) int { return cmp.Compare(a.Key, b.Key) })
	return v
}
