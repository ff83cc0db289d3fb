package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/seed-86b749af/wireguard"
	ours "github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
	"github.com/seed-86b749af/wireguard/transport/wgo"
)

// A stack is a network of its own, as package net is one.
type stack interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	Listen(network, address string) (net.Listener, error)
}

// An end is one end of the tunnel: a device between a UDP socket and a stack.
type end struct {
	name   string
	addr   netip.Addr // inside the tunnel
	stack  stack
	device *wireguard.Device
}

// startTunnel makes a server and a client that are each other's peers, and starts them. The server waits for the client
// and learns where it is from its first message, as servers do.
func startTunnel(o options) (server, client *end, err error) {
	serverAddr, clientAddr := netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("10.7.0.2")
	loopback := netip.MustParseAddr("127.0.0.1")
	if o.ipv6 {
		serverAddr, clientAddr = netip.MustParseAddr("fd07::1"), netip.MustParseAddr("fd07::2")
		loopback = netip.IPv6Loopback()
	}
	serverKey, clientKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	var psk wireguard.PresharedKey
	if o.psk {
		psk = wireguard.NewPresharedKey()
	}

	server, err = startEnd(o, "server", serverAddr, loopback, serverKey, wireguard.PeerConfig{
		PublicKey:    clientKey.Public(),
		PresharedKey: psk,
		AllowedIPs:   []netip.Prefix{netip.PrefixFrom(clientAddr, clientAddr.BitLen())},
	})
	if err != nil {
		return nil, nil, err
	}
	client, err = startEnd(o, "client", clientAddr, loopback, clientKey, wireguard.PeerConfig{
		PublicKey:    serverKey.Public(),
		PresharedKey: psk,
		AllowedIPs:   []netip.Prefix{netip.PrefixFrom(serverAddr, serverAddr.BitLen())},
		Endpoint:     wireguard.EndpointOf(netip.AddrPortFrom(loopback, server.device.Status().ListenPort)),
	})
	if err != nil {
		server.device.Close()
		return nil, nil, err
	}
	return server, client, nil
}

// startEnd makes an end and takes its device up, on a port that the system chooses.
func startEnd(o options, name string, addr, loopback netip.Addr, key wireguard.PrivateKey, peer wireguard.PeerConfig) (*end, error) {
	stack, tunnel, err := newStack(o, addr)
	if err != nil {
		return nil, fmt.Errorf("the %s's network stack: %w", name, err)
	}
	device, err := wireguard.New(wireguard.Config{
		PrivateKey: key,
		Tunnel:     tunnel,
		Bind:       &udp.Bind{Address: loopback},
		Peers:      []wireguard.PeerConfig{peer},
	})
	if err != nil {
		tunnel.Close()
		return nil, fmt.Errorf("the %s: %w", name, err)
	}
	if err := device.Up(); err != nil {
		device.Close() // and with it the tunnel
		return nil, fmt.Errorf("the %s: %w", name, err)
	}
	return &end{name: name, addr: addr, stack: stack, device: device}, nil
}

// newStack makes a stack and the end of it that a device reads and writes.
func newStack(o options, addr netip.Addr) (stack, wireguard.Tunnel, error) {
	if !o.wgo {
		n, err := ours.New(ours.Config{Addresses: []netip.Addr{addr}, MTU: o.mtu})
		return n, n, err
	}
	dev, n, err := netstack.CreateNetTUN([]netip.Addr{addr}, nil, o.mtu)
	if err != nil {
		return nil, nil, err
	}
	return theirs{n}, wgo.Tunnel(dev), nil
}

// theirs is wireguard-go's stack with a Listen like that of package net.
type theirs struct{ *netstack.Net }

func (t theirs) Listen(_, address string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	return t.ListenTCPAddrPort(at)
}
