package main

import (
	"context"
	"io"
	"net"
	"net/netip"
)

// serveLikeWireproxy is a SOCKS5 server that does what wireproxy does: it dials through wireguard-go's netstack, and copies each
// direction with a buffer of 32 KiB. It supports only CONNECT to IPv4 addresses, because the bench sends no other requests.
func serveLikeWireproxy(l net.Listener, dial dialFunc) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			to, err := acceptSOCKS(c, dial)
			if err != nil {
				return
			}
			defer to.Close()
			back := make(chan struct{})
			go func() { defer close(back); copyHalf(c, to) }()
			copyHalf(to, c)
			<-back
		}()
	}
}

// acceptSOCKS reads the greeting and the request of a client, and dials the target.
func acceptSOCKS(c net.Conn, dial dialFunc) (net.Conn, error) {
	var b [10]byte
	_, _ = io.ReadFull(c, b[:3]) // a greeting with one method
	_, _ = c.Write([]byte{5, 0})
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[8])<<8|uint16(b[9]))
	to, err := dial(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return to, err
}

// copyHalf copies from src to dst. When src ends, it closes dst for writing. After an error it closes both connections.
func copyHalf(dst, src net.Conn) {
	_, err := io.CopyBuffer(dst, src, make([]byte, 32<<10))
	if w, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = w.CloseWrite()
		return
	}
	src.Close()
	dst.Close()
}
