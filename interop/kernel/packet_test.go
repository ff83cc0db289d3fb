//go:build linux

package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// echoRequest returns a packet of size bytes that contains an ICMP echo request. The kernel's answer has the same type of service.
func echoRequest(src, dst netip.Addr, size int, tos uint8, sequence uint16) []byte {
	header := 20
	if src.Is6() {
		header = 40
	}
	p := pipe.UDPPacket(netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0), make([]byte, size-header-8))
	m := p[header:]
	clear(m[:8])
	binary.BigEndian.PutUint16(m[4:], 99)
	binary.BigEndian.PutUint16(m[6:], sequence)
	for i := range m[8:] {
		m[8+i] = byte(i)
	}
	if src.Is6() {
		m[0], p[6] = 128, protoICMPv6
		binary.BigEndian.PutUint16(m[2:], ^packet.TransportSum(p, header))
	} else {
		m[0], p[9] = 8, protoICMP
		binary.BigEndian.PutUint16(m[2:], ^packet.Sum(m, 0))
	}
	setTOS(p, tos)
	return p
}

// unasked returns an echo reply without a request. The kernel drops it silently. An echo request with a wrong checksum would not
// do: the kernel would answer it, because it does not verify the checksums inside an authentic packet.
func (p *pair) unasked() []byte {
	b := echoRequest(ourAddrs[0], kernelAddrs[0], 84, 0, p.nextSequence())
	m := b[20:]
	m[0], m[2], m[3] = 0, 0, 0
	binary.BigEndian.PutUint16(m[2:], ^packet.Sum(m, 0))
	return b
}

// isReply reports whether p is the answer to an echo request.
func isReply(p, request []byte) bool {
	header, kind := 20, byte(0)
	if request[0]>>4 == 6 {
		header, kind = 40, 129
	}
	return len(p) == len(request) && p[header] == kind && bytes.Equal(p[header+4:], request[header+4:])
}

// echo sends the kernel an echo request of size bytes and returns the answer as our device delivered it. It requires
// setup.packets.
func (p *pair) echo(family, size int, tos uint8) []byte {
	p.t.Helper()
	return p.exchange(echoRequest(ourAddrs[family], kernelAddrs[family], size, tos, p.nextSequence()))
}

func (p *pair) nextSequence() uint16 {
	p.sequence++
	return p.sequence
}

// exchange sends an echo request and waits for its answer.
func (p *pair) exchange(request []byte) []byte {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.send(request)
	for {
		got, err := p.tun.Receive(ctx)
		if err != nil {
			p.t.Fatalf("no answer to an echo request of %d bytes: %v", len(request), err)
		}
		if isReply(got, request) {
			return got
		}
	}
}

func (p *pair) send(packet []byte) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.tun.Send(ctx, packet); err != nil {
		p.t.Fatal(err)
	}
}
