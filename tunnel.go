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
	// The packets are borrowed until the return and may be overwritten by the sink, within their length. It must
	// not wait: what cannot be taken at once is dropped.
	//
	// It is called concurrently, by a goroutine for each Receiver, and by others with ICMP errors of the device's own.
	// The packets of a peer that came by one Receiver are in order. When the peer's packets begin to come by another
	// one, their first may overtake the last of the one before: where the peer, or the way to it, changes to a family
	// or address that has a Receiver of its own; and where this device changes its port or wakes up, which replaces
	// all Receivers.
	WritePackets(pkts [][]byte) (n int, err error)
}

// A Tunnel is the plaintext side of a device, both directions of it.
//
// A Tunnel may have more powers, which the device finds by type assertion:
//
//   - Attach(*Device): it pushes its packets through Device.Send, from its own goroutines, and is not read at
//     all; see [Attacher].
//   - Queues() []PacketSource: it has several queues. Each is a source of its own, and ReadPackets of the Tunnel itself
//     is not called.
type Tunnel interface {
	PacketSource
	PacketSink

	// MTU is the largest packet, in bytes, that the tunnel carries. It may change while the device runs, and is
	// called from several goroutines, about once a batch.
	MTU() int

	// Close unblocks ReadPackets, which then fails with an error that wraps net.ErrClosed or os.ErrClosed.
	Close() error
}

// An Attacher is a Tunnel that pushes: New hands it the device, and from then on it calls Device.Send from any
// goroutine it likes. No goroutine reads it. Before Device.Up and after Device.Down, Send drops and counts.
type Attacher interface {
	Tunnel
	Attach(d *Device)
}
