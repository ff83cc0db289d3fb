//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package follow

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/net/route"
	"golang.org/x/sys/unix"
)

// A network is a route socket.
type network struct {
	events *os.File
	scene  scene
}

func openNetwork(tunnel string) (*network, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	n := &network{os.NewFile(uintptr(fd), "route socket"), scene{tunnel: tunnel}}
	n.scene.changed()
	return n, nil
}

func (n *network) Close() error { return n.events.Close() }

func (n *network) watch(signal func()) error {
	b := make([]byte, 8<<10)
	for {
		size, err := n.events.Read(b)
		switch {
		case err == nil:
			if n.changes(b[:size]) {
				signal()
			}
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost, and anything may have changed
			n.scene.changed()
			signal()
		default:
			return err
		}
	}
}

// changes reports whether the messages in b contain a change that counts. A message of an unknown kind does not parse, and does
// not count.
func (n *network) changes(b []byte) (changed bool) {
	messages, err := route.ParseRIB(route.RIBTypeRoute, b)
	if err != nil {
		return false
	}
	for _, m := range messages {
		switch m := m.(type) {
		case *route.InterfaceMessage, *route.InterfaceAddrMessage, *route.InterfaceAnnounceMessage:
			changed = n.scene.changed() || changed
		case *route.RouteMessage:
			changed = isChange(m.Type) && isDefault(m) && n.counts(m.Index) || changed
		}
	}
	return changed
}

func isChange(kind int) bool {
	return kind == unix.RTM_ADD || kind == unix.RTM_DELETE || kind == unix.RTM_CHANGE
}

// isDefault reports whether m is about a default route.
func isDefault(m *route.RouteMessage) bool {
	if m.Flags&unix.RTF_HOST != 0 || len(m.Addrs) <= unix.RTAX_NETMASK {
		return false
	}
	return isZero(m.Addrs[unix.RTAX_DST]) && isZero(m.Addrs[unix.RTAX_NETMASK])
}

// isZero reports whether a is nil, or an address or a mask of which all bytes are zero.
func isZero(a route.Addr) bool {
	switch a := a.(type) {
	case nil:
		return true
	case *route.Inet4Addr:
		return a.IP == [4]byte{}
	case *route.Inet6Addr:
		return a.IP == [16]byte{}
	}
	return false
}

// counts reports whether changes of an interface count: whether it is not the device's own interface.
func (n *network) counts(index int) bool {
	if n.scene.tunnel == "" {
		return true
	}
	i, err := net.InterfaceByIndex(index)
	return err != nil || i.Name != n.scene.tunnel
}
