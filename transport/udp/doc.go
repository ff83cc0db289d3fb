// Package udp is the [wireguard.Bind] over the system's UDP sockets: one socket for IPv4 and one for IPv6, on one port.
//
//	device, err := wireguard.New(wireguard.Config{Bind: &udp.Bind{}, ...})
//
// A datagram goes this way:
//
//	out:  Socket.Send ─▶ its family ─▶ a flight of messages ─▶ sendmmsg with UDP_SEGMENT ─▶ refused? singly, or without source
//	       udp.go                      send_linux.go                                        send_linux.go, plain_linux.go
//	in:   Receiver.Receive ─▶ poller ─▶ recvmmsg into a rack of slots ─▶ control messages ─▶ a train a slot
//	       receive_linux.go             racks_linux.go                   control*.go         receive_linux.go
//	elsewhere: package net's calls, one datagram each
//	       portable.go
//
// # What works where
//
//	                            Linux      Linux, Portable  macOS, iOS  FreeBSD  OpenBSD    Windows  others
//	datagrams a system call     64 trains  1                1           1        1          1        1
//	segmentation offload        yes        no               no          no       no         no       no
//	answer from address reached yes (1)    yes (1)          yes         yes      yes        no       no
//	ECN and DSCP, both ways     yes        yes              yes         yes      IPv6 only  no       no
//	firewall mark               SO_MARK    SO_MARK          no          cookie   rtable     no       no
//	Bind.Interface              yes        yes              yes         no       no         yes      no
//	outer packet may fragment   yes        yes              (2)         (2)      (2)        (2)      (2)
//	memory of an idle socket    none       64 KiB (3)       64 KiB      64 KiB   64 KiB     64 KiB   64 KiB
//
// (1) Not on Android, which chooses the source when it moves a program between networks. (2) As the system has it by
// default, which is yes on all of these. (3) Of address space, for each family; memory only as far as a datagram was
// long enough to touch it.
//
// The code for Linux is tested, and so is the portable code, on Linux, with and without control messages. That of the
// other systems differs from it by a few options and constants, and is compiled only.
//
// On Linux, sending trains needs 4.18 and receiving them 5.12, as well as nothing between here and the wire that refuses
// them; otherwise datagrams go singly, many a system call. A browser's or WASI's js/wasm has package net's imitation of a
// network, inside the process.
//
// # Offloads and their failure
//
// A train goes to the system in one piece of at most 64 datagrams and 65,507 bytes (65,487 for IPv6). Where the system
// refuses it with EMSGSIZE, EIO or EINVAL, its datagrams go one by one, still many a system call, and so do those of all
// trains to that address for 15 seconds: nothing that could be sent is lost. A datagram larger than the path's MTU is
// fragmented. A send that fails with a source that can be gone is tried again without it, and any other one that fails
// is tried once more, since the error can be an earlier datagram's.
//
// A receiver reads with one slot, and with up to 64 while many small datagrams come; a slot holds 64 KiB, and so any
// train. While it waits it holds none. Slots that are not needed for some seconds go back to the system.
//
// Send waits when a socket's buffer is full, until the system has sent some of it, or until Close.
//
// # Source and zone
//
// The Source of an endpoint is the local address that the datagram was sent to, so that an answer comes from there. Its
// Interface is left at zero, as in the kernel, so that a change of routes is followed; only a link-local Source has one.
// On Linux an IPv4 Source is let go when the route to the peer changes to another interface, whose own address is then used.
// Both are honoured where a train has them. The zone of a link-local address is the name of its interface.
package udp
