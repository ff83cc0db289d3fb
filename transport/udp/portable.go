package udp

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// portable is the path that uses package net's calls, one datagram each.
//
//	Receive ─▶ read into the one buffer ─▶ a train of one datagram
//	send ─▶ control messages once per train ─▶ write each of its datagrams
type portable struct {
	*conn
	control bool // control messages can be sent and received

	// Only the receiver uses these fields. Package net needs the memory before it waits, so the path keeps it. Pages
	// that no datagram was long enough to touch take no memory.
	buf   []byte
	oob   controlBuffer
	train [1]wireguard.Train

	// write is one system call. Tests replace it to make it fail.
	write func(b, oob []byte, to netip.AddrPort) error
}

// slotSize is enough for any datagram, and for any train that the system makes from received datagrams.
const slotSize = 64 << 10

// faultsInRow is how many consecutive errors of a socket a receiver ignores before it reports one. An error can belong
// to a datagram sent earlier (the peer's port is closed), and reading the error clears it.
const faultsInRow = 16

// retirePortable is how long a retired receiver waits for a datagram that may be there, since package net cannot read
// without waiting. The receiver ends after three such waits, since on a busy machine a single wait may be over before it
// begins.
const retirePortable = 5 * time.Millisecond

func newPortable(c *conn) *portable {
	p := &portable{conn: c, control: hasControl}
	p.write = p.writeOne
	return p
}

// Receive waits for a datagram.
func (p *portable) Receive() ([]wireguard.Train, error) {
	if p.buf == nil {
		p.buf = make([]byte, slotSize)
	}
	for faults := 0; ; {
		r := p.retired.Load()
		if r != nil && r.isLate() {
			return nil, errClosed
		}
		n, c, from, err := p.read()
		switch {
		case p.isRetired(err):
			if r = p.retired.Load(); r.isOver(4) {
				return nil, errClosed
			}
			p.udp.SetReadDeadline(time.Now().Add(retirePortable))
			continue
		case errors.Is(err, net.ErrClosed):
			return nil, errClosed
		case err != nil:
			if faults++; faults > faultsInRow {
				return nil, closedOr(err)
			}
			continue
		case n <= 0 || c.malformed || familyOf(from.Addr()) != p.family:
			p.in.faults.Add(1)
			continue
		}
		if p.in.add(1, n); r != nil {
			r.vain = 0
		}
		t := &p.train[0]
		*t = wireguard.Train{Data: p.buf[:n:n], Size: n, Endpoint: wireguard.EndpointOf(from), TOS: c.tos}
		t.Endpoint.Source, t.Endpoint.Interface = c.source()
		return p.train[:], nil
	}
}

// read is one system call. For a datagram that did not fit, n is -1.
func (p *portable) read() (n int, c control, from netip.AddrPort, err error) {
	if !p.control {
		n, from, err = p.udp.ReadFromUDPAddrPort(p.buf)
		return
	}
	oob := p.oob.bytes()
	n, m, flags, from, err := p.udp.ReadMsgUDPAddrPort(p.buf, oob)
	if err != nil {
		return 0, c, from, err
	}
	if flags&msgTruncated != 0 {
		n = -1
	}
	return n, parseControl(oob[:m]), from, nil
}

var controlBuffers = sync.Pool{New: func() any { return new(controlBuffer) }}

func (p *portable) send(ts []wireguard.Train) {
	oob := controlBuffers.Get().(*controlBuffer)
	for i := range ts {
		t := &ts[i]
		if familyOf(t.Endpoint.Addr.Addr()) == p.family {
			p.sendTrain(t, oob)
		}
	}
	controlBuffers.Put(oob)
}

func (p *portable) sendTrain(t *wireguard.Train, oob *controlBuffer) {
	to := netip.AddrPortFrom(t.Endpoint.Addr.Addr().Unmap(), t.Endpoint.Addr.Port())
	control := p.controlFor(t, oob)
	size := t.Size
	if size <= 0 {
		size = len(t.Data)
	}
	for rest := t.Data; ; {
		d := rest[:min(size, len(rest))]
		err := p.write(d, control, to)
		if errno := errnoOf(err); errno != 0 {
			// Try once more: without a source that is gone, or because the error belonged to an earlier datagram.
			if dropSource(&t.Endpoint, errno) {
				control = p.controlFor(t, oob)
			}
			err = p.write(d, control, to)
		}
		if err == nil {
			p.out.add(1, len(d))
		} else if t.Err == nil {
			t.Err = closedOr(err)
			if errno := errnoOf(err); errno != 0 {
				t.Err = sendError(errno)
			}
		}
		if rest = rest[len(d):]; len(rest) == 0 {
			return
		}
	}
}

func (p *portable) controlFor(t *wireguard.Train, oob *controlBuffer) []byte {
	if !p.control {
		return nil
	}
	b := oob.bytes()
	return b[:putControl(b, p.family, &t.Endpoint, t.TOS)]
}

func (p *portable) writeOne(b, oob []byte, to netip.AddrPort) (err error) {
	if len(oob) > 0 {
		_, _, err = p.udp.WriteMsgUDPAddrPort(b, oob, to)
	} else {
		_, err = p.udp.WriteToUDPAddrPort(b, to)
	}
	return err
}
