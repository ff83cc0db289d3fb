// Package apps tests programs and libraries that expect package net over two Nets: HTTP/3 with ECN (quic-go), streams of
// gRPC, WebSockets, SSH with port forwarding, multicast, and net/http's server with Shutdown and a restart on the same port.
//
// Each test runs over a tunnel of two devices, and compares what arrives with what was sent. It is a module of its own, so
// that these libraries are no dependencies of the main module.
//
// quicConn in quicconn_test.go shows how to hand a *netstack.UDPConn to quic-go so that it uses ECN and UDP_SEGMENT. Copy
// it.
package apps
