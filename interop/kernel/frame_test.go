//go:build linux

package kernel

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// The addresses in the Ethernet frames, all of which carry UDP datagrams. The machine has static neighbor entries, so it needs
// neither ARP nor neighbor discovery.
var (
	hostMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	guestMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

const (
	etherSize    = 14
	etherIPv4    = 0x0800
	etherIPv6    = 0x86dd
	protoUDP     = 17
	protoICMP    = 1
	protoICMPv6  = 58
	ip6Fragment  = 44
	moreFragment = 0x2000 // a bit of the IPv4 field with the flags and the fragment offset
	dontFragment = 0x4000
)

// A datagram is a UDP datagram that the line carries.
type datagram struct {
	from, to  netip.AddrPort // the addresses on the machine's side of the line, which is a NAT
	data      []byte
	tos       uint8
	df        bool // IPv4's "don't fragment" flag
	fragments int  // number of IP fragments in which the datagram arrived; 1 means that it was not fragmented
}

// kind returns the type of the WireGuard message in d.
func (d *datagram) kind() pipe.MessageType { return pipe.TypeOf(d.data) }

// hasMAC2 reports whether a handshake message carries a mac2, which proves that its sender has a cookie.
func (d *datagram) hasMAC2() bool {
	for _, b := range d.data[len(d.data)-16:] {
		if b != 0 {
			return true
		}
	}
	return false
}

// frame encodes d as one Ethernet frame for the machine.
func (d *datagram) frame() []byte {
	p := pipe.UDPPacket(d.from, d.to, d.data)
	setTOS(p, d.tos)
	ether := binary.BigEndian.AppendUint16(append(append([]byte{}, guestMAC...), hostMAC...), etherIPv4)
	if p[0]>>4 == 6 {
		binary.BigEndian.PutUint16(ether[12:], etherIPv6)
	}
	return append(ether, p...)
}

// setTOS sets the type of service and the checksum of an IPv4 packet, or the traffic class of an IPv6 packet.
func setTOS(p []byte, tos uint8) {
	if p[0]>>4 == 6 {
		p[0], p[1] = 0x60|tos>>4, tos<<4|p[1]&0xf
		return
	}
	p[1] = tos
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], ^packet.Sum(p[:20], 0))
}

// tosOf returns the type of service or traffic class of a packet.
func tosOf(p []byte) uint8 {
	if p[0]>>4 == 6 {
		return p[0]<<4 | p[1]>>4
	}
	return p[1]
}

// A fragment is an IP packet that contains a UDP datagram or a part of one.
type fragment struct {
	src, dst netip.Addr
	tos      uint8
	df       bool
	id       uint32
	offset   int
	more     bool
	part     []byte
}

// parseFrame parses a frame from the machine. If the frame does not carry UDP, ok is false.
func parseFrame(b []byte) (f fragment, ok bool) {
	if len(b) < etherSize+20 {
		return f, false
	}
	p := b[etherSize:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherIPv4:
		header, total := int(p[0]&0xf)*4, int(binary.BigEndian.Uint16(p[2:]))
		if p[9] != protoUDP || total > len(p) || header > total {
			return f, false
		}
		flags := binary.BigEndian.Uint16(p[6:])
		f.id, f.offset = uint32(binary.BigEndian.Uint16(p[4:])), int(flags&0x1fff)*8
		f.more, f.df = flags&moreFragment != 0, flags&dontFragment != 0
		f.src, f.dst = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
		f.part = p[header:total]
	case etherIPv6:
		if len(p) < 48 {
			return f, false
		}
		total, next, header := 40+int(binary.BigEndian.Uint16(p[4:])), p[6], 40
		if next == ip6Fragment {
			flags := binary.BigEndian.Uint16(p[42:])
			f.offset, f.more, f.id = int(flags&^7), flags&1 != 0, binary.BigEndian.Uint32(p[44:])
			next, header = p[40], 48
		}
		if next != protoUDP || total > len(p) || header > total {
			return f, false
		}
		f.src, f.dst = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
		f.part = p[header:total]
	default:
		return f, false
	}
	f.tos = tosOf(p)
	return f, true
}

// A reassembly joins the fragments of one packet at a time. This is enough, because the machine sends all fragments of a packet
// before it sends the next packet.
type reassembly struct {
	key   [2]netip.Addr
	id    uint32
	whole []byte
	count int
}

// add adds a fragment. If the datagram is then complete, add returns it.
func (r *reassembly) add(f fragment) (d *datagram, ok bool) {
	if key := [2]netip.Addr{f.src, f.dst}; f.offset == 0 || key != r.key || f.id != r.id {
		*r = reassembly{key: key, id: f.id}
	}
	if f.offset != len(r.whole) {
		return nil, false // an earlier fragment is lost
	}
	r.whole, r.count = append(r.whole, f.part...), r.count+1
	if f.more || len(r.whole) < 8 {
		return nil, false
	}
	u := r.whole
	return &datagram{
		from: netip.AddrPortFrom(f.src, binary.BigEndian.Uint16(u)), to: netip.AddrPortFrom(f.dst, binary.BigEndian.Uint16(u[2:])),
		data: u[8:], tos: f.tos, df: f.df, fragments: r.count,
	}, true
}
