package wireguard_test

import (
	"bytes"
	"slices"
	"syscall"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A scribblingBind wraps a Bind, and overwrites memory that must no longer be used. When Receive is called, it overwrites the
// trains that the same Receiver returned before. So a device that still uses them finds garbage. When the embedded Bind returns
// from Send, the scribblingBind overwrites the trains that it gave to this Bind.
type scribblingBind struct{ wireguard.Bind }

func (b scribblingBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.Bind.Listen(port)
	if err != nil {
		return nil, err
	}
	return scribblingSocket{s}, nil
}

type scribblingSocket struct{ wireguard.Socket }

// SetMark accepts every mark, so that scenarios can change the mark.
func (scribblingSocket) SetMark(uint32) error { return nil }

func (s scribblingSocket) Receivers() (rs []wireguard.Receiver) {
	for _, r := range s.Socket.Receivers() {
		rs = append(rs, &scribblingReceiver{Receiver: r})
	}
	return rs
}

// Send passes a copy of the trains to the embedded Bind, and panics if that Bind changes the data.
func (s scribblingSocket) Send(ts []wireguard.Train) {
	lent := slices.Clone(ts)
	for i := range lent {
		lent[i].Data = slices.Clone(ts[i].Data)
	}
	s.Socket.Send(lent)
	for i := range lent {
		if !bytes.Equal(lent[i].Data, ts[i].Data) {
			panic("a Socket changed the data of a train in Send")
		}
		ts[i].Endpoint, ts[i].Err = lent[i].Endpoint, lent[i].Err
		scribble(lent[i].Data)
	}
	clear(lent) // the embedded Bind must not keep the slice itself either
}

type scribblingReceiver struct {
	wireguard.Receiver
	lent []wireguard.Train
}

func (r *scribblingReceiver) Receive() ([]wireguard.Train, error) {
	for i := range r.lent {
		scribble(r.lent[i].Data)
	}
	clear(r.lent) // the device must not keep the slice itself either
	ts, err := r.Receiver.Receive()
	r.lent = append(r.lent[:0], ts...)
	return r.lent, err
}

// A scribblingTunnel overwrites the packets that the device delivers to it, as a Tunnel may.
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

// A keepingSocket still has its trains after Send has returned, although a Socket must not keep them.
type keepingSocket struct {
	wireguard.Socket
	kept []wireguard.Train
	data []byte
}

func (s *keepingSocket) Send(ts []wireguard.Train) {
	s.kept, s.data = ts, ts[0].Data
	ts[0].Err, ts[0].Endpoint.Interface = syscall.EPERM, 7
}

// TestScribblingSend checks the scribblingBind itself. A Socket that keeps the data of a train after Send must find garbage. The
// device's own data must be unchanged, and the device must see the fields that the Socket sets in each train.
func TestScribblingSend(t *testing.T) {
	var keeping keepingSocket
	ts := []wireguard.Train{{Data: []byte("data"), Size: 4}}
	scribblingSocket{&keeping}.Send(ts)
	if string(keeping.data) != "\xdb\xdb\xdb\xdb" || keeping.kept[0].Data != nil {
		t.Errorf("the Socket that kept its trains sees the data %q and the trains %v, want overwritten data and empty trains", keeping.data, keeping.kept)
	}
	if string(ts[0].Data) != "data" || ts[0].Err != syscall.EPERM || ts[0].Endpoint.Interface != 7 {
		t.Errorf("the device's train is %+v, want unchanged data and the fields that the Socket set", ts[0])
	}
}
