package wireguard

import "iter"

// A Bind makes the sockets through which a device sends and receives datagrams. It may also be a [Framer].
type Bind interface {
	// Listen opens a socket on port, or on a port that the Bind chooses if port is 0. The device closes the socket.
	// While a device changes its port, two sockets of one Bind are open at the same time. Listen must not wait: a Bind
	// that connects to a relay returns at once, connects in the background, and drops datagrams until then.
	Listen(port uint16) (Socket, error)
}

// A Framer is a Bind that puts its own header in front of each datagram, such as the header of a relay or of a WebSocket
// message. The device leaves room for this header in every Train that it sends, so that the Bind need not copy the
// datagrams.
type Framer interface {
	// Headroom is the number of bytes in front of each datagram, from 0 to 64. New calls Headroom once.
	Headroom() int
}

// A Socket sends and receives datagrams on one port. It may also be a [Marker] and a [Renewer].
type Socket interface {
	// Port returns the local port, which never changes. The device does not call Port after Close.
	Port() uint16

	// Receivers returns the receivers of the socket. The device calls Receivers once, and reads each receiver on a separate
	// goroutine.
	Receivers() []Receiver

	// Send sends the trains. If Send cannot send a train, it sets the train's Err, which is nil when Send is called. Several
	// goroutines of the device may call Send at the same time. Send may use the trains and their data until it returns. It may
	// write to the headroom of each datagram, and must not change the datagrams.
	//
	// Send tries every train, even if an earlier one failed, and never waits for a single endpoint. If this host no
	// longer has the address in a train's Endpoint.Source, Send tries again without that address and clears
	// Endpoint.Source, whether or not the second attempt succeeds.
	Send(ts []Train)

	// Close unblocks the receivers, which then fail with an error that wraps net.ErrClosed. Trains that a receiver has returned
	// stay valid until Receive is called again. Closing again does nothing.
	//
	// Close must not wait until Receive or Send is called again, because the goroutine that would make this call may be waiting for
	// a lock that the device holds during Close.
	Close() error
}

// A Marker is a Socket that can mark what it sends, for the host's firewall and its policy routing. If a Socket is not a
// Marker, the device refuses every mark other than 0.
type Marker interface {
	// SetMark marks all datagrams that are sent from now on; 0 means no mark. The device calls SetMark with the
	// configured mark after Listen and Renew, unless the mark is 0, and when the mark changes.
	SetMark(mark uint32) error
}

// A Renewer is a Socket that can be replaced without losing datagrams. For a Renewer, [Device.Wake] opens the new socket
// before it closes the old one. If Renew fails, Wake closes the old socket, and then calls Bind.Listen for the same port.
type Renewer interface {
	// Renew opens another socket of the same Bind on the port of this one, which stays open. From then on, all
	// datagrams that arrive go to the new socket. Like Listen, Renew must not wait.
	Renew() (Socket, error)

	// Retire is called after another socket has replaced this one. The receivers of this socket return the datagrams that have
	// already arrived, and then fail with an error that wraps net.ErrClosed. They must fail soon, even if datagrams still arrive,
	// since Wake and Configure wait until they have failed. Send works until Close. The device calls Retire once, and not after
	// Close.
	Retire()
}

// A Receiver reads datagrams from a Socket. A Socket may have several, such as one per address family.
type Receiver interface {
	// Receive waits for datagrams and returns at least one train. The device decrypts messages in place: it may
	// overwrite the memory of the trains until it calls Receive again.
	//
	// An error that wraps net.ErrClosed ends the receiver. The device reports the error to subscribers, unless the device closed
	// the socket itself. After any other error, the device waits for at most 1 s and calls Receive again. It reports such errors
	// at most once per second.
	Receive() ([]Train, error)
}

// A Train holds datagrams to or from one endpoint, back to back in memory. Each is Size bytes long, except for the last
// one, which may be shorter. One system call with segmentation offload carries one train.
//
// If Headroom is not 0, frames lie back to back instead. A frame is Headroom bytes for the Bind's header, followed by a
// datagram:
//
//	|◀────── Size ───────▶|◀────── Size ───────▶|
//	| Headroom | datagram | Headroom | datagram | Headroom | last one |
//
// Every train that a device sends has the Headroom of its Bind. A Receiver may return trains with any Headroom: the device
// skips it.
type Train struct {
	Data     []byte   // the datagrams, without headers of UDP and IP
	Size     int      // bytes of each datagram but the last, including the headroom in front of it; at least 1
	Headroom int      // bytes in front of each datagram that belong to the Bind
	Endpoint Endpoint // where the train is sent to, or was received from
	TOS      uint8    // IPv4 type of service or IPv6 traffic class of the outer packet: DSCP and ECN
	Err      error    // why this train, or a part of it, was not sent; Socket.Send sets it
}

// Len returns the number of datagrams in the train. A Size of 0 or less means one datagram.
func (t *Train) Len() int {
	if len(t.Data) <= t.Size || t.Size <= 0 {
		return 1
	}
	return (len(t.Data) + t.Size - 1) / t.Size
}

// Datagrams returns the datagrams of the train, in place and without their headroom. There are Len of them.
func (t *Train) Datagrams() iter.Seq[[]byte] { return t.parts(t.Headroom) }

// Frames returns the datagrams of the train, in place and each with its headroom in front.
func (t *Train) Frames() iter.Seq[[]byte] { return t.parts(0) }

// parts returns the frames of the train, each without its first skip bytes.
func (t *Train) parts(skip int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		rest := t.Data
		for n := t.Len(); n > 1; n-- {
			if !yield(rest[skip:t.Size:t.Size]) {
				return
			}
			rest = rest[t.Size:]
		}
		yield(rest[min(skip, len(rest)):len(rest):len(rest)])
	}
}
