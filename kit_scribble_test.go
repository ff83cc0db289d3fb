package wireguard_test

import (
	"bytes"
	"slices"
	"syscall"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A scribblingBind lends memory only as long as the contract says. When Receive is called, it overwrites what that Receiver
// returned before, so that a device that kept it has garbage. When Send returns, it overwrites the trains that the Bind below was
// given.
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

// Send sends a copy, and panics if the Bind below changed the data.
func (s scribblingSocket) Send(ts []wireguard.Train) {
	lent := slices.Clone(ts)
	for i := range lent {
		lent[i].Data = slices.Clone(ts[i].Data)
	}
	s.Socket.Send(lent)
	for i := range lent {
		if !bytes.Equal(lent[i].Data, ts[i].Data) {
			panic("a Socket changed the data that it was to send")
		}
		ts[i].Endpoint, ts[i].Err = lent[i].Endpoint, lent[i].Err
		scribble(lent[i].Data)
	}
	clear(lent) // the slice is borrowed too
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

// A scribblingTunnel overwrites the packets that it is given, as a sink may.
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

// A keepingSocket keeps what it is lent, which a Socket must not.
type keepingSocket struct {
	wireguard.Socket
	kept []wireguard.Train
	data []byte
}

func (s *keepingSocket) Send(ts []wireguard.Train) {
	s.kept, s.data = ts, ts[0].Data
	ts[0].Err, ts[0].Endpoint.Interface = syscall.EPERM, 7
}

// TestScribblingSend checks that a Socket that keeps the data it was given is left with garbage, and that the device keeps its own
// data and sees what the Socket wrote to each train.
func TestScribblingSend(t *testing.T) {
	var keeping keepingSocket
	ts := []wireguard.Train{{Data: []byte("data"), Size: 4}}
	scribblingSocket{&keeping}.Send(ts)
	if string(keeping.data) != "\xdb\xdb\xdb\xdb" || keeping.kept[0].Data != nil {
		t.Errorf("kept are %q and %v", keeping.data, keeping.kept)
	}
	if string(ts[0].Data) != "data" || ts[0].Err != syscall.EPERM || ts[0].Endpoint.Interface != 7 {
		t.Errorf("the device sees %+v", ts[0])
	}
}
