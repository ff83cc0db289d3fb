package observe_test

import (
	"encoding/json"
	"expvar"
	"testing"
	"testing/synctest"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe"
)

var _ expvar.Var = observe.Var{}

func TestVar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.say(10)
		r.reply()
		var got struct {
			Up       bool
			Peers    int
			Sessions int
			Traffic  struct {
				Sent     uint64 `json:"sent_packets"`
				Received uint64 `json:"received_packets"`
			}
			ByPeer map[string]struct {
				Session   bool
				Handshake int64  `json:"latest_handshake_seconds"`
				Bytes     uint64 `json:"received_bytes"`
			} `json:"by_peer"`
		}
		if err := json.Unmarshal([]byte(observe.Var{Device: r.a, Peers: true}.String()), &got); err != nil {
			t.Fatal(err)
		}
		p, ok := r.a.Peer(r.keyB)
		q := got.ByPeer[r.keyB.String()]
		if !ok || !got.Up || got.Peers != 1 || got.Sessions != 1 || got.Traffic.Sent != 1 || got.Traffic.Received != 1 ||
			!q.Session || q.Handshake != p.LastHandshake.Unix() || q.Bytes != p.Received.Bytes {
			t.Errorf("String shows %+v, want an up device with the peer as in %+v", got, p)
		}

		r.tunA.TrySend([]byte{0})
		synctest.Wait()
		var device struct {
			Drops  map[string]uint64
			ByPeer map[string]any `json:"by_peer"`
		}
		if err := json.Unmarshal([]byte(observe.Var{Device: r.a}.String()), &device); err != nil {
			t.Fatal(err)
		}
		if len(device.Drops) != 1 || device.Drops[wireguard.DropMalformed.String()] != 1 || device.ByPeer != nil {
			t.Errorf("String shows %+v, want 1 malformed packet and no peers", device)
		}
	})
}
