package netstack

import (
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// TestForwardHandshakeLimit checks that Accept fails if the peer does not complete TCP's handshake in time. Outside of this
// test, the limit is 30 seconds. After Accept has failed, the Net has forgotten the flow, and the same SYN begins another flow.
func TestForwardHandshakeLimit(t *testing.T) {
	const patience = 300 * time.Millisecond
	type end struct {
		err  error
		took time.Duration
	}
	ends := make(chan end, 2)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		begun := time.Now()
		c, err := f.Accept()
		if err == nil {
			_ = c.Close()
		}
		ends <- end{err, time.Since(begun)}
	}})
	if g.link.forward.patience != 30*time.Second {
		t.Errorf("Accept waits for %v, want 30 s", g.link.forward.patience)
	}
	g.link.forward.patience = patience
	answers := make(chan byte, 100)
	g.lose(func(p []byte) bool { // drop all packets to the client, which would answer with a reset
		if p[ip4Protocol] == protoTCP {
			answers <- p[20+tcpFlags]
		}
		return true
	})
	p := floodPacket(0, true)
	for range 2 {
		if _, err := g.WritePackets([][]byte{slices.Clone(p)}); err != nil {
			t.Fatal(err)
		}
		if flags := <-answers; flags != flagSYN|flagACK {
			t.Errorf("the answer to the SYN has the flags %#x, want those of a SYN-ACK", flags)
		}
		e := <-ends
		var op *net.OpError
		if !errors.As(e.err, &op) || op.Op != "accept" || !op.Timeout() || !errors.Is(e.err, os.ErrDeadlineExceeded) {
			t.Errorf("Accept returned %v, want a timeout", e.err)
		}
		if errors.Is(e.err, syscall.ETIMEDOUT) || e.took < patience {
			t.Errorf("Accept failed with %v after %v, want a failure because of its own limit of %v", e.err, e.took, patience)
		}
		waitFor(t, func() bool {
			n := g.counts()
			return n.flows == 0 && n.pending == 0 && n.all == 0 && n.datagrams == 0
		})
		waitFor(t, func() bool {
			for _, e := range g.link.forward.stack.RegisteredEndpoints() {
				if e, ok := e.(*tcp.Endpoint); ok && e.EndpointState() != tcp.StateError && e.EndpointState() != tcp.StateClose {
					return false
				}
			}
			return g.Stats().Memory == 0
		})
		for len(answers) > 0 {
			<-answers // remove the repeated SYN-ACKs and the reset
		}
	}
}
