package udp

import (
	"errors"
	"math/bits"
	"net"

	"golang.org/x/sys/windows"
)

// unicastIF is the number of the options IP_UNICAST_IF and IPV6_UNICAST_IF. Their value is the index of an interface, in
// network byte order for IP_UNICAST_IF and in host byte order for IPV6_UNICAST_IF. Every Windows host is little-endian.
const unicastIF = 31

// configure sets the options of a socket that is not bound yet.
func (c *conn) configure(fd uintptr, b *Bind) error {
	if b.Interface == "" {
		return nil
	}
	i, err := net.InterfaceByName(b.Interface)
	if err != nil {
		return err
	}
	if c.family == ipv6 {
		return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IPV6, unicastIF, i.Index)
	}
	return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IP, unicastIF, int(bits.ReverseBytes32(uint32(i.Index))))
}

func setMark(_ uintptr, mark uint32) error {
	if mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}
