package udp

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A portable is a path that uses the calls of package net, with one datagram per call.
//
//	Receive ─▶ read into the one buffer ─▶ a train of one datagram
//	send ─▶ control messages once per train ─▶ write each datagram of the train
type portable struct {
	*conn
	control bool // control messages can be sent and received

	// Only Receive uses these fields. A read by package net needs its buffer while it waits, so buf is allocated for as long as
	// the path exists. Pages of it that no datagram was long enough to touch take no memory.
	buf   []byte
	oob   controlBuffer
	train [1]wireguard.Train

	// write sends one datagram. Tests replace it by a function that fails.
	write func(b, oob []byte, to netip.AddrPort) error
}

// slotSize is the size of a receive buffer, in bytes. It is enough for any datagram, and for any train that the system returns.
const slotSize = 64 << 10

// faultsInRow is how many consecutive errors of a socket Receive ignores before it returns one. An error can belong to a
// datagram that was sent earlier, for example to a closed port. A read then returns the error once.
const faultsInRow = 16

// retirePortable is the time limit of a read on a retired socket, that is, one that a new socket has replaced (renew.go). Reads
// need a limit above zero because package net cannot read without waiting. The receiver ends after three reads that reach the
// limit, because on a busy machine the time of one read may be over before the read begins.
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

// read receives one datagram into p.buf. If the datagram did not fit, n is -1.
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
			// Try once more. If the source may no longer exist, leave it out. Otherwise the error may belong to an earlier
			// datagram.
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
