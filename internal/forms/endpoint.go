package forms

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ErrEndpoint returns an error that says what the text of an endpoint should look like.
func ErrEndpoint(s string) error {
	return fmt.Errorf("wireguard: endpoint %q: want address:port, as in 192.0.2.1:51820 or [2001:db8::1]:51820", s)
}

// ParseEndpoint parses "192.0.2.1:51820 from 192.0.2.7 ifindex 2": the remote address, the local address, and the index of an
// interface. The local address and the index may be missing. An empty text gives zero values.
func ParseEndpoint(s string) (remote netip.AddrPort, source netip.Addr, index uint32, err error) {
	if s == "" {
		return remote, source, 0, nil
	}
	rest, number, pinned := strings.Cut(s, " ifindex ")
	place, local, sourced := strings.Cut(rest, " from ")
	remote, err = netip.ParseAddrPort(place)
	if err == nil && sourced {
		source, err = netip.ParseAddr(local)
	}
	if err == nil && pinned {
		var n uint64
		n, err = strconv.ParseUint(number, 10, 32)
		index = uint32(n)
	}
	switch {
	case err != nil:
		err = ErrEndpoint(s)
	case remote.Port() == 0:
		err = fmt.Errorf("wireguard: endpoint %q: port 0 cannot be reached; want a port from 1 to 65535", s)
	}
	return remote, source, index, err
}
