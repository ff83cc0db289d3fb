// Package wgo lets a program combine this library and golang.zx2c4.com/wireguard (wireguard-go). A device has two sides. Its
// packet side exchanges IP packets with the system or the program, and its datagram side exchanges UDP datagrams with peers.
// With the adapters of this package, a device of one library can use the packet side or the datagram side of the other library:
//
//	Tunnel(tun.Device)           a tun.Device for a Device of this library: tun/netstack, wireguard-go's TUN, your own
//	Bind(conn.Bind)              a conn.Bind for a Device of this library: StdNetBind, WinRingBind, your own
//	TUNDevice(wireguard.Tunnel)  a Tunnel of this library for wireguard-go's device.Device
//	ConnBind(wireguard.Bind)     a Bind of this library for wireguard-go's device.Device
//
// A program can move from one library to the other in steps: first one side of its device, then the other side.
//
// # What it costs
//
// Each adapter copies a packet at most once. Bind copies nothing when it sends through a StdNetBind, and TUNDevice copies nothing
// when it writes. The adapters allocate nothing per packet, but wireguard-go's code does. StdNetBind allocates an endpoint for each
// datagram that it receives (42 allocations to receive 40 datagrams, none to send them). tun/netstack allocates some buffers for
// each packet. If the endpoints of a conn.Bind are not StdNetEndpoints, Bind makes a string for each datagram that it receives. The
// interfaces of wireguard-go need a buffer of 64 KiB for each packet of a batch, which is 8 MiB of heap for a batch of 128. Most of
// this memory is never touched, and so is not resident.
//
// The adapters support no offloads, because a tun.Device passes single packets. A conn.Bind cannot set or report the type of
// service, so ECN and the DSCP of handshake messages are lost.
//
// # Rules of tun.Device that its documentation leaves out
//
// This package keeps the following rules. A tun.Device that is used with Tunnel may rely on them, and must keep those that
// apply to itself:
//
//   - Space in front of and after a packet. A tun.Device writes headers in front of a packet: 4 bytes on macOS and the BSDs, 10
//     bytes with virtio on Linux. So the parameter offset is 16, both in Read and in Write. On Linux, Write joins packets of
//     one flow: it appends them to the first packet, up to the capacity of that packet's buffer. So each buffer has 64 KiB, and
//     Write may use the bytes after the packet's end. The tun.Device may use a buffer only until Write returns.
//   - Only one goroutine at a time calls Read, with exactly BatchSize buffers. The caller ignores packets with a size of 0.
//   - Several goroutines may call Write at the same time. Write must serialise these calls itself if necessary. It gets at most
//     BatchSize buffers. Its callers cannot rely on the number that it returns: some devices return the number of packets and
//     some the number of bytes. An error does not mean that nothing was written.
//   - Write may wait until Read is called, as in tun/netstack. So the goroutine that calls Read must not wait for Write, directly
//     or indirectly.
//   - Read fails with tun.ErrTooManySegments when some segments did not fit. The segments that did fit are valid, and reading
//     continues. In wireguard-go, any other error ends the device. In this package, temporary errors do not end the device, and
//     other errors, except those of the next rule, end it only after eight in a row. So a single malformed offload header does not
//     end the device.
//   - An error that wraps os.ErrClosed means that the tun.Device is closed or deleted. If Close was not called, for example
//     because the interface was deleted, the user must be informed. So Tunnel then returns an error that does not wrap
//     os.ErrClosed.
//   - Close is called once. tun/netstack panics at a second call, and also if one of its goroutines has a packet for Read when
//     Close is called. So Tunnel calls Close when no Write runs and Read has returned no packet for 5 ms, or after 100 ms, and
//     continues to read until Read says that the device is closed. This does not prevent every panic. A program that sends
//     through tun/netstack must stop sending before it closes the device, both with this package and with wireguard-go.
//   - The events must be read as long as their channel is open, because otherwise the tun.Device stops. MTU may make two system
//     calls, so Tunnel calls it only at the start and after an event that says that the MTU has changed.
//
// # Rules of conn.Bind that its documentation leaves out
//
//   - Close is called before another Open. A conn.Bind is a single socket that is open or closed. A wireguard.Bind can have
//     several sockets: when a device of this library changes its port, it opens the new socket while the old one is open.
//     [Bind] describes how the adapter handles this.
//   - Open is called only after every ReceiveFunc of the previous Open has returned, because the functions of both may use the
//     same data.
//   - At most one of Open, Close and SetMark runs at a time, and no Send runs meanwhile, because SetMark of StdNetBind reads
//     fields that Close writes.
//   - Only one goroutine at a time calls a ReceiveFunc, with exactly BatchSize buffers of 64 KiB. Another ReceiveFunc must not
//     get these buffers at the same time. StdNetBind receives into the last two of 128 buffers, so it needs all of them. The
//     caller ignores datagrams with a size of 0.
//   - A ReceiveFunc returns net.ErrClosed after Close. After any other error wireguard-go waits 333 ms and tries again, up to
//     ten times in a row. After a net.Error that is not temporary, it does not try again, and receives nothing with this
//     ReceiveFunc until the next Open. A device of this library tries again for ever, and reports the errors to its
//     subscribers.
//   - Send gets at most BatchSize buffers. It may write to the buffers, and after their end up to their capacity: StdNetBind
//     joins datagrams there. So Bind passes copies to every conn.Bind except StdNetBind. If the datagrams are contiguous in
//     memory, StdNetBind overwrites each byte only with the same value. An error does not mean that nothing was sent. A
//     conn.ErrUDPGSODisabled that wraps nil is not an error.
//   - An Endpoint that a ReceiveFunc returns belongs to the caller, and the conn.Bind does not use it again. It contains the
//     local address to answer from, which only the conn.Bind can store in an Endpoint. ClearSrc changes an Endpoint while other
//     goroutines may send to it. So Bind never calls ClearSrc, and sends to another Endpoint instead. StdNetBind loses the
//     local address if it receives with UDP GRO, as on Linux since 5.0. The system then chooses the address from which it
//     answers.
package wgo
