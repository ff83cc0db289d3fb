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
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/wgo"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// rival implements library with wireguard-go. It makes devices as wireguard-go's own programs do.
type rival struct{}

// landings returns 0: wireguard-go passes its own buffers to its bind, so the wire provides no memory for received datagrams.
func (rival) landings() int { return 0 }

// used returns a tenth of the peers, because the handshakes of wireguard-go with all peers would take longer than the minute that
// each measure may take.
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

func (rival) stack(st *stage, key wireguard.PrivateKey, addr netip.Addr, bind wireguard.Bind) (node, network, error) {
	t, n, err := netstack.CreateNetTUN([]netip.Addr{addr}, nil, mtu)
	if err != nil {
		return nil, nil, err
	}
	b := conn.NewStdNetBind()
	if bind != nil {
		b = wgo.ConnBind(bind)
	}
	node, err := newRivalNode(st, key, t, b)
	return node, rivalNetwork{n}, err
}

// A rivalNode is a device of wireguard-go. Text configures the device; plan makes that text before the timed call.
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

var errNotThere = errors.New("the device does not list a peer that was added")

// routes checks only that the peers exist, because wireguard-go does not expose its routes.
func (n *rivalNode) routes(peers []peer) error {
	for _, p := range peers {
		if n.dev.LookupPeer(device.NoisePublicKey(p.key)) == nil {
			return errNotThere
		}
	}
	return nil
}

// wipe calls the function that wireguard-go's timer calls for a peer 540 seconds after the peer's last session began.
func (n *rivalNode) wipe(peers []peer) error {
	for _, p := range peers {
		if q := n.dev.LookupPeer(device.NoisePublicKey(p.key)); q != nil {
			q.ZeroAndFlushAll()
		}
	}
	return nil
}

// A rivalNetwork is a TCP/IP stack of wireguard-go's tun/netstack.
type rivalNetwork struct{ net *netstack.Net }

func (n rivalNetwork) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return n.net.DialContextTCPAddrPort(ctx, to)
}

func (n rivalNetwork) listen(port uint16) (net.Listener, error) {
	return n.net.ListenTCP(&net.TCPAddr{Port: int(port)})
}

func (n rivalNetwork) ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	c, err := n.net.Dial("ping4", to.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b, err := echoRequest(1)
	if err != nil {
		return 0, err
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	begin := time.Now()
	if _, err := c.Write(b); err != nil {
		return 0, err
	}
	_, err = c.Read(b)
	return time.Since(begin), err
}
