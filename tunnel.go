package wireguard

// A PacketSource yields IP packets to be tunnelled. The device reads each source for itself: one call at a time, which
// sees what the one before wrote, though while much comes not always from the same goroutine.
type PacketSource interface {
	// ReadPackets waits until packets are ready, puts as many as are ready and fit into b, and returns.
	// It never waits once b holds a packet. b arrives empty and belongs to the source until the return.
	//
	// Packets put into b before an error are still sent. io.EOF says that there will be no more, and ends the
	// reading. Any other error means that the tunnel is gone: it ends the device, which reports it from Device.Err.
	ReadPackets(b *Batch) error
}

// A PacketSink takes IP packets that arrived through the tunnel.
type PacketSink interface {
	// WritePackets delivers pkts in order and returns how many were taken; the device counts the others as
	// dropped. Each element is one IPv4 or IPv6 packet, exactly as long as its header says.
	//
	// The sink may use and overwrite the packets, within their length, until it returns. It must not wait: it drops
	// what it cannot take at once.
	//
	// The device calls it concurrently, from one goroutine per Receiver, and from others with its own ICMP errors. A
	// peer's packets that arrive through one Receiver are in order. When they begin to arrive through another Receiver,
	// the first of them may overtake the last from the Receiver before. That happens when the peer changes to an address
	// or a family that has another Receiver, and when this device changes its port or wakes up, which replaces all
	// Receivers.
	WritePackets(pkts [][]byte) (n int, err error)
}

// A Tunnel is the plaintext side of a device, in both directions. Packets that arrived through the device go to its
// WritePackets. Packets to be sent come from one of three interfaces, which a Tunnel implements as well:
//
//   - [PacketSource]: the device reads it.
//   - [Queues]: the device reads several sources, each on its own.
//   - [Attacher]: it is not read; it calls Device.Send.
//
// New refuses a Tunnel that implements none of them. The device uses Attach alone if a Tunnel is an Attacher, and Queues
// alone if it has both Queues and ReadPackets. A type that wraps a Tunnel has to implement the interface again: embedding a
// Tunnel does not pass it on.
type Tunnel interface {
	PacketSink

	// MTU is the largest packet, in bytes, that the tunnel carries. It may change while the device runs. The device
	// calls it from several goroutines, about once per batch.
	MTU() int

	// Close unblocks every ReadPackets, which then fails with an error that wraps net.ErrClosed or os.ErrClosed.
	Close() error
}

// Queues is implemented by a Tunnel that has several sources of packets, such as the queues of a network interface.
type Queues interface {
	// Queues returns the sources. The device calls it once, in the first Up, and reads each source on its own.
	Queues() []PacketSource
}

// An Attacher is a Tunnel that pushes its packets. No goroutine of the device reads it.
type Attacher interface {
	// Attach hands over the device. New calls it once. From then on the Tunnel calls Device.Send, from any goroutine.
	// Send drops and counts packets before Device.Up and after Device.Down.
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

// sources returns what the device reads of t.
func sources(t Tunnel) []PacketSource {
	switch t := t.(type) {
	case Attacher:
		return nil
	case Queues:
		return t.Queues()
	}
	return []PacketSource{t.(PacketSource)}
}
