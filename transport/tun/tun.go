// Package tun is the system's TUN interface as the packet side of a device: what "wg0" is to a daemon.
//
//	device, err := tun.Open(tun.Config{Name: "wg0"})
//	d, err := wireguard.New(wireguard.Config{Tunnel: device, ...})
//	for s := range device.States() { // the interface goes up and down, and the tunnel with it
//		if s.Up { err = d.Up() } else { d.Down() }
//	}
//
// On Linux it is an implementation of its own: packets of up to 64 KiB cross the system call in both directions (TCP
// and UDP segmentation offload), are cut straight into the batch that they are sealed in, and leave by one writev from the
// memory that they were opened in. Reading goes through Go's poller, and an interface where nothing happens holds no
// packet memory. On macOS, FreeBSD, OpenBSD and Windows it is golang.zx2c4.com/wireguard/tun behind the same
// functions. Elsewhere Open fails.
//
// # Addresses and routes
//
// Open makes the interface and sets its MTU, no more. Who configures it brings it up: "ip address add", "ip link set
// wg0 up". Packets that arrive through the tunnel while it is down are dropped and counted.
//
// # What the system counts
//
// On Linux, "ip -s link" counts what crosses the system call: a large packet that the kernel hands over, or that was
// merged from many, is one packet of all its bytes, with its headers once. Stats counts both ways, so the two can be
// compared.
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

// A Config says which interface to open. The zero value makes a new one whose name the system chooses.
type Config struct {
	// Name of the interface. On Linux it may hold %d, for the first number that is free; an interface that exists is
	// used if it is a TUN that no program holds ("ip tuntap add"). On macOS it is "utun", and the system chooses, or
	// "utun" and a number. "": "wg%d", or what the system has in its place.
	Name string

	// File is a descriptor of an interface that another program opened, on Linux with IFF_TUN and IFF_NO_PI, with or
	// without IFF_VNET_HDR; Name is ignored then. A successful Open takes it over: it is closed, after the descriptor has
	// been duplicated. Not on Windows.
	File *os.File

	// MTU in bytes. 0: 1420 for an interface that is opened by its name, and what it has for an inherited one.
	MTU int

	// Queues is the number of queues, each of which is a source of its own to a device. 0 or 1: one. More: on
	// Linux, by IFF_MULTI_QUEUE; flow and queue stay paired, so that no flow is reordered. Elsewhere one is all.
	Queues int

	// NoOffload makes each packet cross the system call by itself, with its checksums done by the system.
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
		return errors.New("tun: an inherited descriptor is one queue; leave Queues at 0")
	}
	return nil
}

// A State is what the system says of an interface.
type State struct {
	Up   bool   // by its administrator
	MTU  int    // in bytes
	Name string // now: an interface can be renamed
}

// ErrDeleted is why a Device ends whose interface was deleted.
var ErrDeleted = errors.New("tun: the interface was deleted")

// errClosed is what all calls return after Close.
var errClosed = fmt.Errorf("tun: the interface is closed: %w", net.ErrClosed)

// A Device is an open TUN interface. It is made by Open, must not be copied, and is safe for concurrent use, but that
// each queue has one reader.
type Device struct {
	status
	system
}

var (
	_ wireguard.Tunnel = (*Device)(nil)
	_ wireguard.Queues = (*Device)(nil)
)

// Open opens an interface, or makes it. An error says what to do about it.
func Open(c Config) (*Device, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	d := new(Device)
	d.status.init()
	if err := d.open(&c); err != nil {
		return nil, err
	}
	return d, nil
}

// WritePackets hands packets to the system and returns how many it took. What it does not take at once is dropped and
// counted: all packets while the interface is down.
func (d *Device) WritePackets(pkts [][]byte) (int, error) { return d.write(pkts) }

// Queues are the queues of the interface, one or more, each for one reader.
func (d *Device) Queues() []wireguard.PacketSource { return d.sources() }

// Name is what the interface is called now.
func (d *Device) Name() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current.Name
}

// MTU is that of the interface now, in bytes.
func (d *Device) MTU() int { return int(d.mtu.Load()) }

// States tells the state of the interface: at first the one that Open found, and then each that follows. Only the latest
// waits for a slow reader. There is one channel, which is closed when the interface is gone, or by Close.
func (d *Device) States() <-chan State { return d.states }

// Done is closed when the interface is gone, or by Close.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err is why Done was closed: ErrDeleted, or nil if it was by Close or has not been.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close closes the interface, which goes away with it unless it is persistent or another program has it open too.
// Reading a queue then fails with an error that wraps net.ErrClosed. Only the first call can fail.
func (d *Device) Close() error {
	d.end(nil)
	return d.close()
}

// Stats is what a Device did since Open. Calls count system calls that moved a packet, as the system counts packets
// itself; packets are those of the tunnel, after cutting and before merging. On systems other than Linux the calls
// are not known, and are 0.
type Stats struct {
	ReadCalls   uint64 // that got a packet
	ReadPackets uint64 // from the system
	ReadBytes   uint64 // of packets, each with its headers

	WriteCalls     uint64 // that put a packet
	WrittenPackets uint64 // to the system
	WrittenBytes   uint64 // of packets, each with its headers
	Merged         uint64 // of WrittenPackets, those that left together with others

	Malformed uint64 // packets read that make no sense, dropped
	Full      uint64 // packets dropped because the system had no room
	Down      uint64 // packets dropped because the interface was down
	Invalid   uint64 // packets dropped because the system refused them
	Refused   uint64 // merged packets that the system refused, and that went out one by one
}

// A traffic counts.
type traffic struct {
	readCalls, readPackets, readBytes               atomic.Uint64
	writeCalls, writtenPackets, writtenBytes        atomic.Uint64
	merged, malformed, full, down, invalid, refused atomic.Uint64
}

// Stats returns the counters, each exact but not all of one instant. It may be called after Close.
func (d *Device) Stats() Stats {
	t := &d.traffic
	return Stats{
		ReadCalls: t.readCalls.Load(), ReadPackets: t.readPackets.Load(), ReadBytes: t.readBytes.Load(),
		WriteCalls: t.writeCalls.Load(), WrittenPackets: t.writtenPackets.Load(), WrittenBytes: t.writtenBytes.Load(),
		Merged: t.merged.Load(), Malformed: t.malformed.Load(), Full: t.full.Load(), Down: t.down.Load(),
		Invalid: t.invalid.Load(), Refused: t.refused.Load(),
	}
}

// A status is what is known of an interface, and who is told.
type status struct {
	mtu     atomic.Int32
	states  chan State // holds the latest that was not read
	done    chan struct{}
	traffic traffic

	mu      sync.Mutex // guards all below, and sending to states and closing it
	current State
	ended   bool
	err     error
}

func (s *status) init() {
	s.states, s.done = make(chan State, 1), make(chan struct{})
}

// set publishes a state that is new.
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

// end closes the channels, the first time.
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

// ending is why nothing can be read or written any more, or nil.
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
