package main

import (
	"context"
	"log/slog"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// resolveAgain resolves the name of a peer's endpoint again whenever a handshake with the peer fails. If the address has
// changed, it tells the device. endpoint returns the peer's endpoint in the configuration, or zero if the configuration does
// not name one. resolveAgain returns when ctx ends or the device closes.
func resolveAgain(ctx context.Context, d *wireguard.Device, r conf.Resolution, endpoint func(wireguard.PublicKey) conf.Endpoint, log *slog.Logger) {
	failures := d.Subscribe(wireguard.EventHandshakeFailed)
	defer failures.Close()
	for e := range failures.Events(ctx) {
		named := endpoint(e.Peer)
		if named.IsZero() {
			continue
		}
		named.Addr, _ = r.Lookup(ctx, named.Host)
		a, ok := named.AddrPort()
		if !ok || a == e.Endpoint.Addr {
			continue
		}
		to := wireguard.EndpointOf(a)
		err := d.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: e.Peer, UpdateOnly: true, Endpoint: &to}}})
		if err == nil {
			log.Info("the address of an endpoint has changed", "peer", e.Peer, "name", named.Host, "endpoint", to)
		}
	}
}
