// Package wgo lets this library and golang.zx2c4.com/wireguard (wireguard-go) use each other's packet and datagram sides:
//
//	Tunnel(tun.Device)           their packet side under our Device: tun/netstack, a TUN of theirs, your own
//	Bind(conn.Bind)              their datagram side under our Device: StdNetBind, WinRingBind, your own
//	TUNDevice(wireguard.Tunnel)  our packet side under their device.Device
//	ConnBind(wireguard.Bind)     our datagram side under their device.Device
//
// A program can move from one library to the other one side at a time.
//
// # What it costs
//
// Each adapter copies a packet once. Sending by Bind over a StdNetBind copies nothing. The adapters allocate nothing per
// packet, but wireguard-go's side of them does: StdNetBind allocates an endpoint for each datagram that it receives (42
// allocations for 40 datagrams, and none for sending them), and tun/netstack some buffers for each packet. A conn.Bind with
// endpoints of its own type names each by a string, which is made anew for each datagram. The interfaces ask for buffers of
// 64 KiB for each packet of a batch, which is 8 MiB of heap for a batch of 128. Most of it is never touched, and so not
// resident.
//
// Offloads do not cross: a tun.Device hands over single packets. A conn.Bind has no type of service, so ECN and the mark on
// handshakes are lost.
//
// # Rules of tun.Device that its documentation leaves out
//
// What is kept here, and what an implementation of one may rely on or must do when it is used through Tunnel:
//
//   - Room and capacity. Devices write headers of their own in front of a packet: 4 bytes on macOS and the BSDs, 10
//     with virtio on Linux. So offset is never 0; it is 16, both in Read and in Write. On Linux, Write joins packets of
//     one flow by appending to the first of them, up to the capacity of its buffer. So each buffer is 64 KiB, of
//     which nothing behind the packet's end is anyone's. A buffer is the device's until Write returns, not longer.
//   - Read has one caller at a time and gets exactly BatchSize buffers. Sizes of 0 are skipped.
//   - Write has many at a time; it serialises itself where it must. It gets at most BatchSize buffers. What it
//     returns is not to be trusted: some count packets and some bytes. An error does not mean that nothing was
//     written.
//   - Write may wait until Read is called: tun/netstack does. So nothing that Read waits for may wait for Write.
//   - Read fails with tun.ErrTooManySegments when some segments did not fit: the ones that did are good, and reading
//     goes on. To wireguard-go every other error is the end of the device. Here one that is temporary by its own word
//     is not, and neither is any until it has come eight times in a row: a single malformed offload header is no
//     reason to take a tunnel down.
//   - An error that is os.ErrClosed says that the device has gone. When nobody called Close, as when an interface is
//     deleted, that is an end to report, so Tunnel hands it on without that wrapping.
//   - Close is called once; tun/netstack panics otherwise, and also if one of its goroutines has a packet for Read just
//     then. So Tunnel reads on while it closes, until Read says that it is over, and closes when no Write runs and
//     nothing has been read for a moment. It cannot do more: a program that has a hot sender in tun/netstack stops it
//     before it closes the device, under wireguard-go as well as here.
//   - The events must be taken for as long as their channel is open, or the device stands still. MTU may cost two
//     system calls: it is asked at the start and again when an event says so.
//
// # Rules of conn.Bind that its documentation leaves out
//
//   - Close before Open. A conn.Bind is one socket that is open or not, where a wireguard.Bind makes sockets. A change
//     of port opens the new socket while the old one is still open; Bind bridges that, see there.
//   - Open comes only when every ReceiveFunc of the Open before has returned: they may share state.
//   - Open, Close and SetMark exclude each other and Send; SetMark of StdNetBind reads what Close writes.
//   - A ReceiveFunc has one caller, and gets exactly BatchSize buffers of 64 KiB, which another may not have at the
//     same time. StdNetBind receives into the last two of 128, so fewer are an error. Sizes of 0 are skipped.
//   - A ReceiveFunc ends with net.ErrClosed. After any other error wireguard-go waits 333 ms and tries again, ten
//     times in a row, and not at all after a net.Error that is not temporary: then that family is deaf until the next
//     Open. Here it is tried again for ever, and subscribers are told.
//   - Send gets at most BatchSize buffers. It may write to them, and behind their end up to their capacity: StdNetBind
//     joins datagrams there. So Bind gives copies to any but StdNetBind, which writes nothing there that is not there
//     already when the datagrams lie back to back. An error does not mean that nothing was sent. A
//     conn.ErrUDPGSODisabled is no error when what it wraps is none.
//   - An Endpoint handed out by a ReceiveFunc is the receiver's for good; a bind does not use it again. It holds the
//     local address to answer from, which nobody else can put into one, and ClearSrc changes it under the feet of
//     whoever sends to it at that moment. So Bind never calls ClearSrc: it sends to another Endpoint. StdNetBind loses
//     that address where it receives with UDP GRO, as it does on Linux since 5.0: there it answers from any.
package wgo
