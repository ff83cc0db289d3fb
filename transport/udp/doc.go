// Package udp provides a [wireguard.Bind] that uses the system's UDP sockets for IPv4 and IPv6, all on the same port.
//
//	device, err := wireguard.New(wireguard.Config{Bind: &udp.Bind{}, ...})
//
// A datagram takes the path below. A train is a buffer of datagrams of one size with the same address; see [wireguard.Train]. A
// flight is the memory for the messages of one outbound system call, and a rack is the memory for those of one inbound system
// call. A message carries a train or a part of one.
//
//	out:  Socket.Send ─▶ its family ─▶ a flight of messages ─▶ sendmmsg with UDP_SEGMENT ─▶ refused? singly, or without source
//	       udp.go                      send_linux.go                                        send_linux.go, plain_linux.go
//	in:   Receiver.Receive ─▶ poller ─▶ recvmmsg into a rack of slots ─▶ control messages ─▶ one train per slot
//	       receive_linux.go             racks_linux.go                   control*.go         receive_linux.go
//	elsewhere: package net's calls, one datagram each
//	       portable.go
//	with a Shared: one device among many
//	       shared.go, tenant.go, strangers.go
//
// # What works where
//
//	                            Linux      Linux, Portable  macOS, iOS  FreeBSD  OpenBSD    Windows  others
//	datagrams per system call   64 trains  1                1           1        1          1        1
//	Bind.Receivers              yes        yes              no          no       no         no       no
//	segmentation offload        yes        no               no          no       no         no       no
//	answer from address reached yes (1)    yes (1)          yes         yes      yes        no       no
//	ECN and DSCP, both ways     yes        yes              yes         yes      IPv6 only  no       no
//	firewall mark               SO_MARK    SO_MARK          no          cookie   rtable     no       no
//	Bind.Interface              yes        yes              yes         no       no         yes      no
//	Wake without loss           yes        yes              no          no       no         no       no
//	outer packet may fragment   yes        yes              (2)         (2)      (2)        (2)      (2)
//	memory of an idle socket    none       64 KiB (3)       64 KiB      64 KiB   64 KiB     64 KiB   64 KiB
//
// (1) Android is an exception: it chooses the source address itself when it moves a program between networks. (2) This package
// sets no option for fragmentation on these systems. They allow fragmentation by default. (3) This is address space for one
// buffer per family. A page of the buffer takes memory only after a datagram was long enough to reach it.
//
// The tests run on Linux. They cover the code for Linux, and the portable code with and without control messages. The code for
// the other systems differs from the portable code by a few options and constants. It is compiled but not tested.
//
// Sending trains needs Linux 4.18, and receiving them needs Linux 5.12. If the kernel is older, or if a part of this host's
// outbound path refuses trains, each message carries only one datagram, but one system call still passes many messages. On
// WebAssembly, in a browser or with WASI, package net imitates a network inside the process.
//
// # Offloads and their failure
//
// One message of a system call carries a train of at most 64 datagrams and 65,507 bytes (65,487 for IPv6). A longer train takes
// several messages. If the system refuses a message with EMSGSIZE, EIO or EINVAL, its datagrams are sent as separate messages,
// still many per system call. If that succeeds, all datagrams to the same address are sent as separate messages for 15 seconds.
// So the refusal of a train loses no datagram that the system accepts in a separate message. A datagram larger than the path's
// MTU is fragmented. If a system refuses the type of service with EINVAL, datagrams are sent without a type of service from then
// on. If an error can mean that the source address no longer exists, Send tries again without the source address. After any other
// error, Send tries once more without a change, since the system may have kept the error from an earlier datagram.
//
// A receiver on Linux reads into slots of 64 KiB, which is enough for any train. It reads into one slot at a time, and into up
// to 64 while many small datagrams arrive. While a receiver waits, it has no slots. The memory of slots that no receiver has
// needed for some seconds is returned to the system.
//
// While a socket's send buffer is full, Send waits until the system has sent a part of the data in it, or until Close.
//
// # Several receivers
//
// With Bind.Receivers, several sockets have the same port, and the device reads each socket on a separate goroutine. The first
// socket is bound alone, so that Listen fails if the port is in use. The other sockets are bound to the port afterwards, with
// SO_REUSEPORT. A filter in the kernel chooses the socket of each datagram from the address and the port of the datagram's
// sender. So the datagrams of one sender stay on one socket, and in order. The filter chooses only among these sockets, so that a
// socket of another program that is bound to the port later receives nothing. Bind.Receivers describes the one exception. Each
// socket can send from the port. Send chooses the socket by the destination of the first train that it is given. So cores that
// send to different peers seldom write to the counters of the same socket.
//
// A renewal, which Device.Wake requests, begins with one new socket that receives all datagrams. Then SO_REUSEPORT is cleared on
// the old sockets, so that their group of sockets accepts no new members, and the other new sockets are bound to the same port as
// the first new one.
//
// # Many devices on one port
//
// [Bind.Share] opens a port for thousands of devices, each a [Tenant]. Data messages, responses and cookie replies contain a
// session index that their receiver has chosen. This index begins with the tenant's prefix, so that one table lookup finds the
// device. The Shared copies the datagram into a queue of the tenant, its mailbox. The tenant's device reads the mailbox on
// another goroutine.
//
// An initiation contains no such index. Only its field mac1, a hash that is keyed with the receiver's public key, shows which
// device it is for. The Shared has to compute one hash per device to find that device. This takes half a millisecond for 1,000
// devices, so a flood of forged initiations would keep a core busy. Cookies do not protect against this, because a cookie reply
// is encrypted with a key that is made from the receiver's public key, and the receiver is not known yet. So the number of keys
// that the Shared tries depends on the sender's address:
//
//   - An address is known if tenants have sent initiations or responses to it. Devices send initiations and responses only to
//     configured endpoints and to senders of authentic messages. The Shared tries the keys of these tenants, at most 8, as soon
//     as the initiation arrives.
//   - An initiation from another address, or one that fits none of these keys, waits in a queue. The queue has space for 4,096
//     initiations in all, and for 256 from one IPv4 address or one IPv6 /64 network. One goroutine tries each queued initiation
//     with the keys of all tenants. This goroutine uses at most half of a core.
//
// Two limits remain. First, half of a core can try about 1,000 initiations per second for 1,000 devices. While more initiations
// than that arrive from unknown addresses, an initiation of a genuine peer at an unknown address finds space in the queue only by
// chance. Second, an attacker who is a peer of 8 tenants can forge the source address of another peer. The answers of these 8
// tenants to that address then displace the other peer's tenant from the list of at most 8 tenants known for the address.
// Initiations of the other peer have to wait in the queue.
//
// # A new socket on the same port
//
// On Linux and Android, Device.Wake opens new sockets while the old ones are still open. To permit this, the old and the new
// sockets have the option SO_REUSEADDR while the new ones are bound. The kernel gives all datagrams to the socket that was bound
// last. The device then sends on the new sockets, the old receivers return the datagrams that had arrived on the old sockets, and
// the device closes the old sockets. Other systems do not document which of two sockets on one port receives a datagram. On these
// systems, Wake closes the old sockets first, and the datagrams that are sent or arrive before the new sockets are open are lost.
// When the device changes its port, it opens the new sockets first on all systems.
//
// # Source and zone
//
// The Endpoint of a received train has a Source: the local address that the train was sent to. The device's answer is sent from
// this address. The Endpoint's Interface is zero, as in the kernel's WireGuard module, so that answers follow a change of routes.
// Only an Endpoint with a link-local Source has an Interface. On Linux, Send clears an IPv4 Source if the route to the peer has
// changed to another interface. The system then chooses an address of the new interface. If an Endpoint has a Source and an
// Interface, Send sends from this address and through this interface. The zone of a link-local address is the name of its
// interface.
package udp
