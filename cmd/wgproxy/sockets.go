package main

import (
	"fmt"
	"net"
)

// sockets are those that the service manager has opened for this process (sd_listen_fds(3)), by network and address.
type sockets map[string]any // a net.Listener or a net.PacketConn

// listener returns the inherited listener with an address, or opens one.
func (s sockets) listener(address string) (net.Listener, error) {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	if l, ok := s["tcp "+a.String()].(net.Listener); ok {
		delete(s, "tcp "+a.String())
		return l, nil
	}
	return net.Listen("tcp", address)
}

// packet returns the inherited UDP socket with an address, or opens one.
func (s sockets) packet(address string) (net.PacketConn, error) {
	a, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	if c, ok := s["udp "+a.String()].(net.PacketConn); ok {
		delete(s, "udp "+a.String())
		return c, nil
	}
	return net.ListenPacket("udp", address)
}

// unused returns an error if a socket belongs to no service.
func (s sockets) unused() error {
	for name := range s {
		return fmt.Errorf("no service uses the inherited socket %s; give it to a service as BindAddress, or remove it from the socket unit", name)
	}
	return nil
}
