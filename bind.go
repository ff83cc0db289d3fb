package wireguard

import (
	"iter"
)

// A Bind makes the sockets that a device sends and receives its datagrams with. It may also be a [Framer].
type Bind interface {
	// Listen opens a socket on port, or on a port that it chooses if port is 0. The device closes the socket. While a
	// device changes its port, two sockets of one Bind are open at the same time. Listen must not wait: a Bind that
	// connects to a relay returns at once, connects in the background, and drops datagrams until then.
	Listen(port uint16) (Socket, error)
}

// A Framer is a Bind that puts its own header in front of each datagram, such as the header of a relay or of a WebSocket
// message. The device leaves room for it in every Train that it sends, so that the Bind need not copy.
type Framer interface {
	// Headroom is the number of bytes in front of each datagram, from 0 to 64. New asks for it once.
	Headroom() int
}

// A Socket is an open Bind. It may also be a [Marker] and a [Renewer].
type Socket interface {
	// Port returns the local port, which never changes. The device does not call it after Close.
	Port() uint16

	// Receivers returns the receivers of the socket. The device calls it once, and reads each on one goroutine.
	Receivers() []Receiver

	// Send sends the trains. If one was not sent, Send sets its Err, which is nil before. The device calls Send
	// concurrently. Send may use the trains and their data until it returns. It may write to the headroom of each
	// datagram, and must not change the datagrams.
	//
	// Send tries every train, even if the one before failed, and never waits for a single endpoint. If this host no
	// longer has a train's Source, Send tries again without it and clears Endpoint.Source, whether or not the second
	// attempt succeeds.
	Send(ts []Train)

	// Close unblocks the receivers, which then fail with an error that wraps net.ErrClosed. Trains that a receiver
	// returned before stay valid until its next call. Closing again does nothing.
	//
	// Close must not wait for a receiver to be called again, nor for a goroutine that calls Send: that goroutine may be
	// in the device and wait for a lock that is held during Close.
	Close() error
}

// A Marker is a Socket that can mark what it sends, for the host's firewall and its policy routing. A Socket that is not
// a Marker makes the device refuse a mark other than 0.
type Marker interface {
	// SetMark marks all datagrams from now on; 0 means no mark. The device calls it with Config.FirewallMark after
	// Listen, unless that is 0, and with each later change.
	SetMark(mark uint32) error
}

// A Renewer is a Socket that another socket can take the place of without a loss. [Device.Wake] then opens the new socket
// before it closes the old one. If Renew fails, Wake closes the old socket, and calls Bind.Listen for its port.
type Renewer interface {
	// Renew opens another socket of the same Bind on the port of this one, which stays open. All datagrams that arrive
	// from then on are for the new socket. Like Listen, Renew must not wait.
	Renew() (Socket, error)

	// Retire says that this socket has been replaced. Its receivers return the datagrams that arrived before, and then
	// fail with an error that wraps net.ErrClosed. They must do that soon, even if datagrams still arrive, since Wake and
	// Configure wait for them. Send works until Close. The device calls Retire once, and not after Close.
	Retire()
}

// A Receiver reads datagrams from a Socket. A Socket may have several, such as one per address family.
type Receiver interface {
	// Receive waits for datagrams and returns at least one train. The device opens messages in place: it may overwrite
	// the memory until its next call of Receive.
	//
	// An error that wraps net.ErrClosed ends the receiver. The device reports it to subscribers, unless it closed the
	// socket itself. After any other error the device reports it, waits a little, and calls again.
	Receive() ([]Train, error)
}

// A Train is datagrams to or from one endpoint, back to back in memory. Each is Size bytes long, except for the last one,
// which may be shorter. One system call with segmentation offload carries one train.
//
// With Headroom, frames lie back to back instead. Each frame is Headroom bytes for the Bind's header, and a datagram:
//
//	|◀────── Size ───────▶|◀────── Size ───────▶|
//	| Headroom | datagram | Headroom | datagram | Headroom | last one |
//
// Every train that a device sends has the Headroom of its Bind. A Receiver may return trains with any Headroom: the device
// skips it.
type Train struct {
	Data     []byte   // the datagrams, without headers of UDP and IP
	Size     int      // of each datagram but the last, with its headroom, in bytes; at least 1
	Headroom int      // bytes in front of each datagram that belong to the Bind
	Endpoint Endpoint // the place that the train is sent to, or was received from
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

// Datagrams returns the datagrams of the train, in place and without their headroom: as many as Len says.
func (t *Train) Datagrams() iter.Seq[[]byte] { return t.parts(t.Headroom) }

// Frames returns the datagrams of the train, in place and each with its headroom in front.
func (t *Train) Frames() iter.Seq[[]byte] { return t.parts(0) }

// parts returns the frames of the train without their first bytes.
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
