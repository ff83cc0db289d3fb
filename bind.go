package wireguard

import (
	"iter"
)

// A Bind makes the sockets that a device sends and receives its datagrams with. It may also be a [Framer].
type Bind interface {
	// Listen opens a socket on port, or on a port of its own choice if port is 0. The device closes it. While a
	// device changes its port, two sockets of one Bind are open at the same time. It must not wait: a Bind that
	// connects to a relay does so from then on, and drops meanwhile.
	Listen(port uint16) (Socket, error)
}

// A Framer is a Bind that puts a header of its own in front of each datagram, such as that of a relay or of a WebSocket
// message. The device leaves room for it in every Train that it sends, so that the Bind need not copy.
type Framer interface {
	// Headroom is the number of bytes in front of each datagram, from 0 to 64. New asks for it once.
	Headroom() int
}

// A Socket is an open Bind. It may also be a [Marker].
type Socket interface {
	// Port is the local port, which stays the same. It is not asked for once the socket is closed.
	Port() uint16

	// Receivers are the ways in, one a goroutine: each is used by one goroutine alone. It is called once.
	Receivers() []Receiver

	// Send sends each train and reports the outcome of each in its Err, which arrives nil. It is called
	// concurrently. The trains and their data are borrowed until the return. Send may write to the headroom of each
	// datagram, and must not change the datagrams.
	//
	// It tries every train, whatever happened to the one before, and never waits for a single endpoint. Where a
	// train's Source turns out to be gone from this host, the socket sends once more without it and clears
	// Endpoint.Source, whatever the outcome of the second try.
	Send(ts []Train)

	// Close unblocks the receivers, which then fail with an error that wraps net.ErrClosed. What a receiver
	// returned before stays valid until its next call even so. Closing again does nothing.
	//
	// It must not wait until a receiver is called again, nor for who calls Send: they may be in the device, and wait
	// for a lock that is held during Close.
	Close() error
}

// A Marker is a Socket that can mark what it sends, for the host's firewall and its policy routing. A Socket that is not
// a Marker makes the device refuse a mark other than 0.
type Marker interface {
	// SetMark marks all datagrams from now on; 0 means no mark. The device calls it with Config.FirewallMark after
	// Listen, unless that is 0, and with each later change.
	SetMark(mark uint32) error
}

// A Receiver is one way into a Socket.
type Receiver interface {
	// Receive waits for datagrams and returns at least one train of them. The device opens messages in place: the
	// memory is the caller's to overwrite until the next call, which recycles it.
	//
	// An error that wraps net.ErrClosed ends the receiver; the device tells its subscribers, unless it closed the
	// socket itself. After any other one it tells them too, waits a little, and calls again.
	Receive() ([]Train, error)
}

// A Train is a run of datagrams to or from one endpoint, back to back in memory: each is Size bytes long but for
// the last one, which may be shorter. It is what one system call with segmentation offload carries.
//
// With Headroom, what lies back to back are frames. Each frame is a datagram behind so many bytes for the Bind's header:
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
	Endpoint Endpoint // where to, or where from
	TOS      uint8    // IPv4 type of service or IPv6 traffic class of the outer packet: DSCP and ECN
	Err      error    // set by Socket.Send: why this train, or a part of it, was not sent
}

// Len is the number of datagrams in the train. A Size of 0 or less stands for one datagram.
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
