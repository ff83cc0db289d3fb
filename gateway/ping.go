package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/seed-86b749af/wireguard/transport/netstack"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	// maxPings is how many pings of all peers may wait for their answers, and peerPings is how many pings of one peer may.
	maxPings  = 256
	peerPings = 32
	// pingLimit is how long a ping waits for its answer.
	pingLimit = 10 * time.Second
)

// ping sends the echo request of f to its target, and answers f if the target answers. If the target is silent, the peer gets no
// answer.
func (g *Gateway) ping(f *netstack.Flow, a *account, v Verdict) {
	if !g.beginPing(a, time.Now()) {
		a.refused.Add(1)
		_ = f.Refuse(netstack.Prohibited)
		return
	}
	defer g.endPing(a)
	to := f.Destination().Addr()
	if v.To.IsValid() {
		to = v.To.Addr()
	}
	ctx, cancel := g.outbound(f)
	defer cancel()
	ctx, cancelLimit := context.WithTimeout(ctx, pingLimit)
	defer cancelLimit()
	err := g.config.Ping(ctx, to, f.Data())
	switch {
	case err == nil:
		a.answered.Add(1)
		_ = f.Answer()
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		f.Discard()
	default:
		a.failed.Add(1)
		_ = f.Refuse(netstack.RefusalOf(err))
	}
}

func (g *Gateway) beginPing(a *account, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pings >= maxPings || a.pings >= peerPings || a.spent() || !a.arrive(a.limits.Load(), now) {
		return false
	}
	a.pings++
	g.pings++
	return true
}

func (g *Gateway) endPing(a *account) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a.pings--
	g.pings--
}

// Ping sends one ICMP echo request with data from an unprivileged ping socket, and returns nil when target has answered.
// It fails when ctx ends.
//
// On Linux, the group of the process must be in the range of the sysctl net.ipv4.ping_group_range; otherwise Ping fails with
// fs.ErrPermission. macOS has no such condition. Other systems have no ping sockets, and Ping fails with errors.ErrUnsupported.
// On those systems, a program that may use raw sockets can set Config.Ping.
func Ping(ctx context.Context, target netip.Addr, data []byte) error {
	switch runtime.GOOS {
	case "linux", "android", "darwin", "ios":
	default:
		return fmt.Errorf("gateway: ping %v: %s has no unprivileged ping sockets; set Config.Ping: %w", target, runtime.GOOS, errors.ErrUnsupported)
	}
	target = target.Unmap()
	network, local, proto := "udp4", "0.0.0.0", 1
	request, reply := icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if target.Is6() {
		network, local, proto = "udp6", "::", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := icmp.ListenPacket(network, local)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("gateway: ping %v: open a ping socket (add the process's group to the sysctl net.ipv4.ping_group_range): %w", target, err)
	} else if err != nil {
		return fmt.Errorf("gateway: ping %v: open a ping socket: %w", target, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	m, err := (&icmp.Message{Type: request, Body: &icmp.Echo{Seq: 1, Data: data}}).Marshal(nil)
	if err != nil {
		return fmt.Errorf("gateway: ping %v: %w", target, err)
	}
	to := &net.UDPAddr{IP: target.AsSlice(), Zone: target.Zone()}
	if _, err := c.WriteTo(m, to); err != nil {
		return fmt.Errorf("gateway: ping %v: %w", target, err)
	}
	b := make([]byte, len(m)+64)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return fmt.Errorf("gateway: ping %v: %w", target, err)
		}
		u, ok := from.(*net.UDPAddr)
		if !ok || u.AddrPort().Addr().Unmap().WithZone("") != target.WithZone("") {
			continue
		}
		if m, err := icmp.ParseMessage(proto, b[:n]); err == nil && m.Type == reply {
			return nil
		}
	}
}
