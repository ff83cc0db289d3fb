package main

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

func isReload(sig os.Signal) bool { return slices.Contains(reloadSignals, sig) }

// reload reads the file again, prints what changes, and changes it. If it fails before the device has changed, everything
// stays as it was.
func (p *program) reload(ctx context.Context) error {
	next, err := p.options.settings()
	if err != nil {
		return err
	}
	add, remove := difference(next.services, p.services), difference(p.services, next.services)
	for _, line := range append(planPeers(p.file, next.file), planServices(add, remove)...) {
		p.say("plan: %s", line)
	}
	for _, what := range fixed(p.settings, next) {
		p.say("plan: %s changes only when wgproxy starts again", what)
	}
	if err := next.file.Resolve(ctx, conf.Resolution{Retries: -1}); err != nil {
		return err
	}
	change, err := next.file.Change()
	if err != nil {
		return err
	}
	if err := p.tunnel.Device().Configure(change); err != nil {
		return err
	}
	for _, s := range remove {
		p.stop(s)
	}
	next.alive, next.every = p.alive, p.every
	next.services = slices.Concat(difference(p.services, remove), add)
	p.settings = next
	if err := p.startServices(add); err != nil {
		p.settings.services = difference(next.services, add)
		return fmt.Errorf("the peers and the other services were reloaded: %w", err)
	}
	p.say("reloaded %s", p.path)
	return nil
}

// difference returns the services of a that b does not have.
func difference(a, b []service) (out []service) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

func planServices(add, remove []service) (lines []string) {
	for _, s := range remove {
		lines = append(lines, fmt.Sprintf("stop %v, with its connections", s))
	}
	for _, s := range add {
		lines = append(lines, fmt.Sprintf("start %v", s))
	}
	return lines
}

// planPeers says what happens to the peers.
func planPeers(old, next *conf.File) (lines []string) {
	before, after := byKey(old), byKey(next)
	for key, p := range after {
		was, kept := before[key]
		switch {
		case !kept:
			lines = append(lines, fmt.Sprintf("add peer %v", key))
		case !reflect.DeepEqual(was, p):
			lines = append(lines, fmt.Sprintf("change peer %v, and keep its session", key))
		}
	}
	for key := range before {
		if _, kept := after[key]; !kept {
			lines = append(lines, fmt.Sprintf("remove peer %v", key))
		}
	}
	slices.Sort(lines)
	if old.Interface.PrivateKey != next.Interface.PrivateKey {
		lines = append(lines, "change the private key, and make all sessions anew")
	}
	if old.Interface.ListenPort != next.Interface.ListenPort {
		lines = append(lines, fmt.Sprintf("listen on port %d instead of %d", next.Interface.ListenPort, old.Interface.ListenPort))
	}
	return lines
}

// A peerText is what a file says about a peer, without its secrets' text and the addresses of its names.
type peerText struct {
	psk       wireguard.PresharedKey
	keepalive int64
	endpoints []string
	prefixes  []string
}

func byKey(f *conf.File) map[wireguard.PublicKey]peerText {
	all := make(map[wireguard.PublicKey]peerText)
	for i := range f.Peers {
		p := &f.Peers[i]
		t := peerText{psk: p.PresharedKey, keepalive: int64(p.PersistentKeepalive)}
		for _, e := range p.Endpoints() {
			t.endpoints = append(t.endpoints, e.String())
		}
		for _, a := range p.AllowedIPs {
			t.prefixes = append(t.prefixes, a.String())
		}
		all[p.PublicKey] = t
	}
	return all
}

// fixed names the settings that differ and that only a new start changes.
func fixed(old, next *settings) (names []string) {
	a, b := &old.file.Interface, &next.file.Interface
	for _, c := range []struct {
		name string
		same bool
	}{
		{"Address", slices.Equal(a.Addresses, b.Addresses)},
		{"DNS", slices.Equal(a.DNS, b.DNS) && slices.Equal(a.Search, b.Search)},
		{"MTU", a.MTU == b.MTU},
		{"ResolveStrategy", old.family == next.family},
		{"CheckAlive", slices.Equal(old.alive, next.alive) && old.every == next.every},
	} {
		if !c.same {
			names = append(names, c.name)
		}
	}
	return names
}
