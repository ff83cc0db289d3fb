package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/seed-86b749af/wireguard"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// rival is wireguard-go, built as its own programs build it.
type rival struct{}

// landings is none: a bind of wireguard-go fills the buffers that it is called with.
func (rival) landings() int { return 0 }

// used is a part of the peers: a handshake of wireguard-go's costs too much of a minute to do it with all.
func (rival) used(st *stage) int { return st.Peers / 10 }

func (rival) node(st *stage, c nodeConfig) (node, error) {
	var bind conn.Bind
	if c.end != nil {
		bind = &rivalBind{end: c.end}
	} else {
		bind = conn.NewStdNetBind()
	}
	var t tun.Device = &rivalTun{plain: c.plain, events: make(chan tun.Event, 1)}
	if c.relay {
		t = newRivalRelay()
	}
	return newRivalNode(st, c.key, t, bind)
}

func (rival) stack(st *stage, key wireguard.PrivateKey, addr netip.Addr) (node, network, error) {
	t, n, err := netstack.CreateNetTUN([]netip.Addr{addr}, nil, mtu)
	if err != nil {
		return nil, nil, err
	}
	node, err := newRivalNode(st, key, t, conn.NewStdNetBind())
	return node, rivalNetwork{n}, err
}

// A rivalNode is a device of wireguard-go. It is configured by text, which plan writes before the call is timed.
type rivalNode struct{ dev *device.Device }

func newRivalNode(st *stage, key wireguard.PrivateKey, t tun.Device, b conn.Bind) (node, error) {
	n := &rivalNode{device.NewDevice(t, b, device.NewLogger(device.LogLevelSilent, ""))}
	st.atClose(n.dev.Close)
	if err := n.become(key); err != nil {
		return nil, err
	}
	return n, n.dev.Up()
}

func (n *rivalNode) port() uint16 {
	text, err := n.dev.IpcGet()
	if err != nil {
		return 0
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "listen_port="); ok {
			port, _ := strconv.ParseUint(v, 10, 16)
			return uint16(port)
		}
	}
	return 0
}

func (n *rivalNode) plan(peers ...peer) func() error {
	var b strings.Builder
	for _, p := range peers {
		fmt.Fprintf(&b, "public_key=%x\nendpoint=%v\nallowed_ip=%v\n", p.key[:], p.endpoint, p.prefix)
	}
	text := b.String()
	return func() error { return n.dev.IpcSet(text) }
}

func (n *rivalNode) become(key wireguard.PrivateKey) error {
	return n.dev.IpcSet("private_key=" + hex.EncodeToString(key[:]) + "\n")
}

var errNotThere = errors.New("a peer that was added is not there")

// routes looks whether the peers exist: wireguard-go tells nobody where it routes.
func (n *rivalNode) routes(peers []peer) error {
	for _, p := range peers {
		if n.dev.LookupPeer(device.NoisePublicKey(p.key)) == nil {
			return errNotThere
		}
	}
	return nil
}

// wipe calls what the timer of 540 seconds calls.
func (n *rivalNode) wipe(peers []peer) error {
	for _, p := range peers {
		if q := n.dev.LookupPeer(device.NoisePublicKey(p.key)); q != nil {
			q.ZeroAndFlushAll()
		}
	}
	return nil
}

// rivalNetwork is the stack of wireguard-go's tun/netstack.
type rivalNetwork struct{ net *netstack.Net }

func (n rivalNetwork) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return n.net.DialContextTCPAddrPort(ctx, to)
}

func (n rivalNetwork) listen(port uint16) (net.Listener, error) {
	return n.net.ListenTCP(&net.TCPAddr{Port: int(port)})
}
