//go:build linux && !android

package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file keeps the state of the interface up to date. One goroutine, called the follower, reads a netlink socket, which
// reports that the interface may have changed. The follower then asks the kernel for the current state. It gets the name from
// the descriptor of the TUN, which works in any network namespace, and the rest with ioctls. The follower does not take the
// state from the netlink messages, so a lost message can at most delay a new state.
//
// The netlink socket and the socket for the ioctls must belong to the network namespace of the interface. When the interface
// moves to another namespace, a netlink message in the old namespace reports that the interface is gone. The follower then gets
// the new namespace from the descriptor (TUNGETDEVNETNS, which needs Linux 5.2, and CAP_NET_ADMIN in the new namespace). A
// separate thread enters the new namespace to make new sockets (setns, which needs CAP_SYS_ADMIN in the new namespace), and then
// ends. If the kernel is older or the capabilities are missing, the follower asks the descriptor once per second for the name,
// and whether the interface was deleted. The known MTU and up state do not change meanwhile. If the system has no netlink, as in
// some sandboxes, the follower makes the ioctls once per second.

// pollEvery is the interval between two requests for the state if no netlink message can report changes.
const pollEvery = time.Second

var errElsewhere = errors.New("the interface is in another network namespace, which this program may not enter")

// A place holds two sockets in the network namespace of the interface, and the interface's index there. The zero value has no
// sockets.
type place struct {
	ioctls  *os.File
	netlink *os.File // nil where the system has no netlink
	index   int      // index of the interface
}

func (p *place) close() {
	for _, f := range []*os.File{p.ioctls, p.netlink} {
		if f != nil {
			f.Close()
		}
	}
}

// locate opens the two sockets of a place in the network namespace of the interface. If the kernel does not tell which namespace
// that is, locate assumes the caller's.
func (d *Interface) locate() (p place, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if ns := d.namespace(); ns != nil && !isCurrent(ns) {
		p, err = newPlaceIn(ns)
		ns.Close()
	} else {
		if ns != nil {
			ns.Close()
		}
		p, err = newPlace()
	}
	if err != nil {
		return place{}, err
	}
	name, err := d.interfaceName()
	if err == nil {
		p.index, err = p.ask(unix.SIOCGIFINDEX, name)
	}
	if err != nil {
		p.close()
		if errors.Is(err, unix.ENODEV) {
			err = errElsewhere
		}
		return place{}, err
	}
	return p, nil
}

// namespace returns the namespace of the interface, or nil if the kernel does not tell it.
func (d *Interface) namespace() *os.File {
	ns := -1
	var err error
	if e := d.queues[0].raw.Control(func(fd uintptr) { ns, err = unix.IoctlRetInt(int(fd), unix.TUNGETDEVNETNS) }); e != nil || err != nil {
		return nil
	}
	return os.NewFile(uintptr(ns), "network namespace")
}

// isCurrent reports whether ns is the namespace of this thread.
func isCurrent(ns *os.File) bool {
	a, err := ns.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat("/proc/thread-self/ns/net")
	return err == nil && os.SameFile(a, b)
}

// newPlaceIn opens the two sockets of a place in the network namespace ns. The thread that enters ns must not run other
// goroutines. So the goroutine stays locked to its thread, and the runtime ends the thread with the goroutine.
func newPlaceIn(ns *os.File) (p place, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("%w (%w)", errElsewhere, err)
			return
		}
		p, err = newPlace()
	}()
	<-done
	return p, err
}

func newPlace() (p place, err error) {
	// The ioctls work on any socket. Use an AF_UNIX socket, which every kernel has.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return place{}, os.NewSyscallError("socket", err)
	}
	p.ioctls = os.NewFile(uintptr(fd), "ioctl socket")
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return p, nil
	}
	if unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}) != nil {
		unix.Close(fd)
		return p, nil
	}
	p.netlink = os.NewFile(uintptr(fd), "route socket")
	return p, nil
}

// request makes an ioctl about the interface whose name is in r.
func (p *place) request(request uint, r *unix.Ifreq) error {
	if p.ioctls == nil {
		return errElsewhere
	}
	raw, err := p.ioctls.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), request, r) }); e != nil {
		return e
	}
	return err
}

// ask makes an ioctl about the interface called name, and returns the number that the kernel answers.
func (p *place) ask(request uint, name string) (int, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := p.request(request, r); err != nil {
		return 0, err
	}
	if request == unix.SIOCGIFFLAGS {
		return int(r.Uint16()), nil
	}
	return int(r.Uint32()), nil
}

func (p *place) setMTU(name string, mtu int) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint32(uint32(mtu))
	return p.request(unix.SIOCSIFMTU, r)
}

// interfaceName returns the name of the interface, even if the interface is in another namespace. If the interface no longer
// exists, the error is ErrDeleted.
func (d *Interface) interfaceName() (name string, err error) {
	e := d.queues[0].raw.Control(func(fd uintptr) { name, _, err = ask(int(fd)) })
	switch {
	case e != nil:
		return "", errClosed
	case errors.Is(err, unix.EBADFD):
		return "", ErrDeleted
	}
	return name, err
}

// look asks the kernel for the state of the interface. If the interface is not in the network namespace of p's sockets, the error
// is unix.ENODEV.
func (d *Interface) look(p *place) (s State, err error) {
	if s.Name, err = d.interfaceName(); err != nil {
		return s, err
	}
	index, err := p.ask(unix.SIOCGIFINDEX, s.Name)
	if err != nil {
		return s, err
	}
	if index != p.index { // another interface has this name now
		return s, unix.ENODEV
	}
	if s.MTU, err = p.ask(unix.SIOCGIFMTU, s.Name); err != nil {
		return s, err
	}
	flags, err := p.ask(unix.SIOCGIFFLAGS, s.Name)
	s.Up = flags&unix.IFF_UP != 0
	return s, err
}

// followStates passes each new state of the interface to d.set, until the interface is deleted or closed.
func (d *Interface) followStates() {
	defer d.follow.Done()
	for d.ending() == nil {
		now, err := d.look(&d.place)
		if err != nil && !errors.Is(err, ErrDeleted) && d.move() {
			now, err = d.look(&d.place)
		}
		switch {
		case err == nil:
			d.set(now)
		case errors.Is(err, ErrDeleted):
			d.end(ErrDeleted)
		case now.Name != "":
			now.Up, now.MTU = d.last()
			d.set(now)
		}
		if err == nil && d.place.netlink != nil {
			if !d.place.wait() {
				d.withoutNetlink()
			}
			continue
		}
		select {
		case <-d.done:
		case <-time.After(pollEvery):
		}
	}
}

// last returns the up state and the MTU of the last known state.
func (d *Interface) last() (up bool, mtu int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current.Up, d.current.MTU
}

// move replaces the sockets of d.place by sockets in the current network namespace of the interface, and reports whether that
// succeeded.
func (d *Interface) move() bool {
	p, err := d.locate()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended { // Interface.close closes the old sockets
		p.close()
		return false
	}
	d.place.close()
	d.place = p
	return err == nil
}

// withoutNetlink closes the netlink socket. The follower then polls the state.
func (d *Interface) withoutNetlink() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.place.netlink.Close()
	d.place.netlink = nil
}

// leave closes the sockets of d.place, which ends the follower's wait for netlink messages.
func (d *Interface) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.place.close()
}

// wait returns when something about the interface may have changed. It returns false if the netlink socket can no longer be
// read.
func (p *place) wait() bool {
	raw, err := p.netlink.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool {
		b := make([]byte, 16<<10) // allocated for each wakeup, since wakeups are rare
		for {
			n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_TRUNC)
			switch {
			case err == unix.EAGAIN:
				return false
			case err == unix.EINTR:
			case err != nil || n > len(b) || mentions(b[:n], p.index): // the error ENOBUFS means that messages were lost
				return true
			}
		}
	}) == nil
}

// mentions reports whether one of the messages in b is about the interface with this index.
func mentions(b []byte, index int) bool {
	const link = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	for len(b) >= unix.SizeofNlMsghdr {
		h := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return true // not a valid message, so assume a change
		}
		if (h.Type == unix.RTM_NEWLINK || h.Type == unix.RTM_DELLINK) && n >= link {
			if int((*unix.IfInfomsg)(unsafe.Pointer(&b[unix.SizeofNlMsghdr])).Index) == index {
				return true
			}
		}
		b = b[min(len(b), (n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return false
}
