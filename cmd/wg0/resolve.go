package main

import (
	"context"
	"log/slog"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// resolveAgain asks for the address of a peer's name whenever a handshake with it has failed, and gives the device a
// new one. endpoint is what the configuration says of a peer, zero where it says nothing. It returns when ctx or the
// device ends.
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
			log.Info("the name of an endpoint has another address", "peer", e.Peer, "name", named.Host, "endpoint", to)
		}
	}
}
