package main

import (
	"net"
	"sync"

	"github.com/seed-86b749af/wireguard"
)

// An ourTunnel adapts a plain to a device of this library.
type ourTunnel struct{ plain *plain }

func (t *ourTunnel) ReadPackets(b *wireguard.Batch) error {
	f := t.plain.out
	first, n := f.take(wireBatch, t.plain.down)
	if n == 0 {
		return net.ErrClosed
	}
	for i := range n {
		room := b.Next(len(f.template))
		if room == nil {
			f.giveBack(n - i)
			break
		}
		f.fill(room, first+int64(i))
		b.Commit(len(room))
	}
	return nil
}

func (t *ourTunnel) WritePackets(pkts [][]byte) (int, error) {
	tally := t.plain.in.begin()
	for _, p := range pkts {
		tally.add(p)
	}
	tally.end()
	return len(pkts), nil
}

func (t *ourTunnel) MTU() int     { return t.plain.mtu }
func (t *ourTunnel) Close() error { t.plain.close(); return nil }

// An ourRelay sends each packet that arrives to the peer that owns the packet's destination address. It does so on the goroutine
// that delivered the packet.
type ourRelay struct {
	dev     *wireguard.Device
	batches sync.Pool
}

func (t *ourRelay) Attach(d *wireguard.Device) { t.dev = d }
func (t *ourRelay) MTU() int                   { return mtu }
func (t *ourRelay) Close() error               { return nil }

func (t *ourRelay) WritePackets(pkts [][]byte) (int, error) {
	b, _ := t.batches.Get().(*wireguard.Batch)
	if b == nil {
		b = t.dev.NewBatch()
	}
	defer t.batches.Put(b)
	for i, p := range pkts {
		if b.Append(p) {
			continue
		}
		if err := t.dev.Send(b); err != nil {
			return i, err
		}
		b.Append(p)
	}
	return len(pkts), t.dev.Send(b)
}

// An ourBind adapts an end of a wire to a device of this library.
type ourBind struct{ end *end }

func (b ourBind) Listen(uint16) (wireguard.Socket, error) {
	return &ourSocket{wireSocket: b.end.open()}, nil
}

// An ourSocket is a socket and its only receiver.
type ourSocket struct {
	*wireSocket
	last   *landing
	trains []wireguard.Train
}

func (s *ourSocket) Port() uint16                    { return s.addr.Port() }
func (s *ourSocket) Receivers() []wireguard.Receiver { return []wireguard.Receiver{s} }
func (s *ourSocket) Close() error                    { s.close(); return nil }

func (s *ourSocket) Send(ts []wireguard.Train) {
	c := crossing{s: s.wireSocket}
	defer c.end()
	for i := range ts {
		t := &ts[i]
		if s.swallow(t.Len()) {
			continue
		}
		for data := t.Data; len(data) > 0 && t.Err == nil; {
			n := min(t.Size, len(data))
			t.Err = c.put(data[:n])
			data = data[n:]
		}
	}
}

func (s *ourSocket) Receive() ([]wireguard.Train, error) {
	l, err := s.land(s.last)
	if err != nil {
		s.last = nil
		return nil, err
	}
	s.last, s.trains = l, s.trains[:0]
	from := wireguard.EndpointOf(s.remote)
	at := 0
	for i := 0; i < l.n; {
		first := at
		size := l.size[i]
		for i < l.n && l.size[i] == size { // datagrams of equal size form a train
			at += size
			i++
		}
		s.trains = append(s.trains, wireguard.Train{Data: l.mem[first:at:at], Size: size, Endpoint: from})
	}
	return s.trains, nil
}
