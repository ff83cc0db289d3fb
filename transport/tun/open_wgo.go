//go:build darwin || freebsd || openbsd || windows

package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/wgo"
	"golang.zx2c4.com/wireguard/tun"
)

// A system is the part of an Interface that uses a TUN of wireguard-go. It has one queue and no offloads.
type system struct {
	dev     tun.Device
	tunnel  wireguard.Tunnel // also a PacketSource
	closing sync.Once
	closed  error
}

// open opens the interface that c describes.
func (d *Interface) open(c *Config) (err error) {
	mtu := c.MTU
	if mtu == 0 && c.File == nil {
		mtu = defaultMTU
	}
	if c.Queues > 1 {
		return fmt.Errorf("tun: an interface of this system has one queue, not %d; leave Queues at 0: %w", c.Queues, errors.ErrUnsupported)
	}
	if c.File != nil {
		d.dev, err = inherited(c.File, mtu)
	} else {
		name := c.Name
		if name == "" {
			name = anyName
		}
		d.dev, err = tun.CreateTUN(name, mtu)
	}
	if err != nil {
		advice := ""
		if errors.Is(err, fs.ErrPermission) {
			advice = "; run as administrator"
		}
		return fmt.Errorf("tun: opening the interface: %w%s", err, advice)
	}
	d.tunnel = wgo.Tunnel(eventless{d.dev})
	first := d.look(State{MTU: defaultMTU})
	if i, err := net.InterfaceByName(first.Name); err == nil {
		first.Up = i.Flags&net.FlagUp != 0
	}
	d.set(first)
	go d.takeEvents() // ends after Close, or when the interface is deleted
	return nil
}

// An eventless is a tun.Device that hides its events from the wgo tunnel. takeEvents reads the events instead, so that they are
// processed even while no goroutine reads packets.
type eventless struct{ tun.Device }

func (eventless) Events() <-chan tun.Event { return nil }

// look returns s with the current name and MTU of the interface.
func (d *Interface) look(s State) State {
	if name, err := d.dev.Name(); err == nil {
		s.Name = name
	}
	if mtu, err := d.dev.MTU(); err == nil {
		s.MTU = mtu
	}
	return s
}

// takeEvents passes the new state of the interface to d.set after each event.
func (d *Interface) takeEvents() {
	for e := range d.dev.Events() {
		d.mu.Lock()
		s := d.current
		d.mu.Unlock()
		switch {
		case e&tun.EventUp != 0:
			s.Up = true
		case e&tun.EventDown != 0:
			s.Up = false
		}
		d.set(d.look(s))
	}
}

func (d *Interface) sources() []wireguard.PacketSource { return []wireguard.PacketSource{queue{d}} }

// A queue is the only queue of an interface.
type queue struct{ d *Interface }

// ReadPackets reads packets from the interface and counts them. If reading fails before Close, the error wraps ErrDeleted.
func (q queue) ReadPackets(b *wireguard.Batch) error {
	d := q.d
	err := d.tunnel.(wireguard.PacketSource).ReadPackets(b)
	n, bytes := b.Len(), 0
	for i := range n {
		bytes += len(b.Packet(i))
	}
	d.traffic.readPackets.Add(uint64(n))
	d.traffic.readBytes.Add(uint64(bytes))
	if err == nil {
		return nil
	}
	// If Close was called before, end has no effect. Otherwise err may still wrap net.ErrClosed, which would look like a call of
	// Close.
	d.end(fmt.Errorf("%w: %v", ErrDeleted, err)) // so err is not wrapped
	return d.ending()
}

func (d *Interface) write(pkts [][]byte) (int, error) {
	bytes := 0
	for _, p := range pkts {
		bytes += len(p)
	}
	n, err := d.tunnel.WritePackets(pkts)
	d.traffic.writtenPackets.Add(uint64(n))
	if n == len(pkts) {
		d.traffic.writtenBytes.Add(uint64(bytes))
	} else {
		d.traffic.invalid.Add(uint64(len(pkts) - n))
	}
	return n, err
}

func (d *Interface) close() error {
	d.closing.Do(func() {
		if d.tunnel != nil {
			d.closed = d.tunnel.Close()
		}
	})
	return d.closed
}
