// Package capture writes what a device sends and receives, outside and inside the tunnel, to a pcapng file that Wireshark opens
// and decrypts.
//
//	c, err := capture.New(file)
//	device, err := wireguard.New(wireguard.Config{Bind: c.Bind(bind), Tunnel: c.Tunnel(tunnel), KeyLog: c.KeyLog(), ...})
//	c.Start()
//	...
//	c.Stop()
//
// The file has two interfaces: "outer" has the UDP datagrams of the Bind, and "inner" the IP packets of the Tunnel. The key log
// is part of the file, as Decryption Secrets Blocks, so Wireshark shows the plaintext of the outer packets without any setting.
// A file with a key log is as secret as the traffic in it.
//
// Between Stop and Start, and before the first Start, each call of the Bind and of the Tunnel costs one atomic load: no lock
// and no allocation. A device without these wrappers has no cost at all.
package capture

import (
	"encoding/binary"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// Constants of the format pcapng (draft-ietf-opsawg-pcapng). The files of this package are little-endian. Each block is
//
//	| type:4 | length:4 | body, padded to 4 bytes | length:4 |
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6
	blockSecrets   = 10

	byteOrder    = 0x1a2b3c4d
	linktypeRaw  = 101        // a packet begins with its IP header
	secretsWG    = 0x57474b4c // "WGKL": lines of Wireshark's WireGuard key log
	optEnd       = 0
	optName      = 2 // if_name
	optResolve   = 9 // if_tsresol
	optFlags     = 2 // epb_flags
	inbound      = 1
	outbound     = 2
	nanoseconds  = 9       // 10^-9 s
	snap         = 1 << 18 // the longest packet in bytes; no IP packet is longer, even with its outer headers
	outer, inner = 0, 1    // the numbers of the interfaces

	maxUDP = 65535 - 40 - 8 // the longest payload of a UDP datagram whose length fits into the header fields
)

// A Capture is a pcapng file that is being written. New makes it; it must not be copied. Any goroutine may call its methods.
type Capture struct {
	on atomic.Bool

	mu    sync.Mutex // guards the fields below; held while w is called
	w     io.Writer
	err   error
	block []byte // the block that is being made
}

// New writes the head of the file to w and returns a stopped Capture. If w fails, New returns its error. The Capture writes each
// block with one call of w.Write, and the device's goroutines wait for that call. So w must be a file, or another writer that
// does not wait for a network.
func New(w io.Writer) (*Capture, error) {
	c := &Capture{w: w}
	c.begin(blockSection)
	c.put32(byteOrder)
	c.put16(1, 0)       // version
	c.put32(0xffffffff) // the length of the section is not given
	c.put32(0xffffffff)
	c.end()
	for _, name := range []string{"outer", "inner"} {
		c.begin(blockInterface)
		c.put16(linktypeRaw, 0)
		c.put32(snap)
		c.option(optName, []byte(name))
		c.option(optResolve, []byte{nanoseconds})
		c.put16(optEnd, 0)
		c.end()
	}
	return c, c.err
}

// Start captures from now on. Wireshark can decrypt a session only if the file also has its handshake. So call Device.Renew for
// each peer after Start, which makes a new handshake.
func (c *Capture) Start() { c.on.Store(true) }

// Stop stops capturing until the next Start. Calls that are under way may still write a packet.
func (c *Capture) Stop() { c.on.Store(false) }

// Err returns the first error of the writer. After an error the Capture writes nothing more, and the device continues without the
// capture.
func (c *Capture) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// KeyLog returns a writer for wireguard.Config.KeyLog. It discards keys while the Capture is stopped. Its Write never fails.
func (c *Capture) KeyLog() io.Writer { return keyLog{c} }

type keyLog struct{ c *Capture }

func (k keyLog) Write(lines []byte) (int, error) {
	if c := k.c; c.on.Load() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.begin(blockSecrets)
		c.put32(secretsWG)
		c.put32(uint32(len(lines)))
		c.bytes(lines)
		c.end()
	}
	return len(lines), nil
}

// inside writes an IP packet of the tunnel.
func (c *Capture) inside(direction uint32, p []byte) {
	c.packet(inner, direction, time.Now(), nil, p)
}

// outside writes the datagrams of a train. port is the socket's port.
func (c *Capture) outside(direction uint32, t *wireguard.Train, port uint16) {
	remote := addrOf(t.Endpoint)
	// Wireshark finds sessions by the addresses of their messages, and a socket may not know which of the host's addresses it
	// sends from. So the local address is always the unspecified one.
	var room [packet.IP6Header + packet.UDPHeader]byte
	local, h := netip.AddrPortFrom(netip.IPv6Unspecified(), port), room[:]
	if remote.Addr().Is4() {
		local, h = netip.AddrPortFrom(netip.IPv4Unspecified(), port), room[:packet.IP4Header+packet.UDPHeader]
	}
	src, dst := remote, local
	if direction == outbound {
		src, dst = local, remote
	}
	now := time.Now()
	for d := range t.Datagrams() {
		if len(d) > maxUDP {
			continue // a Link may carry datagrams that are too large for UDP
		}
		packet.PutUDP(h, src, dst, t.TOS, d)
		c.packet(outer, direction, now, h, d)
	}
}

// addrOf returns the address that the file shows for the endpoint e. For a Link, addrOf makes an address in fd00::/8 from the
// Link's key. For an endpoint without an address, it returns the unspecified address.
func addrOf(e wireguard.Endpoint) netip.AddrPort {
	if e.Link != nil {
		key := e.Link.Key()
		key[0] = 0xfd
		return netip.AddrPortFrom(netip.AddrFrom16(key), 51820)
	}
	if !e.Addr.IsValid() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.AddrPortFrom(e.Addr.Addr().Unmap().WithZone(""), e.Addr.Port())
}

// packet writes an Enhanced Packet Block with the bytes of head and data.
func (c *Capture) packet(iface, direction uint32, at time.Time, head, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(head) + len(data)
	if c.err != nil || n > snap {
		return
	}
	ns := uint64(at.UnixNano())
	c.begin(blockPacket)
	for _, v := range []uint32{iface, uint32(ns >> 32), uint32(ns), uint32(n), uint32(n)} {
		c.put32(v)
	}
	c.block = append(c.block, head...)
	c.bytes(data)
	c.option(optFlags, binary.LittleEndian.AppendUint32(nil, direction))
	c.put16(optEnd, 0)
	c.end()
}

// The functions below build a block. The caller holds c.mu, or is New, whose c no other goroutine knows yet.

func (c *Capture) begin(kind uint32) {
	c.block = c.block[:0]
	c.put32(kind)
	c.put32(0) // the length, which end fills in
}

// end writes the block.
func (c *Capture) end() {
	n := uint32(len(c.block) + 4)
	binary.LittleEndian.PutUint32(c.block[4:], n)
	c.put32(n)
	if c.err == nil {
		_, c.err = c.w.Write(c.block)
	}
}

func (c *Capture) put32(v uint32) { c.block = binary.LittleEndian.AppendUint32(c.block, v) }

func (c *Capture) put16(v ...uint16) {
	for _, v := range v {
		c.block = binary.LittleEndian.AppendUint16(c.block, v)
	}
}

// bytes appends b and pads the block to 4 bytes.
func (c *Capture) bytes(b []byte) {
	c.block = append(c.block, b...)
	for len(c.block)%4 != 0 {
		c.block = append(c.block, 0)
	}
}

func (c *Capture) option(kind uint16, value []byte) {
	c.put16(kind, uint16(len(value)))
	c.bytes(value)
}
