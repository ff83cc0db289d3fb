package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/seed-86b749af/wireguard/internal/systemd"
)

// sockets holds the sockets that the service manager has opened for this process, by network and address.
type sockets map[string]any // a net.Listener or a net.PacketConn

// inherit takes the sockets that a service manager passes.
func inherit() (sockets, error) {
	files, err := systemd.Files()
	if err != nil {
		return nil, err
	}
	s := make(sockets)
	for _, f := range files {
		err := s.add(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return s, nil
}

// add adds a copy of a socket.
func (s sockets) add(f *os.File) error {
	if l, err := net.FileListener(f); err == nil {
		s[l.Addr().Network()+" "+l.Addr().String()] = l
		return nil
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return errors.New("want a listening TCP socket or a UDP socket")
	}
	s[c.LocalAddr().Network()+" "+c.LocalAddr().String()] = c
	return nil
}

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
