package follow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// A Plan says what changes when a device with the configuration of one file gets the configuration of another file. NewPlan makes
// a Plan. The lists of peers are in the order of the new file, except that Removed is in the order of the old file.
type Plan struct {
	Added   []wireguard.PublicKey // peers that only the new file has
	Removed []wireguard.PublicKey // peers that only the old file has; their sessions end
	Changed []Difference          // peers that both files have, with different values; their sessions stay
	Kept    []wireguard.PublicKey // peers that do not change

	// Interface has the keys of [Interface] that change: PrivateKey, ListenPort and FwMark. A new PrivateKey ends all
	// sessions.
	Interface []string

	// Reopen has the keys of [Interface] that change, but that Apply ignores, because a device has no settings for them: Address,
	// DNS, MTU and so on. The new values take effect when the program opens the tunnel again. See Running.
	Reopen []string

	// Change is the change that Apply makes to the device, without the endpoints of peers, which Apply adds. A program may edit
	// Change before it calls Apply.
	Change wireguard.Change

	old, to *conf.File                   // copies, because the program may change its files
	resolve map[wireguard.PublicKey]bool // whether the new file adds or changes a peer's endpoints, so that Apply resolves them
}

// A Difference is a peer that changes.
type Difference struct {
	Peer wireguard.PublicKey // the peer's key
	Keys []string            // what changes: PresharedKey, Endpoint, PersistentKeepalive, AllowedIPs
}

// NewPlan compares two files. It resolves no names, so two names for the same address are different endpoints. NewPlan fails if
// [conf.File.Change] would fail for one of the files even if all names in that file were resolved.
func NewPlan(old, new *conf.File) (*Plan, error) {
	from, err := withoutEndpoints(old).Change()
	if err != nil {
		return nil, fmt.Errorf("follow: the old file: %w", err)
	}
	to, err := withoutEndpoints(new).Change()
	if err != nil {
		return nil, fmt.Errorf("follow: the new file: %w", err)
	}
	p := &Plan{Change: to, old: old.Clone(), to: new.Clone(), resolve: make(map[wireguard.PublicKey]bool)}
	p.compareInterfaces(&old.Interface, &new.Interface)
	p.comparePeers(old, from.Peers)
	return p, nil
}

// Running returns the configuration of the tunnel after Apply: the new file, but with the old values of all keys that Reopen may
// have. It is the old file for the next call of NewPlan. Running returns nil if the Plan was not made by NewPlan.
func (p *Plan) Running() *conf.File {
	if p.to == nil {
		return nil
	}
	f, old := p.to.Clone(), p.old.Clone().Interface
	i := &f.Interface
	i.Addresses, i.DNS, i.Search, i.MTU, i.Table = old.Addresses, old.DNS, old.Search, old.MTU, old.Table
	i.PreUp, i.PostUp, i.PreDown, i.PostDown, i.SaveConfig = old.PreUp, old.PostUp, old.PreDown, old.PostDown, old.SaveConfig
	return f
}

// withoutEndpoints returns a copy of f whose peers have no endpoints, so that no names need to be resolved.
func withoutEndpoints(f *conf.File) *conf.File {
	g := *f
	g.Peers = slices.Clone(f.Peers)
	for i := range g.Peers {
		g.Peers[i].Endpoint, g.Peers[i].MoreEndpoints = conf.Endpoint{}, nil
	}
	return &g
}

// compareInterfaces lists the keys of [Interface] that differ. It removes the listen port from p.Change if both files have the
// same port, and the firewall mark if both files have the same mark. So the device keeps a port or a mark that was set by other
// means.
func (p *Plan) compareInterfaces(old, new *conf.Interface) {
	differ := func(keys *[]string, key string, differs bool) bool {
		if differs {
			*keys = append(*keys, key)
		}
		return differs
	}
	differ(&p.Interface, "PrivateKey", old.PrivateKey != new.PrivateKey)
	if p.Change.ListenPort = nil; differ(&p.Interface, "ListenPort", old.ListenPort != new.ListenPort) {
		p.Change.ListenPort = &new.ListenPort
	}
	if !differ(&p.Interface, "FwMark", old.FwMark != new.FwMark) {
		p.Change.FirewallMark = nil
	}
	differ(&p.Reopen, "Address", !slices.Equal(old.Addresses, new.Addresses))
	differ(&p.Reopen, "DNS", !slices.Equal(old.DNS, new.DNS) || !slices.Equal(old.Search, new.Search))
	differ(&p.Reopen, "MTU", old.MTU != new.MTU)
	differ(&p.Reopen, "Table", old.Table != new.Table)
	differ(&p.Reopen, "PreUp", !slices.Equal(old.PreUp, new.PreUp))
	differ(&p.Reopen, "PostUp", !slices.Equal(old.PostUp, new.PostUp))
	differ(&p.Reopen, "PreDown", !slices.Equal(old.PreDown, new.PreDown))
	differ(&p.Reopen, "PostDown", !slices.Equal(old.PostDown, new.PostDown))
	differ(&p.Reopen, "SaveConfig", old.SaveConfig != new.SaveConfig)
}

func (p *Plan) comparePeers(old *conf.File, from []wireguard.PeerChange) {
	had := make(map[wireguard.PublicKey]*wireguard.PeerChange, len(from))
	for i := range from {
		had[from[i].PublicKey] = &from[i]
	}
	before, after := Endpoints(old), Endpoints(p.to)
	owned, owns := owners(from), owners(p.Change.Peers)
	has := make(map[wireguard.PublicKey]bool, len(p.Change.Peers))
	for i := range p.Change.Peers {
		new := &p.Change.Peers[i]
		key := new.PublicKey
		has[key] = true
		new.Endpoint = nil
		moved := len(after[key]) > 0 && !sameEndpoints(before[key], after[key])
		was := had[key]
		if p.resolve[key] = moved; was == nil {
			p.Added = append(p.Added, key)
			continue
		}
		d := Difference{Peer: key}
		if *was.PresharedKey != *new.PresharedKey {
			d.Keys = append(d.Keys, "PresharedKey")
		}
		if moved {
			d.Keys = append(d.Keys, "Endpoint")
		}
		if *was.PersistentKeepalive != *new.PersistentKeepalive {
			d.Keys = append(d.Keys, "PersistentKeepalive")
		}
		if !samePrefixes(was, new, owned, owns) {
			d.Keys = append(d.Keys, "AllowedIPs")
		}
		if d.Keys != nil {
			p.Changed = append(p.Changed, d)
		} else {
			p.Kept = append(p.Kept, key)
		}
	}
	for _, was := range from {
		if !has[was.PublicKey] {
			p.Removed = append(p.Removed, was.PublicKey)
		}
	}
}

// sameEndpoints compares hosts and ports as the files have them, and not the addresses to which names resolve.
func sameEndpoints(a, b []conf.Endpoint) bool {
	return slices.EqualFunc(a, b, func(a, b conf.Endpoint) bool { return a.Host == b.Host && a.Port == b.Port })
}

// samePrefixes reports whether two changes give a peer the same prefixes, in any order. ownedA and ownedB are what owners returns
// for all peers of the two files.
func samePrefixes(a, b *wireguard.PeerChange, ownedA, ownedB map[netip.Prefix]wireguard.PublicKey) bool {
	set := func(c *wireguard.PeerChange, owned map[netip.Prefix]wireguard.PublicKey) map[string]bool {
		s := make(map[string]bool)
		for _, p := range c.AllowedIPs {
			if owned[p.Masked()] == c.PublicKey {
				s[p.Masked().String()] = true
			}
		}
		for _, p := range c.RemoveAllowedIPs {
			s["-"+p.Masked().String()] = true
		}
		return s
	}
	return a.ReplaceAllowedIPs == b.ReplaceAllowedIPs && maps.Equal(set(a, ownedA), set(b, ownedB))
}

// owners returns the peer that gets each prefix: the last one that has it.
func owners(peers []wireguard.PeerChange) map[netip.Prefix]wireguard.PublicKey {
	owners := make(map[netip.Prefix]wireguard.PublicKey)
	for i := range peers {
		for _, p := range peers[i].AllowedIPs {
			owners[p.Masked()] = peers[i].PublicKey
		}
	}
	return owners
}

// String returns one line for each change, and one line with the number of peers that stay as they are. The text contains no
// secret.
func (p *Plan) String() string {
	var b strings.Builder
	for _, key := range p.Interface {
		note := ""
		if key == "PrivateKey" {
			note = "; all sessions end"
		}
		fmt.Fprintf(&b, "change the interface's %s%s\n", key, note)
	}
	for _, key := range p.Removed {
		fmt.Fprintf(&b, "remove the peer %v\n", key)
	}
	for _, key := range p.Added {
		fmt.Fprintf(&b, "add the peer %v\n", key)
	}
	for _, d := range p.Changed {
		fmt.Fprintf(&b, "change the peer %v: %s\n", d.Peer, strings.Join(d.Keys, ", "))
	}
	fmt.Fprintf(&b, "keep %d peers as they are\n", len(p.Kept))
	for _, key := range p.Reopen {
		fmt.Fprintf(&b, "leave %s as it is until the tunnel is opened anew\n", key)
	}
	return b.String()
}

// Apply carries out a plan, as a whole or not at all. Afterwards the Follower follows the endpoints of the new file. Apply resolves
// the names of peers that are new, or that have other endpoints than in the old file. Such a peer gets the first of its endpoints
// in the new file that has an address, unless its present endpoint is one of them. All other peers keep their present endpoints.
// Peers that the new file does not name are removed.
func (f *Follower) Apply(ctx context.Context, p *Plan) error {
	if p.to == nil {
		return errors.New("follow: this Plan is empty; make it with NewPlan")
	}
	resolved := *p.to
	resolved.Peers = slices.DeleteFunc(slices.Clone(p.to.Peers), func(peer conf.Peer) bool { return !p.resolve[peer.PublicKey] })
	for i := range resolved.Peers {
		resolved.Peers[i].MoreEndpoints = slices.Clone(resolved.Peers[i].MoreEndpoints)
	}
	if err := resolved.Resolve(ctx, f.resolution); err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	places := Endpoints(&resolved)
	c := p.Change
	c.Peers = slices.Clone(c.Peers)
	for i := range c.Peers {
		c.Peers[i].Endpoint = f.place(c.Peers[i].PublicKey, places[c.Peers[i].PublicKey])
	}
	if err := f.device.Configure(c); err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	f.Set(Endpoints(p.to))
	return nil
}

// place returns the first of a peer's new endpoints that has an address. It returns nil if the peer keeps its present endpoint,
// because there are no new endpoints or because the present endpoint is one of them.
func (f *Follower) place(key wireguard.PublicKey, endpoints []conf.Endpoint) (first *wireguard.Endpoint) {
	p, _ := f.device.Peer(key)
	for _, e := range endpoints {
		a, ok := e.AddrPort()
		if ok && p.Endpoint.SamePlace(wireguard.EndpointOf(a)) {
			return nil
		}
		if ok && first == nil {
			first = new(wireguard.EndpointOf(a))
		}
	}
	return first
}
