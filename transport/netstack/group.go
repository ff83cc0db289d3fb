package netstack

import (
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// ListenMulticastUDP listens for datagrams to the multicast address group, and joins the group. network is "udp", "udp4" or
// "udp6". Several connections may listen on one port. A datagram that the connection itself sends is not looped back unless
// SetMulticastLoopback asks for it. As with package net, the connection receives all datagrams to the port, whatever their
// destination address.
//
// A Net sends neither IGMP nor MLD, because nothing in a tunnel listens for them. On the device that sends the datagrams, the
// group's address must be in the AllowedIPs of the peer that stands for this Net.
func (n *Net) ListenMulticastUDP(network string, group netip.AddrPort) (*UDPConn, error) {
	c, err := n.listenGroup(network, unmap(group))
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: udpAddr(group), Err: err}
	}
	return c, nil
}

func (n *Net) listenGroup(network string, group netip.AddrPort) (*UDPConn, error) {
	if err := checkNetwork(network, "udp"); err != nil {
		return nil, err
	}
	if err := isGroup(group.Addr()); err != nil {
		return nil, err
	}
	c, err := n.openUDP(network, group, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	c.ep.SocketOptions().SetMulticastLoop(false)
	if err := c.JoinGroup(group.Addr()); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// JoinGroup makes the Net receive datagrams to the multicast address group. These datagrams reach every connection that is bound to
// their destination port and to all addresses. JoinGroup fails with syscall.EADDRINUSE if c has joined the group before. See
// ListenMulticastUDP for the AllowedIPs that the sender needs.
func (c *UDPConn) JoinGroup(group netip.Addr) error {
	group = group.Unmap().WithZone("")
	return c.setGroup(group, &tcpip.AddMembershipOption{NIC: NICID, MulticastAddr: tcpip.AddrFromSlice(group.AsSlice())})
}

// LeaveGroup leaves a group that c has joined. It fails with syscall.EADDRNOTAVAIL if c has not joined the group. Close leaves all
// groups.
func (c *UDPConn) LeaveGroup(group netip.Addr) error {
	group = group.Unmap().WithZone("")
	return c.setGroup(group, &tcpip.RemoveMembershipOption{NIC: NICID, MulticastAddr: tcpip.AddrFromSlice(group.AsSlice())})
}

func (c *UDPConn) setGroup(group netip.Addr, o tcpip.SettableSocketOption) error {
	if c.isClosed() {
		return c.wrap("set", nil, net.ErrClosed)
	}
	if err := isGroup(group); err != nil {
		return c.wrap("set", nil, err)
	}
	if group.Is4() && !c.net.has4 || group.Is6() && !c.net.has6 {
		return c.wrap("set", nil, c.net.missing("setsockopt", syscall.ENODEV, group.String(), group.Is4()))
	}
	if err := c.ep.SetSockOpt(o); err != nil {
		return c.wrap("set", nil, c.failure("setsockopt", err))
	}
	return nil
}

func isGroup(a netip.Addr) error {
	if a.IsMulticast() {
		return nil
	}
	return refused("setsockopt", syscall.EINVAL, a.String()+" is not a multicast address")
}

// SetMulticastTTL sets the TTL of datagrams to multicast addresses: 0 to 255. The default is 1.
func (c *UDPConn) SetMulticastTTL(ttl int) error {
	return c.setNumber(ttl, 0, 255, tcpip.MulticastTTLOption)
}

// SetMulticastLoopback says whether datagrams that c sends to a multicast address also reach the connections of this Net.
// The default is true, except after ListenMulticastUDP.
func (c *UDPConn) SetMulticastLoopback(on bool) error {
	if c.isClosed() {
		return c.wrap("set", nil, net.ErrClosed)
	}
	c.ep.SocketOptions().SetMulticastLoop(on)
	return nil
}
