package uapi

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// Get writes the answer to a get request, including secret keys, but without the errno line and the empty line at the end. The
// peers are in the order of their public keys. Get writes peer by peer, so it needs the same memory for any number of peers. If
// another goroutine changes d during Get, the answer may show some peers as they were before the change, and other peers as they
// are after it.
func Get(w io.Writer, d *wireguard.Device) error {
	b := bufio.NewWriter(w)
	writeDevice(b, d)
	if err := b.Flush(); err != nil {
		return &Error{errnoIO, fmt.Errorf("write the answer: %w", err)}
	}
	return nil
}

// writeDevice is Get without the last Flush. It stops if writing fails, and the next Flush of w returns the error.
func writeDevice(w *bufio.Writer, d *wireguard.Device) {
	b := lineWriter{w: w}
	s := d.Status()
	if key := d.PrivateKey(); !key.IsZero() {
		b.key("private_key", key)
	}
	if s.ListenPort != 0 {
		b.number("listen_port", uint64(s.ListenPort))
	}
	if s.FirewallMark != 0 {
		b.number("fwmark", uint64(s.FirewallMark))
	}
	for p := range d.Peers() {
		psk, _ := d.PresharedKey(p.PublicKey)
		b.peer(&p, psk)
		for prefix := range d.AllowedIPs(p.PublicKey) {
			if b.failed {
				break
			}
			b.begin("allowed_ip")
			b.scratch = prefix.AppendTo(b.scratch)
			b.end()
		}
		if b.failed {
			return
		}
	}
}

// A lineWriter writes lines to w. If a write fails, the next Flush of w returns the error.
type lineWriter struct {
	w       *bufio.Writer
	scratch []byte // the line that is being built
	failed  bool   // whether w has an error
}

func (b *lineWriter) peer(p *wireguard.PeerStatus, psk wireguard.PresharedKey) {
	b.key("public_key", p.PublicKey)
	b.key("preshared_key", psk) // all zeros mean no preshared key
	b.line("protocol_version", "1")
	if p.Endpoint.Addr.IsValid() { // the endpoint may be a Link, which wg(8) could not read
		b.begin("endpoint")
		b.scratch = p.Endpoint.Addr.AppendTo(b.scratch)
		b.end()
	}
	seconds, nanoseconds := wallParts(p.LastHandshake)
	b.number("last_handshake_time_sec", seconds)
	b.number("last_handshake_time_nsec", nanoseconds)
	b.number("tx_bytes", p.Sent.Bytes)
	b.number("rx_bytes", p.Received.Bytes)
	b.number("persistent_keepalive_interval", uint64(p.PersistentKeepalive/time.Second))
}

// wallParts returns the time from 1970 to t. It returns 0, 0 for times before 1970, and for the zero time, which means
// never.
func wallParts(t time.Time) (seconds, nanoseconds uint64) {
	if t.IsZero() || t.Unix() < 0 {
		return 0, 0
	}
	return uint64(t.Unix()), uint64(t.Nanosecond())
}

func (b *lineWriter) begin(name string) {
	b.scratch = append(append(b.scratch[:0], name...), '=')
}

func (b *lineWriter) end() {
	b.scratch = append(b.scratch, '\n')
	_, err := b.w.Write(b.scratch)
	b.failed = err != nil
}

func (b *lineWriter) line(name, value string) {
	b.begin(name)
	b.scratch = append(b.scratch, value...)
	b.end()
}

func (b *lineWriter) number(name string, n uint64) {
	b.begin(name)
	b.scratch = strconv.AppendUint(b.scratch, n, 10)
	b.end()
}

// key writes a key in hexadecimal. Copies of a secret key stay in w and scratch until the garbage collector frees the memory.
func (b *lineWriter) key(name string, k [32]byte) {
	b.begin(name)
	b.scratch = hex.AppendEncode(b.scratch, k[:])
	b.end()
}
