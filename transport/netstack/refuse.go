package netstack

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A refusal is the error of a call that the Net refuses before it sends a packet. Its text says why, and what the program should
// do. It wraps the error number that package net would return.
type refusal struct {
	errno syscall.Errno
	why   string
}

func (r *refusal) Error() string { return r.errno.Error() + ": " + r.why }
func (r *refusal) Unwrap() error { return r.errno }

// refused returns a refusal in the form in which package net reports a failed system call.
func refused(call string, errno syscall.Errno, why string) error {
	return &os.SyscallError{Syscall: call, Err: &refusal{errno, why}}
}

// unreachable returns an error that says why the Net cannot send to the destination (to), or nil if it can. call is the system
// call that the error names.
func (n *Net) unreachable(call string, to netip.Addr) error {
	switch {
	case to.IsLoopback():
		return refused(call, syscall.ENETUNREACH, to.String()+" is a loopback address, and a Net has no loopback interface; "+
			"to reach this Net itself, use its own address: "+n.addresses())
	case to.Is4() && !n.has4, to.Is6() && !n.has6:
		return n.missing(call, syscall.ENETUNREACH, to.String(), to.Is4())
	}
	return nil
}

// detached returns an error if the Net cannot connect to the destination (to) because no device is attached, and nil otherwise.
// The Net reaches its own addresses without a device.
func (n *Net) detached(to netip.Addr) error {
	if slices.Contains(n.addrs, to) || n.link.attached() {
		return nil
	}
	return refused("connect", syscall.ENETUNREACH, to.String()+" is behind the tunnel, and no device uses this Net yet; pass the Net to "+
		"wireguard.New in Config.Tunnel first")
}

// missing returns the error for a call that needs an address family of which the Net has no address. what names the address or
// the network that needs the family. is4 means that the family is IPv4.
func (n *Net) missing(call string, errno syscall.Errno, what string, is4 bool) error {
	lacks, has := "IPv6", "IPv4"
	if is4 {
		lacks, has = has, lacks
	}
	return refused(call, errno, what+" needs "+lacks+", and the Net has only "+has+" ("+n.addresses()+"); add an "+lacks+
		" address to Config.Addresses")
}

// several returns an error if the address a stands for several hosts (multicast or broadcast), or nil if it does not. call is the
// system call that the error names. why is the end of the error's text; it says why the call needs a single host.
func several(call string, a netip.Addr, why string) error {
	if a.IsMulticast() || a == broadcast {
		return refused(call, syscall.ENETUNREACH, a.String()+" stands for several hosts, and "+why)
	}
	return nil
}

// badLocal returns an error that says why a socket that is connected to remote cannot have the local address local, or nil if it
// can. An invalid remote means that the socket is not connected. badLocal permits the unspecified address, which means all
// addresses.
func (n *Net) badLocal(local, remote netip.Addr) error {
	if err := n.notOurs(local); err != nil {
		return err
	}
	if n.owns(local) && remote.IsValid() && local.Is4() != remote.Is4() {
		return refused("connect", syscall.EINVAL, local.String()+" and "+remote.String()+
			" are of different families; connect from an address of the other family, or from none")
	}
	return nil
}

// notOurs returns an error that says why a socket of the Net cannot have the local address a, or nil if it can. It permits
// multicast addresses, which UDP may use.
func (n *Net) notOurs(a netip.Addr) error {
	switch {
	case !a.IsValid() || a.IsUnspecified() || n.owns(a):
		return nil
	case a.IsMulticast() && (a.Is4() && n.has4 || a.Is6() && n.has6):
		return nil
	case a.IsMulticast():
		return n.missing("bind", syscall.EAFNOSUPPORT, a.String(), a.Is4())
	}
	return refused("bind", syscall.EADDRNOTAVAIL, a.String()+" is not an address of the Net, which has "+n.addresses()+
		"; use one of these, or none to mean all of them")
}

// noGroup returns an error if a, the local address of a TCP socket, is a multicast address, and nil otherwise.
func noGroup(a netip.Addr) error {
	if a.IsMulticast() {
		return refused("bind", syscall.EADDRNOTAVAIL, a.String()+" is a multicast address, which TCP cannot use; use UDP")
	}
	return nil
}

// owns reports whether a is one of the Net's own addresses.
func (n *Net) owns(a netip.Addr) bool {
	for _, own := range n.addrs {
		if own == a {
			return true
		}
	}
	return false
}

// addresses lists the Net's addresses for the text of an error.
func (n *Net) addresses() string {
	const most = 4
	var s strings.Builder
	for i, a := range n.addrs {
		if i == most {
			s.WriteString(" and " + strconv.Itoa(len(n.addrs)-most) + " more")
			break
		}
		if i > 0 {
			s.WriteString(", ")
		}
		s.WriteString(a.String())
	}
	return s.String()
}
