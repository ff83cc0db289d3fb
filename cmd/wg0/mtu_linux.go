package main

import (
	"context"
	"net"
	"regexp"
	"strconv"

	"github.com/seed-86b749af/wireguard"
)

// findMTU returns the largest path MTU to an endpoint, minus the tunnel's overhead. If no path MTU is known, findMTU uses the
// MTU of the default route, or else 1,500 bytes.
func (t *tunnelFile) findMTU(ctx context.Context, d *wireguard.Device) int {
	const overhead, usual = 80, 1500
	mtu := 0
	for p := range d.Peers() {
		if a := p.Endpoint.Addr.Addr(); a.IsValid() {
			mtu = max(mtu, t.pathMTU(ctx, "get", a.WithZone("").String()))
		}
	}
	if mtu == 0 {
		mtu = t.pathMTU(ctx, "show", "default")
	}
	if mtu <= overhead {
		mtu = usual
	}
	return mtu - overhead
}

var (
	mtuOf     = regexp.MustCompile(`\bmtu (?:lock )?([0-9]+)`)
	nextRoute = regexp.MustCompile(`\n[^ \t]`)
	deviceOf  = regexp.MustCompile(`\bdev ([^ \n]+)`)
)

// pathMTU returns the MTU of the first route that ip shows. If that route has no MTU, pathMTU returns the MTU of the route's
// device, or 0 if that is not known either. In ip's output, the lines that continue a route are indented.
func (t *tunnelFile) pathMTU(ctx context.Context, args ...string) int {
	out, _ := t.output(ctx, "ip", append([]string{"route"}, args...)...)
	if n := nextRoute.FindStringIndex(out); n != nil {
		out = out[:n[0]]
	}
	if m := mtuOf.FindStringSubmatch(out); m != nil {
		n, _ := strconv.Atoi(m[1])
		return n
	}
	if m := deviceOf.FindStringSubmatch(out); m != nil {
		if i, err := net.InterfaceByName(m[1]); err == nil {
			return i.MTU
		}
	}
	return 0
}
