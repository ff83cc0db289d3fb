package wireguard

import (
	"io"
	"slices"
	"sync"
	"testing"
)

// The type calls records the names of the Tunnel's methods that the device calls, in order.
type calls struct {
	mu    sync.Mutex
	names []string
	read  chan struct{} // receives a value when the device reads packets
}

func (c *calls) note(name string) {
	c.mu.Lock()
	c.names = append(c.names, name)
	c.mu.Unlock()
	if name == "ReadPackets" || name == "a queue's ReadPackets" {
		c.read <- struct{}{}
	}
}

type sourceCalls struct {
	*calls
	name string
}

func (s sourceCalls) ReadPackets(*Batch) error { s.note(s.name); return io.EOF }

type queuesCalls struct{ *calls }

func (q queuesCalls) Queues() []PacketSource {
	q.note("Queues")
	return []PacketSource{sourceCalls{q.calls, "a queue's ReadPackets"}}
}

type attachCalls struct{ *calls }

func (a attachCalls) Attach(*Device) { a.note("Attach") }

// TestTunnelInterfaces checks that a device uses only one interface of its Tunnel to get packets. It prefers Attacher to Queues,
// and Queues to PacketSource. New must refuse a Tunnel that implements none of these interfaces.
func TestTunnelInterfaces(t *testing.T) {
	c := &calls{read: make(chan struct{}, 1)}
	source, queues, attacher := sourceCalls{c, "ReadPackets"}, queuesCalls{c}, attachCalls{c}
	for _, test := range []struct {
		name   string
		tunnel Tunnel
		calls  []string // the expected calls; nil means that New refuses the Tunnel
	}{
		{"none", struct{ Tunnel }{newDrain()}, nil},
		{"source", struct {
			Tunnel
			PacketSource
		}{newDrain(), source}, []string{"ReadPackets"}},
		{"queues", struct {
			Tunnel
			queuesCalls
		}{newDrain(), queues}, []string{"Queues", "a queue's ReadPackets"}},
		{"attacher", struct {
			Tunnel
			Attacher
		}{newDrain(), attacher}, []string{"Attach"}},
		{"source and queues", struct {
			Tunnel
			PacketSource
			queuesCalls
		}{newDrain(), source, queues}, []string{"Queues", "a queue's ReadPackets"}},
		{"all", struct {
			Tunnel
			PacketSource
			queuesCalls
			Attacher
		}{newDrain(), source, queues, attacher}, []string{"Attach"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.names = nil
			d, err := New(Config{Tunnel: test.tunnel, Bind: newLine()})
			if test.calls == nil {
				wantErrors(t, err, []string{"Config.Tunnel", "implement PacketSource, Queues or Attacher"})
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Up(); err != nil {
				t.Fatal(err)
			}
			if test.calls[0] != "Attach" {
				<-c.read
			}
			d.Down()
			if err := d.Up(); err != nil { // Up must not call the Tunnel's methods again
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(c.names, test.calls) {
				t.Errorf("the device called %q, want %q", c.names, test.calls)
			}
		})
	}
}
