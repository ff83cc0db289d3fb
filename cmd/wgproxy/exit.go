package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/gateway"
)

// exitSettings are the values of a section [Gateway].
type exitSettings struct {
	allow  []netip.Prefix // Allow: what peers may reach although gateway.Public refuses it
	limits gateway.Limits // MaxFlows and BytesPerSecond, of each peer
}

// mostFlows is half of the flows that a gateway may have in all, which is the most that one peer can get.
const mostFlows = 4096

// exitEntry reads a key of [Gateway].
func (p *parser) exitEntry(key, v string) error {
	switch key {
	case "Allow":
		for text := range strings.SplitSeq(v, ",") {
			prefix, err := exitPrefix(strings.TrimSpace(text))
			if err != nil {
				return err
			}
			p.exit.allow = append(p.exit.allow, prefix)
		}
	case "MaxFlows":
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil || n == 0 || n > mostFlows {
			return fmt.Errorf("want the connections and UDP sockets that a peer may have at once, from 1 to %d", mostFlows)
		}
		p.exit.limits.Flows = int(n)
	case "BytesPerSecond":
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil || n == 0 {
			return fmt.Errorf("want a number from 1 to 2147483647, or no line for no limit")
		}
		p.exit.limits.FromPeer, p.exit.limits.ToPeer = int(n), int(n)
	}
	return nil
}

// exitPrefix parses one item in the list of the key Allow: a prefix, or an address, which it turns into a prefix of full length.
func exitPrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if a, e := netip.ParseAddr(text); e == nil && a.Zone() == "" {
		prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch a := prefix.Addr(); {
	case err != nil || a.Is4In6():
		return prefix, fmt.Errorf("%q: want addresses or prefixes with commas between them, such as 192.168.1.2, fd00::/64", text)
	case a.IsLoopback():
		return prefix, fmt.Errorf("%s: no packet of a peer may have a loopback address; to offer a service of this host, write a section [%s]", text, kindServer)
	case a.IsLinkLocalUnicast() || a.IsMulticast():
		return prefix, fmt.Errorf("%s: routers do not forward packets to such an address; remove it", text)
	}
	return prefix.Masked(), nil
}

// policy returns the policy for the peers of a file.
func (s *exitSettings) policy(f *conf.File) func(gateway.Request) gateway.Verdict {
	public := gateway.Public(tunnelPrefixes(f)...)
	return func(r gateway.Request) gateway.Verdict {
		if slices.ContainsFunc(s.allow, func(p netip.Prefix) bool { return p.Contains(r.Destination.Addr()) }) {
			return gateway.Verdict{Allow: true}
		}
		return public(r)
	}
}

// tunnelPrefixes returns the networks of the tunnel, which peers must not reach through the host's sockets: those of
// Address, and the AllowedIPs of all peers. A prefix for all addresses, or for half of them, is a route and not a
// network.
func tunnelPrefixes(f *conf.File) []netip.Prefix {
	all := slices.Clone(f.Interface.Addresses)
	for i := range f.Peers {
		for _, p := range f.Peers[i].AllowedIPs {
			if p.Bits() > 1 {
				all = append(all, p)
			}
		}
	}
	return all
}

// An exit is the running gateway of a section [Gateway].
type exit struct {
	*gateway.Gateway
	policy atomic.Pointer[func(gateway.Request) gateway.Verdict] // a reload replaces it
}

// newExit makes the exit of a file.
func newExit(s *exitSettings, f *conf.File) (*exit, error) {
	x := new(exit)
	x.setPolicy(s.policy(f))
	var err error
	x.Gateway, err = gateway.New(gateway.Config{
		Policy: func(r gateway.Request) gateway.Verdict { return (*x.policy.Load())(r) },
		Limits: s.limits,
	})
	return x, err
}

func (x *exit) setPolicy(p func(gateway.Request) gateway.Verdict) { x.policy.Store(&p) }

// reload changes the policy for later flows, and the limits for all flows.
func (x *exit) reload(s *exitSettings, f *conf.File, removed []wireguard.PublicKey) {
	x.setPolicy(s.policy(f))
	for i := range f.Peers {
		x.SetLimits(f.Peers[i].PublicKey, s.limits)
	}
	for _, key := range removed {
		x.Forget(key)
	}
}

// planExit returns the lines of a reload's plan that concern the section [Gateway] of the file.
func planExit(old, next *exitSettings) (lines []string) {
	switch {
	case old == nil && next == nil:
	case old == nil || next == nil:
		lines = append(lines, "leave [Gateway] as it is until wgproxy starts again\n")
	case !slices.Equal(old.allow, next.allow) || old.limits != next.limits:
		lines = append(lines, "change [Gateway]: Allow for new flows, and the limits for all\n")
	}
	return lines
}
