package wireguard_test

import (
	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A scribblingBind lends memory just as long as the contract of a Receiver says: at the next Receive, what the last one
// returned is overwritten. What a device keeps of it is garbage then.
type scribblingBind struct{ wireguard.Bind }

func (b scribblingBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.Bind.Listen(port)
	if err != nil {
		return nil, err
	}
	return scribblingSocket{s}, nil
}

type scribblingSocket struct{ wireguard.Socket }

// SetMark accepts any mark, so that scenarios can change it.
func (scribblingSocket) SetMark(uint32) error { return nil }

func (s scribblingSocket) Receivers() (rs []wireguard.Receiver) {
	for _, r := range s.Socket.Receivers() {
		rs = append(rs, &scribblingReceiver{Receiver: r})
	}
	return rs
}

type scribblingReceiver struct {
	wireguard.Receiver
	lent []wireguard.Train
}

func (r *scribblingReceiver) Receive() ([]wireguard.Train, error) {
	for i := range r.lent {
		scribble(r.lent[i].Data)
	}
	clear(r.lent) // the slice is borrowed too
	ts, err := r.Receiver.Receive()
	r.lent = append(r.lent[:0], ts...)
	return r.lent, err
}

// A scribblingTunnel overwrites the packets that it was given, as a sink may.
type scribblingTunnel struct{ *pipe.Tunnel }

func (t scribblingTunnel) WritePackets(pkts [][]byte) (int, error) {
	n, err := t.Tunnel.WritePackets(pkts)
	for i := range pkts {
		scribble(pkts[i])
	}
	return n, err
}

func scribble(b []byte) {
	for i := range b {
		b[i] = 0xdb
	}
}
