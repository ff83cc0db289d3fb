// Package apps tests programs and libraries that expect package net over two Nets: HTTP/3 with ECN (quic-go), streams of
// gRPC, WebSockets, SSH with port forwarding, multicast, and net/http's server with Shutdown and a restart on the same port.
//
// Each test runs over a tunnel of two devices, and compares what arrives with what was sent. It is a separate module, so
// that the main module does not depend on these libraries.
//
// quicConn in quicconn_test.go shows how to hand a *netstack.UDPConn to quic-go so that quic-go uses ECN and UDP_SEGMENT.
// Programs may copy it.
package apps
