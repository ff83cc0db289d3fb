// Package wgo lets a program combine this library and golang.zx2c4.com/wireguard (wireguard-go). Each library can use
// the packet and datagram sides of the other:
//
//	Tunnel(tun.Device)           their packet side under our Device: tun/netstack, their TUN, your own
//	Bind(conn.Bind)              their datagram side under our Device: StdNetBind, WinRingBind, your own
//	TUNDevice(wireguard.Tunnel)  our packet side under their device.Device
//	ConnBind(wireguard.Bind)     our datagram side under their device.Device
//
// A program can move from one library to the other one side at a time.
//
// # What it costs
//
// Each adapter copies a packet once. Bind over a StdNetBind copies nothing when it sends. The adapters allocate nothing
// per packet, but wireguard-go's code does. StdNetBind allocates an endpoint for each datagram that it receives (42
// allocations to receive 40 datagrams, none to send them). tun/netstack allocates some buffers for each packet. If a
// conn.Bind has another type of endpoint, Bind makes a string for each datagram to name its endpoint. The interfaces
// need a buffer of 64 KiB for each packet of a batch, which is 8 MiB of heap for a batch of 128. Most of this memory is
// never touched, and so not resident.
//
// Offloads do not pass the adapters, because a tun.Device hands over single packets. A conn.Bind has no type of
// service, so ECN and the DSCP of handshakes are lost.
//
// # Rules of tun.Device that its documentation leaves out
//
// This package keeps the following rules. A tun.Device under Tunnel may rely on them, and must keep its side of them:
//
//   - Room and capacity. Devices write headers in front of a packet: 4 bytes on macOS and the BSDs, 10 bytes with
//     virtio on Linux. So offset is 16, both in Read and in Write. On Linux, Write joins packets of one flow: it
//     appends them to the first packet, up to the capacity of its buffer. So each buffer has 64 KiB, and the bytes
//     after the packet's end are free. The device may use a buffer only until Write returns.
//   - Read has one caller at a time and gets exactly BatchSize buffers. Sizes of 0 are skipped.
//   - Write has many callers at a time, and must serialise them itself if it needs to. It gets at most BatchSize
//     buffers. Do not trust the number that it returns: some devices count packets and some bytes. An error does not
//     mean that nothing was written.
//   - Write may wait until Read is called, as in tun/netstack. So nothing that Read waits for may wait for Write.
//   - Read fails with tun.ErrTooManySegments when some segments did not fit. The segments that did fit are valid, and
//     reading continues. Any other error ends the device in wireguard-go. Here a temporary error does not end it, nor
//     does any other error before eight in a row, so that a single malformed offload header does not take a tunnel
//     down.
//   - An error that is os.ErrClosed means that the device is gone. If nobody called Close, for example because the
//     interface was deleted, the caller must learn about it, so Tunnel returns the error without wrapping os.ErrClosed.
//   - Close is called once. tun/netstack panics at a second call, and also if one of its goroutines has a packet for
//     Read at that moment. So Tunnel calls Close when no Write runs and Read has returned nothing for a moment, and
//     keeps reading until Read says that the device is closed. It cannot do more. A program with a busy sender in
//     tun/netstack must stop it before it closes the device, both here and in wireguard-go.
//   - The events must be read as long as their channel is open, or the device stops. MTU may cost two system calls, so
//     Tunnel calls it only at the start and when an event says so.
//
// # Rules of conn.Bind that its documentation leaves out
//
//   - Close is called before another Open. A conn.Bind is one socket that is open or closed, but a wireguard.Bind makes
//     sockets. A change of port opens the new socket while the old one is still open; see [Bind] for how it bridges
//     that.
//   - Open is called only after every ReceiveFunc of the previous Open has returned, because they may share state.
//   - Open, Close and SetMark exclude each other and Send, because SetMark of StdNetBind reads fields that Close
//     writes.
//   - A ReceiveFunc has one caller, and gets exactly BatchSize buffers of 64 KiB. No other ReceiveFunc may have them at
//     the same time. StdNetBind receives into the last two of 128 buffers, so fewer buffers are an error. Sizes of 0
//     are skipped.
//   - A ReceiveFunc ends with net.ErrClosed. After any other error wireguard-go waits 333 ms and tries again, up to ten
//     times in a row. After a net.Error that is not temporary it does not try again, and receives nothing of that
//     family until the next Open. This library tries again for ever, and tells subscribers.
//   - Send gets at most BatchSize buffers. It may write to them, and behind their end up to their capacity: StdNetBind
//     joins datagrams there. So Bind gives copies to every conn.Bind except StdNetBind. If the datagrams lie back to
//     back, StdNetBind only writes bytes that are already there. An error does not mean that nothing was sent. A
//     conn.ErrUDPGSODisabled that wraps nil is not an error.
//   - An Endpoint that a ReceiveFunc returns belongs to the receiver, and the bind does not use it again. It holds the
//     local address to answer from, which only the bind can put into an Endpoint. ClearSrc changes an Endpoint while
//     other goroutines may send to it. So Bind never calls ClearSrc, and sends to another Endpoint instead. StdNetBind
//     loses the local address if it receives with UDP GRO, as on Linux since 5.0. It then answers from any address.
package wgo
