// Package tun opens the system's TUN interface, which is the packet side of a device.
//
//	wg0, err := tun.Open(tun.Config{Name: "wg0"})
//	d, err := wireguard.New(wireguard.Config{Tunnel: wg0, ...})
//	for s := range wg0.States() { // the tunnel follows the interface up and down
//		if s.Up { err = d.Up() } else { d.Down() }
//	}
//
// On Linux this package talks to the system by itself. Packets of up to 64 KiB cross the system call in both directions
// (TCP and UDP segmentation offload). A large packet from the system is cut straight into the batch, which the device
// seals in place. In the other direction, one writev takes a packet, or a run of packets of one flow, from the memory
// in which the device opened them. Reading uses Go's poller, and an idle interface holds no packet memory. On macOS,
// FreeBSD, OpenBSD and Windows the same functions use golang.zx2c4.com/wireguard/tun. On other systems Open fails.
//
// # Addresses and routes
//
// Open makes the interface and sets its MTU, and nothing else. Another program, or this one, gives it addresses and
// brings it up: "ip address add", "ip link set wg0 up". While the interface is down, packets that arrive through the
// tunnel are dropped and counted.
//
// # What the system counts
//
// On Linux, "ip -s link" counts what crosses the system call. A large packet that the kernel hands over, or that was
// merged from many, counts as one packet with all its bytes and with its headers once. Stats has both counts, so that
// they can be compared.
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
	// Name is the name of the interface. On Linux it may hold %d, which stands for the first free number, and Open takes
	// over an interface that exists if it is a TUN that no program holds ("ip tuntap add"). On macOS it is "utun", for
	// which the system chooses a number, or "utun" and a number. Empty means "wg%d", or the system's equivalent.
	//
	// On Linux, for an interface that it opens by name, Open makes the settings that the kernel's module makes, if the
	// program has the right: no ICMP redirects (send_redirects of the interface and of "all" is 0) and no link-local IPv6
	// address (addr_gen_mode is none).
	Name string

	// File is a descriptor of an interface that another program opened, on Linux with IFF_TUN and IFF_NO_PI, and with or
	// without IFF_VNET_HDR. Open then ignores Name. If Open succeeds, it has duplicated the descriptor and closed File.
	// Windows has no such descriptors. Nil means that Open opens the interface by its name.
	File *os.File

	// MTU is the MTU of the interface, in bytes. Zero means 1420 for an interface that Open opens by its name, and the
	// present MTU of an inherited one.
	MTU int

	// Queues is the number of queues. A device reads each of them as a separate source. Zero means 1. More than 1 needs
	// Linux (IFF_MULTI_QUEUE). Each flow stays on one queue, so that no flow is reordered.
	Queues int

	// NoOffload makes each packet cross the system call by itself, with its checksums computed by the system.
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

// A State is what the system says about an interface. It is a comparable value.
type State struct {
	Up   bool   // whether the interface is administratively up
	MTU  int    // in bytes
	Name string // the present name, since an interface can be renamed
}

// ErrDeleted is returned by [Interface.Err] after the interface was deleted. Device.Err wraps it.
var ErrDeleted = errors.New("tun: the interface was deleted")

// errClosed is what all calls return after Close.
var errClosed = fmt.Errorf("tun: the interface is closed: %w", net.ErrClosed)

// An Interface is an open TUN interface. Open makes it. It must not be copied. It is safe for concurrent use, except that
// each queue has one reader.
type Interface struct {
	status
	system
}

var (
	_ wireguard.Tunnel = (*Interface)(nil)
	_ wireguard.Queues = (*Interface)(nil)
)

// Open opens an interface, or makes one. Its errors say what to do.
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

// WritePackets hands packets to the system and returns how many it took. Packets that the system does not take at once
// are dropped and counted. So are all packets while the interface is down.
func (d *Interface) WritePackets(pkts [][]byte) (int, error) { return d.write(pkts) }

// Queues returns the queues of the interface, one or more. Each is for one reader.
func (d *Interface) Queues() []wireguard.PacketSource { return d.sources() }

// Name returns the present name of the interface.
func (d *Interface) Name() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current.Name
}

// MTU returns the present MTU of the interface, in bytes.
func (d *Interface) MTU() int { return int(d.mtu.Load()) }

// States returns a channel of the interface's states, which begins with the state that Open found. A slow reader gets the
// latest state only. All calls return the same channel. It is closed when the interface is deleted, and by Close.
func (d *Interface) States() <-chan State { return d.states }

// Done returns a channel that is closed when the interface is deleted, and by Close.
func (d *Interface) Done() <-chan struct{} { return d.done }

// Err returns why Done was closed: an error that wraps ErrDeleted, or nil after Close. Before that it returns nil.
func (d *Interface) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close closes the interface. The system then deletes it, unless it is persistent or another program has it open too.
// Reading a queue then fails with an error that wraps net.ErrClosed. Only the first call can fail.
func (d *Interface) Close() error {
	d.end(nil)
	return d.close()
}

// Stats counts what an Interface did since Open. It is a comparable value. ReadCalls and WriteCalls are what the system
// counts as packets; they are 0 on systems other than Linux. All other counts except Refused are of the tunnel's packets,
// after cutting and before merging.
type Stats struct {
	ReadCalls   uint64 // system calls that read a packet
	ReadPackets uint64 // packets read from the system
	ReadBytes   uint64 // bytes of these packets, each with its headers

	WriteCalls     uint64 // system calls that wrote a packet
	WrittenPackets uint64 // packets written to the system
	WrittenBytes   uint64 // bytes of these packets, each with its headers
	Merged         uint64 // packets among WrittenPackets that were merged with others and written in one call

	Malformed uint64 // packets read and dropped because their headers are wrong
	Full      uint64 // packets dropped because the system had no room
	Down      uint64 // packets dropped because the interface was down
	Invalid   uint64 // packets dropped because the system refused them
	Refused   uint64 // merged packets that the system refused, so that their parts were written one by one
}

// A traffic holds the counters behind Stats.
type traffic struct {
	readCalls, readPackets, readBytes               atomic.Uint64
	writeCalls, writtenPackets, writtenBytes        atomic.Uint64
	merged, malformed, full, down, invalid, refused atomic.Uint64
}

// Stats returns the counters. Each is exact, but they are not of one instant. It may be called after Close.
func (d *Interface) Stats() Stats {
	t := &d.traffic
	return Stats{
		ReadCalls: t.readCalls.Load(), ReadPackets: t.readPackets.Load(), ReadBytes: t.readBytes.Load(),
		WriteCalls: t.writeCalls.Load(), WrittenPackets: t.writtenPackets.Load(), WrittenBytes: t.writtenBytes.Load(),
		Merged: t.merged.Load(), Malformed: t.malformed.Load(), Full: t.full.Load(), Down: t.down.Load(),
		Invalid: t.invalid.Load(), Refused: t.refused.Load(),
	}
}

// A status holds the known state of an interface, and publishes it.
type status struct {
	mtu     atomic.Int32
	states  chan State // holds the latest state that was not read
	done    chan struct{}
	traffic traffic

	mu      sync.Mutex // guards the fields below, and the sends and the close of states
	current State
	ended   bool
	err     error
}

func (s *status) init() {
	s.states, s.done = make(chan State, 1), make(chan struct{})
}

// set publishes a state if it is new.
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

// end closes the channels. Only the first call has an effect.
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

// ending returns why the interface can no longer be read or written, or nil.
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
