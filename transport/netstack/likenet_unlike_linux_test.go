package netstack

// These are the reasons why a Net differs from package net.
const (
	namesAddress = "the error of a Net also names the address, where package net leaves it out"
	saysNetwork  = "the protocol of the network is wrong, and the error of a Net says so"
	isAddrError  = "the error of a Net has a type; package net's has only the text \"missing address\""
	bothTimeouts = "the error of a Net is os.ErrDeadlineExceeded too, so that one check finds all timeouts"
	isOpError    = "all errors of a Net's listener have the type *net.OpError"
	neverMapped  = "a Net never shows an IPv4 address mapped into IPv6, so that programs need not unmap it"
	bothEnds     = "the error of a Net names both ends of the connection in all calls"
	namesCall    = "the error of a Net names the system call too"
)

// unlike lists the steps in which a Net differs from package net, with the outcome for the Net and the reason.
var unlike = map[string]struct{ ours, why string }{
	"listen: TCP, IPv4 on the network of IPv6":               {"OpError(listen tcp6 addr), AddrError", namesAddress},
	"listen: TCP, IPv6 on the network of IPv4":               {"OpError(listen tcp4 addr), AddrError", namesAddress},
	"listen: TCP, unspecified IPv4 on the network of IPv6":   {"OpError(listen tcp6 addr), AddrError", namesAddress},
	"listen: UDP, IPv4 on the network of IPv6":               {"OpError(listen udp6 addr), AddrError", namesAddress},
	"listen: UDP, IPv6 on the network of IPv4":               {"OpError(listen udp4 addr), AddrError", namesAddress},
	"listen: UDP, unspecified IPv4 on the network of IPv6":   {"OpError(listen udp6 addr), AddrError", namesAddress},
	"listen: TCP, network of the other protocol":             {"OpError(listen udp), UnknownNetworkError", saysNetwork},
	"listen: UDP, network of the other protocol":             {"OpError(listen tcp), UnknownNetworkError", saysNetwork},
	"dial: tcp, empty address":                               {"OpError(dial tcp), AddrError", isAddrError},
	"dial: udp, empty address":                               {"OpError(dial udp), AddrError", isAddrError},
	"dial: tcp, from the other family":                       {"OpError(dial tcp source), AddrError", namesAddress},
	"dial: udp, from the other family":                       {"OpError(dial udp source), AddrError", namesAddress},
	"dial: from an address of the wrong type":                {"OpError(dial tcp source), AddrError", namesAddress},
	"dial: negative timeout":                                 {"OpError(dial tcp addr), DeadlineExceeded, context deadline, timeout", bothTimeouts},
	"dial: past deadline":                                    {"OpError(dial tcp addr), DeadlineExceeded, context deadline, timeout", bothTimeouts},
	"dial: past deadline, UDP":                               {"OpError(dial udp addr), DeadlineExceeded, context deadline, timeout", bothTimeouts},
	"deadlines: of a closed listener":                        {"OpError(set tcp addr), ErrClosed", isOpError},
	"dual stack: tcp from IPv4, bytes of the remote address": {"4", neverMapped},
	"dual stack: tcp from IPv4, Is4 of the remote address":   {"true", neverMapped},
	"dual stack: udp from IPv4, ReadFrom, mapped":            {"false", neverMapped},
	"dual stack: udp from IPv4, ReadFromUDPAddrPort, mapped": {"false", neverMapped},
	"double close: SetDeadline":                              {"OpError(set tcp source addr), ErrClosed", bothEnds},
	"double close: SetReadDeadline":                          {"OpError(set tcp source addr), ErrClosed", bothEnds},
	"double close: SetWriteDeadline":                         {"OpError(set tcp source addr), ErrClosed", bothEnds},
	"double close: UDP SetDeadline":                          {"OpError(set udp source), ErrClosed", bothEnds},
	"datagrams: write to an address of TCP":                  {"OpError(write udp source addr), sendto, errno 22 (invalid argument)", namesCall},
}
