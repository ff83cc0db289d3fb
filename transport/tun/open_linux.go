//go:build linux && !android

package tun

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

const (
	path = "/dev/net/tun"

	tunFeatures = unix.IFF_TUN | unix.IFF_NO_PI
)

// A system is the part of an Interface that is specific to Linux.
type system struct {
	queues []*queue
	header int                 // bytes in front of each packet that is read or written: virtioSize or 0
	merges [kinds]atomic.Int32 // what is known about merging each kind of packet: mergeProven to mergeRefused
	flows  *flows              // nil with one queue

	place   place          // sockets for the follower, the goroutine that runs followStates; replaced and closed with mu held
	follow  sync.WaitGroup // waits for the follower
	closing sync.Once
	closed  error

	// These functions make the system calls. Tests replace them.
	read   func(fd uintptr, b []byte) (int, syscall.Errno)
	writev func(fd uintptr, iov []unix.Iovec) (int, syscall.Errno)
}

// open opens the interface that c describes, and starts the follower.
func (d *Interface) open(c *Config) (err error) {
	defer func() {
		if err != nil {
			d.end(nil)
			_ = d.close()
		}
	}()
	d.read, d.writev = read, writev
	if c.File != nil {
		d.read, d.writev = readShared, writevShared
	}
	name, err := d.attach(c)
	if err != nil {
		return err
	}
	if c.File == nil {
		settle(name)
	}
	d.place, err = d.locate()
	if err != nil && (c.File == nil || !errors.Is(err, errElsewhere) || c.MTU > 0) {
		return fmt.Errorf("tun: looking up %s: %w", name, err)
	}
	mtu := c.MTU
	if mtu == 0 && c.File == nil {
		mtu = defaultMTU
	}
	if mtu > 0 {
		if err := d.place.setMTU(name, mtu); err != nil {
			return fmt.Errorf("tun: setting the MTU of %s to %d: %w", name, mtu, err)
		}
	}
	if now, err := d.look(&d.place); err == nil {
		d.set(now)
	} else {
		// The state can be unknown only if the interface is inherited and is in a network namespace that this program may not
		// enter.
		d.set(State{Up: true, MTU: defaultMTU, Name: name})
	}
	d.follow.Add(1)
	go d.followStates()
	return nil
}

// attach opens the queues and returns the name of the interface.
func (d *Interface) attach(c *Config) (name string, err error) {
	var fds []int
	if c.File != nil {
		fd, err := duplicate(c.File)
		if err != nil {
			return "", fmt.Errorf("tun: the inherited descriptor: %w", err)
		}
		fds = []int{fd}
	} else if fds, err = create(c); err != nil {
		return "", err
	}
	name, flags, err := ask(fds[0])
	if err == nil {
		err = d.configure(fds[0], flags, c.NoOffload)
	}
	if err != nil {
		closeAll(fds)
		return "", fmt.Errorf("tun: %w", err)
	}
	if len(fds) > 1 {
		d.flows = new(flows)
	}
	for i, fd := range fds {
		// Make the os.File, which registers the descriptor with the poller, only now. The poller reports an error for a
		// descriptor that has not been attached to an interface.
		q := newQueue(d, i, os.NewFile(uintptr(fd), path))
		d.queues = append(d.queues, q)
		if err == nil {
			q.raw, err = q.file.SyscallConn()
		}
	}
	if err == nil && c.File != nil {
		err = c.File.Close()
	}
	return name, err
}

// create opens the interface with c's name. It returns one descriptor for each queue.
func create(c *Config) (fds []int, err error) {
	name := c.Name
	if name == "" {
		name = "wg%d"
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	flags := uint16(tunFeatures)
	if !c.NoOffload {
		flags |= unix.IFF_VNET_HDR
	}
	if c.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	for range max(1, c.Queues) {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("tun: opening %s: %w%s", path, err, adviceOpen(err))
		}
		fds = append(fds, fd)
		r, err := unix.NewIfreq(name)
		if err == nil {
			r.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
		}
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("tun: making the interface %q: %w%s", name, err, adviceAttach(err, c))
		}
		name = r.Name() // the next queues are attached to the interface that the first call made
	}
	return fds, nil
}

// checkName returns an error for names that the kernel would refuse with EINVAL, which does not say what is wrong.
func checkName(name string) error {
	switch {
	case len(name) >= unix.IFNAMSIZ:
		return fmt.Errorf("tun: the name %q is longer than %d bytes", name, unix.IFNAMSIZ-1)
	case name == "." || name == "..", strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' }),
		strings.Count(name, "%") != strings.Count(name, "%d"), strings.Count(name, "%") > 1:
		return fmt.Errorf("tun: the name %q is not valid for an interface: use no space, slash or colon, and %% only in one %%d", name)
	}
	return nil
}

func adviceOpen(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "; load the module (modprobe tun), or give the container the device (--device " + path + ")"
	case (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) && os.Geteuid() == 0:
		return "; give the container the device (--device " + path + ")" // the kernel refuses root only inside a container
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "; run as root, or give this user access to it"
	}
	return ""
}

func adviceAttach(err error, c *Config) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "; run as root or with CAP_NET_ADMIN, or have root make the interface for this user (ip tuntap add mode tun user NAME), or hand in its descriptor"
	case errors.Is(err, unix.EBUSY):
		return "; another program has an interface of this name open: stop that program, or choose another name"
	case errors.Is(err, unix.EINVAL) && c.Queues > 1:
		return "; an interface of this name exists and is not a TUN with several queues: delete it, or choose another name"
	case errors.Is(err, unix.EINVAL):
		return "; an interface of this name exists and is not a TUN, or has several queues: delete it, or choose another name"
	}
	return ""
}

// duplicate returns a non-blocking duplicate of f's descriptor.
func duplicate(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return -1, e
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	return fd, err
}

// ask returns the name and the flags of the interface that fd is attached to.
func ask(fd int) (name string, flags uint16, err error) {
	r, _ := unix.NewIfreq("")
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, r); err != nil {
		return "", 0, fmt.Errorf("asking for the interface of the descriptor: %w", err)
	}
	return r.Name(), r.Uint16(), nil
}

// configure sets the size of the virtio header that precedes each packet, and the offloads.
func (d *Interface) configure(fd int, flags uint16, noOffload bool) error {
	// The flags do not show whether IFF_NO_PI is set, because the kernel uses its bit for IFF_NOFILTER here.
	if flags&unix.IFF_TUN == 0 {
		return errors.New("the interface of the descriptor carries Ethernet frames; open it with IFF_TUN and IFF_NO_PI")
	}
	if flags&unix.IFF_VNET_HDR != 0 {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, virtioSize); err != nil {
			return fmt.Errorf("setting the size of the header: %w", err)
		}
		d.header = virtioSize
	}
	on := offload(d.header > 0 && !noOffload, func(offloads int) error {
		return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads)
	})
	for kind, feature := range [kinds]int{tcp4: unix.TUN_F_TSO4, tcp6: unix.TUN_F_TSO6, udp4: unix.TUN_F_USO4, udp6: unix.TUN_F_USO6} {
		if on&feature == 0 {
			d.merges[kind].Store(mergeRefused)
		}
	}
	return nil
}

// offload calls set with the offloads that this package can use, and then with fewer and fewer offloads until set succeeds. It
// returns the offloads that are then on. UDP segmentation needs Linux 6.2. If wanted is false, offload sets no offloads.
func offload(wanted bool, set func(offloads int) error) (on int) {
	const (
		tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		ecn = tcp | unix.TUN_F_TSO_ECN
	)
	if wanted {
		for _, offloads := range []int{ecn | unix.TUN_F_USO4 | unix.TUN_F_USO6, ecn, tcp, unix.TUN_F_CSUM} {
			if set(offloads) == nil {
				return offloads
			}
		}
	}
	_ = set(0) // an inherited interface may have offloads on; if it does not accept this call, it has none
	return 0
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (d *Interface) sources() []wireguard.PacketSource {
	s := make([]wireguard.PacketSource, len(d.queues))
	for i, q := range d.queues {
		s[i] = q
	}
	return s
}

// close closes the queues and waits until the follower has ended. It must be called after end, because the follower runs until
// end is called.
func (d *Interface) close() error {
	d.closing.Do(func() {
		for _, q := range d.queues {
			if err := q.file.Close(); err != nil && d.closed == nil {
				d.closed = err
			}
		}
		d.leave()
		d.follow.Wait()
	})
	return d.closed
}
