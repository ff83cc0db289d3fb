// Package apps tests netstack.Net with libraries that are written for package net. It covers HTTP/3 with ECN (quic-go), streams
// of gRPC, WebSockets, SSH with port forwarding, multicast, and net/http's server with Shutdown and a restart on the same port.
//
// Each test connects two Nets through a tunnel, and compares the data that arrive with the data that were sent. The package is a
// separate module, so that the main module does not depend on these libraries.
//
// quicConn in quicconn_test.go shows how to hand a *netstack.UDPConn to quic-go so that quic-go uses ECN and UDP_SEGMENT. Other
// programs may copy this type.
package apps
