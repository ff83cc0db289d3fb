package follow

import (
	"encoding/binary"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A network watches the machine's network. It has a netlink socket that receives messages about changes, and the state of the
// network that the messages have reported.
type network struct {
	events *os.File
	known  topology
}

func openNetwork(tunnel string) (*network, error) {
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	fd, err := netlinkSocket(unix.SOCK_NONBLOCK, groups)
	if err != nil {
		return nil, err
	}
	return &network{os.NewFile(uintptr(fd), "netlink"), topology{tunnel: tunnel}}, nil
}

func netlinkSocket(flags int, groups uint32) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

func (n *network) Close() error { return n.events.Close() }

// watch asks for the present state after openNetwork has subscribed to changes, so a change between the two is reported.
func (n *network) watch(signal func()) error {
	if err := n.learn(); err != nil {
		return err
	}
	b := make([]byte, 16<<10)
	for {
		size, err := n.events.Read(b)
		switch {
		case err == nil:
			if n.known.update(b[:size], false) {
				signal()
			}
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost, and anything may have changed
			signal()
			if err := n.learn(); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// learn replaces the known state by the present one. It asks for links first, because only links have the names of the interfaces
// to which addresses and routes belong.
func (n *network) learn() error {
	n.known = topology{tunnel: n.known.tunnel}
	for _, question := range []uint16{unix.RTM_GETLINK, unix.RTM_GETADDR, unix.RTM_GETROUTE} {
		if err := n.list(question); err != nil {
			return err
		}
	}
	return nil
}

// list asks the kernel for all links, all addresses or all routes. The kernel produces the answer while list reads it.
func (n *network) list(question uint16) error {
	fd, err := netlinkSocket(0, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg
	native := binary.NativeEndian
	q := native.AppendUint32(nil, size)
	q = native.AppendUint16(q, question)
	q = native.AppendUint16(q, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	q = append(q, make([]byte, size-len(q))...) // zeros ask for all address families
	if err := unix.Sendto(fd, q, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	b := make([]byte, 32<<10)
	for {
		size, _, err := unix.Recvfrom(fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		n.known.update(b[:size], true)
		if isEnd(b[:size]) {
			return nil
		}
	}
}

// isEnd reports whether b contains the message that ends the kernel's answer to the request of list.
func isEnd(b []byte) (end bool) {
	messages(b, func(kind, _ uint16, _ []byte) {
		end = end || kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR
	})
	return end
}

// A sleep detects that the machine has slept. Its timer is due once, in 2038. The kernel cancels the timer when the wall clock
// jumps relative to CLOCK_MONOTONIC. The wall clock jumps when the machine resumes and when someone sets it.
type sleep struct {
	timer *os.File
	slept time.Duration // how long the machine has slept since it started
}

// nap is the shortest sleep that counts. A shorter sleep ends no session, and leaves the network as it was.
const nap = 3 * time.Second

func openSleep() (*sleep, error) {
	slept, err := timeAsleep()
	if err != nil {
		return nil, err
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	last := unix.ItimerSpec{Value: unix.Timespec{Sec: 1<<31 - 1}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &last, nil); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	return &sleep{os.NewFile(uintptr(fd), "timerfd"), slept}, nil
}

func (s *sleep) Close() error { return s.timer.Close() }

func (s *sleep) watch(signal func()) error {
	var b [8]byte
	for {
		_, err := s.timer.Read(b[:])
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ECANCELED) {
			return err
		}
		slept, err := timeAsleep()
		if err != nil {
			return err
		}
		if slept-s.slept >= nap {
			signal()
		}
		s.slept = slept
	}
}

// timeAsleep returns how long the machine has slept since it started.
func timeAsleep() (time.Duration, error) {
	var boot, awake unix.Timespec
	err := errors.Join(unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake), unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot))
	return time.Duration(boot.Nano() - awake.Nano()), os.NewSyscallError("clock_gettime", err)
}
