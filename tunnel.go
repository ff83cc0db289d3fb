package wireguard

// A PacketSource yields IP packets to be tunnelled. The device reads each source separately, one call at a time. The
// calls may come from different goroutines, but each call sees what the previous one wrote to memory.
type PacketSource interface {
	// ReadPackets waits until packets are ready, puts as many of them into b as fit, and returns. It never waits once b holds a
	// packet. The device passes an empty b. The source must not use b after ReadPackets has returned.
	//
	// Packets put into b before an error are still sent. io.EOF means that no more packets will follow: the device
	// stops reading this source. Any other error means that the tunnel is gone: the device ends, and Device.Err returns
	// an error that wraps it.
	ReadPackets(b *Batch) error
}

// A PacketSink takes IP packets that arrived through the tunnel.
type PacketSink interface {
	// WritePackets delivers pkts in order and returns how many of them the sink took; the device counts the others as dropped. Each
	// element is one IPv4 or IPv6 packet, exactly as long as its header says.
	//
	// The sink may use and overwrite the packets, within their length, until it returns. It must not wait: it drops
	// what it cannot take at once.
	//
	// The device calls WritePackets concurrently: from one goroutine per Receiver, and from other goroutines with ICMP
	// errors that the device makes. A peer's packets that arrive through one Receiver are delivered in order. When they
	// begin to arrive through another Receiver, the first ones from the new Receiver may overtake the last ones from the
	// old Receiver. That happens when the peer changes to an address or an address family that another Receiver reads.
	// It also happens when this device changes its port or wakes up, which replaces all Receivers.
	WritePackets(pkts [][]byte) (n int, err error)
}

// A Tunnel is the plaintext side of a device, in both directions. The device passes the packets that arrive from peers to
// WritePackets. To supply the packets that the device sends, a Tunnel also implements one of three interfaces:
//
//   - [PacketSource]: the device reads it.
//   - [Queues]: the device reads several sources separately.
//   - [Attacher]: the device does not read the Tunnel; the Tunnel calls Device.Send.
//
// New refuses a Tunnel that implements none of them. If a Tunnel is an Attacher, the device uses Attach alone. If a Tunnel has
// both Queues and ReadPackets, the device uses Queues alone. A type that wraps a Tunnel has to implement one of the three
// interfaces itself: a type that embeds a Tunnel gets only the methods of Tunnel.
type Tunnel interface {
	PacketSink

	// MTU is the largest packet, in bytes, that the tunnel carries. It may change while the device runs. The device
	// calls MTU from several goroutines, about once per batch.
	MTU() int

	// Close unblocks every call of ReadPackets, which then fails with an error that wraps net.ErrClosed or os.ErrClosed.
	Close() error
}

// Queues is implemented by a Tunnel that has several sources of packets, such as the queues of a network interface.
type Queues interface {
	// Queues returns the sources. The device calls Queues once, in the first Up, and reads the sources separately.
	Queues() []PacketSource
}

// An Attacher is a Tunnel that pushes its packets into the device. No goroutine of the device reads it.
type Attacher interface {
	// Attach gives the device to the Tunnel. New calls Attach once. From then on, the Tunnel may call Device.Send from any
	// goroutine. Send drops and counts packets before Device.Up and after Device.Down.
	Attach(d *Device)
}

// hasPackets reports whether packets can come from t.
func hasPackets(t Tunnel) bool {
	switch t.(type) {
	case Attacher, Queues, PacketSource:
		return true
	}
	return false
}

// sources returns the sources of t that the device reads; an Attacher has none.
func sources(t Tunnel) []PacketSource {
	switch t := t.(type) {
	case Attacher:
		return nil
	case Queues:
		return t.Queues()
	}
	return []PacketSource{t.(PacketSource)}
}
