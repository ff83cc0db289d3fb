package capture

import (
	"github.com/seed-86b749af/wireguard"
)

// Bind returns a Bind that passes everything on to b and captures the datagrams outside the tunnel. It is a Framer if b is
// one, and its sockets are Markers and Renewers if those of b are.
func (c *Capture) Bind(b wireguard.Bind) wireguard.Bind { return &tapBind{c, b} }

type tapBind struct {
	c *Capture
	b wireguard.Bind
}

// Headroom returns the headroom of the Bind, or 0 for a Bind that is not a Framer.
func (b *tapBind) Headroom() int {
	if f, ok := b.b.(wireguard.Framer); ok {
		return f.Headroom()
	}
	return 0
}

func (b *tapBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.b.Listen(port)
	if err != nil {
		return nil, err
	}
	return b.c.tap(s), nil
}

// tap returns a Socket that captures what s sends and receives, with the optional interfaces of s.
func (c *Capture) tap(s wireguard.Socket) wireguard.Socket {
	tapped := &tapSocket{c: c, Socket: s, port: s.Port()}
	m, marks := s.(wireguard.Marker)
	r, renews := s.(wireguard.Renewer)
	switch {
	case marks && renews:
		return struct {
			*tapSocket
			wireguard.Marker
			tapRenewer
		}{tapped, m, tapRenewer{r, c}}
	case marks:
		return struct {
			*tapSocket
			wireguard.Marker
		}{tapped, m}
	case renews:
		return struct {
			*tapSocket
			tapRenewer
		}{tapped, tapRenewer{r, c}}
	}
	return tapped
}

type tapRenewer struct {
	wireguard.Renewer
	capture *Capture
}

func (r tapRenewer) Renew() (wireguard.Socket, error) {
	s, err := r.Renewer.Renew()
	if err != nil {
		return nil, err
	}
	return r.capture.tap(s), nil
}

type tapSocket struct {
	c *Capture
	wireguard.Socket
	port uint16
}

func (s *tapSocket) Send(ts []wireguard.Train) {
	if s.c.on.Load() {
		// A train is captured before it is sent, so that an answer cannot precede it in the file.
		for i := range ts {
			s.c.outside(outbound, &ts[i], s.port)
		}
	}
	s.Socket.Send(ts)
}

func (s *tapSocket) Receivers() (rs []wireguard.Receiver) {
	for _, r := range s.Socket.Receivers() {
		rs = append(rs, &tapReceiver{s, r})
	}
	return rs
}

type tapReceiver struct {
	s *tapSocket
	r wireguard.Receiver
}

func (r *tapReceiver) Receive() ([]wireguard.Train, error) {
	ts, err := r.r.Receive()
	if r.s.c.on.Load() {
		for i := range ts {
			r.s.c.outside(inbound, &ts[i], r.s.port)
		}
	}
	return ts, err
}

// Tunnel returns a Tunnel that passes everything on to t and captures the packets inside the tunnel. Packets that an Attacher
// such as netstack.Net sends do not pass through the Tunnel, so they are not captured inside the tunnel. Wireshark still shows
// them, because it decrypts the outer packets.
func (c *Capture) Tunnel(t wireguard.Tunnel) wireguard.Tunnel {
	tapped := tapTunnel{t, c}
	switch t := t.(type) {
	case wireguard.Attacher:
		return struct {
			tapTunnel
			wireguard.Attacher
		}{tapped, t}
	case wireguard.Queues:
		return &tapQueues{tapped, t}
	case wireguard.PacketSource:
		return &tapSourceTunnel{tapped, tapSource{c, t}}
	}
	return tapped // wireguard.New refuses it, as it refuses t
}

type tapTunnel struct {
	wireguard.Tunnel
	c *Capture
}

func (t tapTunnel) WritePackets(pkts [][]byte) (int, error) {
	if t.c.on.Load() {
		for _, p := range pkts {
			t.c.inside(inbound, p) // before the write, because the Tunnel may overwrite p
		}
	}
	return t.Tunnel.WritePackets(pkts)
}

type tapQueues struct {
	tapTunnel
	q wireguard.Queues
}

func (t *tapQueues) Queues() (sources []wireguard.PacketSource) {
	for _, s := range t.q.Queues() {
		sources = append(sources, &tapSource{t.c, s})
	}
	return sources
}

type tapSourceTunnel struct {
	tapTunnel
	source tapSource
}

func (t *tapSourceTunnel) ReadPackets(b *wireguard.Batch) error { return t.source.ReadPackets(b) }

type tapSource struct {
	c *Capture
	s wireguard.PacketSource
}

func (s *tapSource) ReadPackets(b *wireguard.Batch) error {
	err := s.s.ReadPackets(b)
	if s.c.on.Load() {
		for i := range b.Len() {
			s.c.inside(outbound, b.Packet(i))
		}
	}
	return err
}
