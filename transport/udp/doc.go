// Package udp provides a [wireguard.Bind] that uses the system's UDP sockets: one for IPv4 and one for IPv6, on one port.
//
//	device, err := wireguard.New(wireguard.Config{Bind: &udp.Bind{}, ...})
//
// A datagram takes this path:
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
// (1) Not on Android, which chooses the source when it moves a program between networks. (2) This is the system's
// default, which is yes on all of these systems. (3) This is address space per family. A page of it takes memory only
// after a datagram was long enough to touch it.
//
// On Linux the tests cover the code for Linux and the portable code, with and without control messages. The code for the
// other systems differs from the portable code by a few options and constants, and is only compiled.
//
// On Linux, sending trains needs version 4.18 and receiving them version 5.12, and nothing on this host's outbound path may
// refuse them. Otherwise datagrams are passed one by one, many per system call. In js/wasm, in a browser or WASI, package
// net imitates a network inside the process.
//
// # Offloads and their failure
//
// A train goes to the system in one piece of at most 64 datagrams and 65,507 bytes (65,487 for IPv6). If the system refuses
// it with EMSGSIZE, EIO or EINVAL, its datagrams are sent one by one, still many per system call, and if that succeeds, so
// are the datagrams of all trains to that address for 15 seconds. Nothing that could be sent is lost. A datagram larger
// than the path's MTU is fragmented. If a system refuses the type of service with EINVAL, datagrams are sent without it
// from then on. If a send fails because its source may be gone, it is tried again without the source. Any other send that
// fails is tried once more, since the error can belong to an earlier datagram.
//
// A receiver reads into one slot, and into up to 64 while many small datagrams arrive. A slot holds 64 KiB, which is
// enough for any train. A receiver that waits holds no slot. Slots that are not needed for some seconds return to the
// system.
//
// Send waits while a socket's buffer is full, until the system has sent some of it, or until Close.
//
// # Several receivers
//
// With Bind.Receivers, several sockets have one port, and the device reads each on its own goroutine. The first one is bound
// alone, so that a port in use is an error. The others are bound beside it with SO_REUSEPORT. A filter in the kernel gives each
// datagram to one of them, by the address and the port of its sender: a flow stays on one socket, and so in order. The filter
// chooses only among these sockets, so that another socket that joins the port receives nothing. Each socket can send from the
// port. Send chooses one by the destination of the first train, so that cores which send to different peers seldom share a
// socket's counters.
//
// A renewal begins with one new socket that takes all datagrams. Then the old sockets leave the group, and the other new
// sockets join the first one.
//
// # Many devices on one port
//
// [Bind.Share] opens a port for thousands of devices, each a [Tenant]. Data, responses and cookie replies name a session index of
// their receiver, which begins with the tenant's prefix, so that one look into a table finds the device. A datagram is copied into
// the mailbox of its tenant, whose device reads it on its own goroutine.
//
// An initiation names its receiver only through mac1, and checking that takes a hash per device. Trying the keys of 1,000
// devices takes half a millisecond, which a flood of forged initiations would exploit. A cookie cannot help, because a
// cookie reply is encrypted with a key that is made from the receiver's public key, and the receiver is not known yet. So
// the sender's address decides how much is tried:
//
//   - An address to which tenants sent initiations or responses is known. Devices send those only to configured places, and to
//     senders of authentic messages. The keys of these tenants, at most 8, are tried as soon as the initiation arrives.
//   - Other initiations wait in a queue of 4,096, of which one address has at most 256. One goroutine tries each with all
//     keys, and takes at most half of a core.
//
// Two limits remain. First, half of a core can try about 1,000 initiations per second for 1,000 devices. While more than that
// arrive from unknown addresses, each attempt of a peer at an unknown address succeeds only by chance. Second, a peer of 8
// tenants can send from the forged address of another peer. The Shared then tries only the keys of these 8 tenants at once for
// that address, and no longer the key of the other peer's tenant.
//
// # A new socket on the same port
//
// On Linux and Android, Device.Wake opens the new sockets beside the old ones. Both have SO_REUSEADDR, but only while the
// new ones are bound. The kernel gives all datagrams to the socket that was bound last. The device sends on the new sockets,
// the old receivers return what had arrived, and then the old sockets are closed. Other systems do not say which of two
// sockets on one port receives a datagram. There, Wake closes the old sockets first, and loses what is sent or arrives in
// between. A change of port opens the new sockets first on all systems.
//
// # Source and zone
//
// The Source of a received endpoint is the local address that the datagram was sent to, so that an answer comes from there.
// Its Interface is zero, as in the kernel, so that answers follow a change of routes. Only a link-local Source has an
// Interface. On Linux, an IPv4 Source is dropped when the route to the peer changes to another interface, whose own address
// is then used. Trains that have a Source and an Interface are sent with both. The zone of a link-local address is the name
// of its interface.
package udp
