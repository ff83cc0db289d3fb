// Package tun opens a TUN interface of the system, through which a device exchanges packets with the system.
//
//	wg0, err := tun.Open(tun.Config{Name: "wg0"})
//	d, err := wireguard.New(wireguard.Config{Tunnel: wg0, ...})
//	for s := range wg0.States() { // set the device up and down with the interface
//		if s.Up { err = d.Up() } else { d.Down() }
//	}
//
// On Linux this package makes the system calls itself. It uses TCP and UDP segmentation offload: one system call reads or
// writes a packet of up to 64 KiB, which stands for many packets of the tunnel. When a queue reads a large packet, it copies
// the packet's segments into the batch, in which the device then encrypts them. In the other direction, one writev writes a
// packet, or several consecutive packets of one flow, from the memory in which the device has decrypted them. Reading uses Go's
// poller, and an idle interface holds no packet memory. On macOS, FreeBSD, OpenBSD and Windows, this package uses
// golang.zx2c4.com/wireguard/tun. On other systems Open fails.
//
// # Addresses and routes
//
// Open makes the interface and sets its MTU, but gives it no addresses and does not bring it up. The program itself or another
// program has to do that, for example with "ip address add" and "ip link set wg0 up". While the interface is down, packets that
// arrive through the tunnel are dropped and counted.
//
// # What the system counts
//
// On Linux, "ip -s link" counts each packet that one system call reads or writes. A large packet counts there as one packet,
// and the bytes of its headers count once. Stats counts both these system calls and the packets of the tunnel, so that the
// numbers can be compared.
package tun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
)

// A Config says which interface to open. The zero value makes a new interface whose name the system chooses.
type Config struct {
	// Name is the name of the interface. On Linux it may contain %d, which stands for the first free number. If a TUN of this
	// name exists on Linux and no program has it open ("ip tuntap add"), Open uses that TUN. On macOS the name is "utun", to
	// which the system adds a number, or "utun" and a number. Empty means "wg%d", or the system's equivalent.
	//
	// On Linux, if the program has the right, Open also configures an interface that it opens by name as the kernel's WireGuard
	// module does. It disables ICMP redirects (it sets send_redirects of the interface and of "all" to 0) and the link-local
	// IPv6 address (it sets addr_gen_mode to none).
	Name string

	// File is a descriptor of an interface that another program opened. On Linux that program must have set IFF_TUN and
	// IFF_NO_PI, and may have set IFF_VNET_HDR. With a File, Open ignores Name. If Open succeeds, it has duplicated the
	// descriptor and closed File. Windows has no such descriptors. Nil means that Open opens the interface by its name.
	File *os.File

	// MTU is the MTU of the interface, in bytes. Zero means 1420 for an interface that Open opens by its name. For an interface
	// of a File, zero means that its MTU is not changed.
	MTU int

	// Queues is the number of queues. A device reads each queue on a separate goroutine. Zero means 1. Only Linux supports more
	// than one queue (IFF_MULTI_QUEUE). The packets of one flow use the same queue, so that they stay in order.
	Queues int

	// NoOffload disables segmentation offload. Each system call then reads or writes one packet of the tunnel, and the system
	// computes the checksums of the packets that it sends.
	NoOffload bool
}

const (
	defaultMTU = 1420
	maxQueues  = 256 // MAX_TAP_QUEUES of Linux
)

func (c *Config) check() error {
	switch {
	case c.MTU < 0 || c.MTU > 65535:
		return fmt.Errorf("tun: an MTU of %d is not between 68 and 65535", c.MTU)
	case c.Queues < 0 || c.Queues > maxQueues:
		return fmt.Errorf("tun: %d queues are not between 0 and %d", c.Queues, maxQueues)
	case c.Queues > 1 && c.File != nil:
		return errors.New("tun: an inherited descriptor has one queue; leave Queues at 0")
	}
	return nil
}

// A State is the state of an interface, as the system reports it. State is a comparable type.
type State struct {
	Up   bool   // whether the interface is administratively up
	MTU  int    // in bytes
	Name string // the current name, since an interface can be renamed
}

// ErrDeleted is returned by [Interface.Err] after the interface was deleted. The error that Device.Err returns wraps it.
var ErrDeleted = errors.New("tun: the interface was deleted")

// errClosed is the error of calls after Close.
var errClosed = fmt.Errorf("tun: the interface is closed: %w", net.ErrClosed)

// An Interface is an open TUN interface. Open makes it. It must not be copied. It is safe for concurrent use, except that only
// one goroutine at a time may read a queue.
type Interface struct {
	status
	system
}

var (
	_ wireguard.Tunnel = (*Interface)(nil)
	_ wireguard.Queues = (*Interface)(nil)
)

// Open makes an interface, or opens one that exists. Its errors say what the user can do.
func Open(c Config) (*Interface, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	d := new(Interface)
	d.status.init()
	if err := d.open(&c); err != nil {
		return nil, err
	}
	return d, nil
}

// WritePackets writes packets to the system and returns how many packets the system accepted. It drops and counts each packet
// that the system does not accept at once. While the interface is down, the system accepts none.
func (d *Interface) WritePackets(pkts [][]byte) (int, error) { return d.write(pkts) }

// Queues returns the queues of the interface, one or more. Only one goroutine at a time may read each of them.
func (d *Interface) Queues() []wireguard.PacketSource { return d.sources() }

// Name returns the current name of the interface.
func (d *Interface) Name() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current.Name
}

// MTU returns the current MTU of the interface, in bytes.
func (d *Interface) MTU() int { return int(d.mtu.Load()) }

// States returns a channel from which each new state of the interface can be received. The first state is the one that Open
// found. If a state is not received before the next change, the new state replaces it. All calls return the same channel. The
// channel is closed when the interface is deleted or can no longer be read, and by Close.
func (d *Interface) States() <-chan State { return d.states }

// Done returns a channel that is closed when the interface is deleted or can no longer be read, and by Close.
func (d *Interface) Done() <-chan struct{} { return d.done }

// Err returns the reason why the channel of Done was closed: an error that wraps ErrDeleted if the interface was deleted,
// another error if reading it failed, or nil if Close closed the channel. While the channel is open, Err returns nil.
func (d *Interface) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close closes the interface. The system then deletes the interface, except if it is persistent or if another program has it
// open. After Close, reading a queue fails with an error that wraps net.ErrClosed. All calls of Close return the same error.
func (d *Interface) Close() error {
	d.end(nil)
	return d.close()
}

// Stats counts what an Interface has done since Open. Stats is a comparable type. ReadCalls and WriteCalls are equal to the
// numbers of packets that the system counts; they are 0 on systems other than Linux. All other counters except Malformed and
// Refused count packets of the tunnel: a large packet from the system counts as all of its segments, and a merged packet as all
// packets that were merged.
type Stats struct {
	ReadCalls   uint64 // system calls that read a packet
	ReadPackets uint64 // packets read from the system
	ReadBytes   uint64 // bytes of the packets read, with the headers of each packet

	WriteCalls     uint64 // system calls that wrote a packet
	WrittenPackets uint64 // packets written to the system
	WrittenBytes   uint64 // bytes of the packets written, with the headers of each packet
	Merged         uint64 // packets among WrittenPackets that were merged with others and written in one call

	Malformed uint64 // packets read and dropped because their headers are wrong
	Full      uint64 // packets dropped because the system had no space for them
	Down      uint64 // packets dropped because the interface was down
	Invalid   uint64 // packets dropped because the system refused them
	Refused   uint64 // merged packets that the system refused, so that their parts were written one by one
}

// A traffic holds the counters that Stats returns.
type traffic struct {
	readCalls, readPackets, readBytes               atomic.Uint64
	writeCalls, writtenPackets, writtenBytes        atomic.Uint64
	merged, malformed, full, down, invalid, refused atomic.Uint64
}

// Stats returns the counters. Each counter is exact, but the counters are not read at the same instant. Stats may be called
// after Close.
func (d *Interface) Stats() Stats {
	t := &d.traffic
	return Stats{
		ReadCalls: t.readCalls.Load(), ReadPackets: t.readPackets.Load(), ReadBytes: t.readBytes.Load(),
		WriteCalls: t.writeCalls.Load(), WrittenPackets: t.writtenPackets.Load(), WrittenBytes: t.writtenBytes.Load(),
		Merged: t.merged.Load(), Malformed: t.malformed.Load(), Full: t.full.Load(), Down: t.down.Load(),
		Invalid: t.invalid.Load(), Refused: t.refused.Load(),
	}
}

// A status holds the latest known state of an interface, and sends each new state to the channel of States.
type status struct {
	mtu     atomic.Int32
	states  chan State // its buffer holds the latest state until it is received
	done    chan struct{}
	traffic traffic

	mu      sync.Mutex // guards the fields below; also locked while states is sent to or closed
	current State
	ended   bool
	err     error
}

func (s *status) init() {
	s.states, s.done = make(chan State, 1), make(chan struct{})
}

// set stores a new state, and sends it to the channel of States. It does nothing if the state has not changed.
func (s *status) set(now State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || now == s.current {
		return
	}
	s.current = now
	s.mtu.Store(int32(now.MTU))
	select {
	case <-s.states:
	default:
	}
	s.states <- now
}

// end closes the channels of States and Done, and stores err for Err. Only the first call has an effect.
func (s *status) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended, s.err = true, err
	close(s.states)
	close(s.done)
}

// ending returns the error that says why the interface can no longer be read or written, or nil if it can.
func (s *status) ending() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.ended:
		return nil
	case s.err == nil:
		return errClosed
	}
	return s.err
}
