package wireguard_test

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A framingBind is a Bind for a relay, which needs a header in front of each datagram. The framingBind adds and skips the header
// without copying the datagram.
//
//	| zeros | length of the datagram (2 bytes) | datagram |
type framingBind struct {
	wireguard.Bind // the Bind that sends and receives the datagrams with the header
	headroom       int

	mu    sync.Mutex // guards all fields below
	sent  map[pipe.MessageType]int
	wrong error // what was wrong with a train's headroom or header, or nil
}

func newFramingBind(wire wireguard.Bind, headroom int) *framingBind {
	return &framingBind{Bind: wire, headroom: headroom, sent: make(map[pipe.MessageType]int)}
}

func (b *framingBind) Headroom() int { return b.headroom }

func (b *framingBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.Bind.Listen(port)
	return &framingSocket{Socket: s, bind: b}, err
}

type framingSocket struct {
	wireguard.Socket
	bind *framingBind
}

// Send writes each header into the headroom. The embedded Bind then sends each frame (header and datagram) as one datagram.
func (s *framingSocket) Send(ts []wireguard.Train) {
	b := s.bind
	b.mu.Lock()
	for i := range ts {
		t := &ts[i]
		if t.Headroom != b.headroom {
			b.wrong = fmt.Errorf("a train has %d bytes of headroom, want %d", t.Headroom, b.headroom)
			continue
		}
		for m := range t.Datagrams() {
			b.sent[pipe.TypeOf(m)]++
		}
		for f := range t.Frames() {
			header := f[:b.headroom]
			clear(header)
			binary.BigEndian.PutUint16(header[b.headroom-2:], uint16(len(f)-b.headroom))
		}
	}
	b.mu.Unlock()
	s.Socket.Send(ts)
}

func (s *framingSocket) Receivers() (rs []wireguard.Receiver) {
	for _, r := range s.Socket.Receivers() {
		rs = append(rs, &framingReceiver{r, s.bind})
	}
	return rs
}

type framingReceiver struct {
	wireguard.Receiver
	bind *framingBind
}

// Receive checks each header, and sets the headroom of each train, so that the device skips the headers.
func (r *framingReceiver) Receive() ([]wireguard.Train, error) {
	ts, err := r.Receiver.Receive()
	r.bind.mu.Lock()
	defer r.bind.mu.Unlock()
	for i := range ts {
		t := &ts[i]
		for f := range t.Frames() {
			if n := int(binary.BigEndian.Uint16(f[r.bind.headroom-2:])); n != len(f)-r.bind.headroom {
				r.bind.wrong = fmt.Errorf("a datagram has %d bytes, but its header says %d", len(f)-r.bind.headroom, n)
			}
		}
		t.Headroom = r.bind.headroom
	}
	return ts, err
}

// TestHeadroom checks that a device leaves enough space for the Bind's header in front of each message, of every type. The device
// must count the same number of bytes as without the header.
func TestHeadroom(t *testing.T) {
	var plain [2]wireguard.PeerStatus
	for _, headroom := range []int{0, 2, 10, 64} {
		t.Run(fmt.Sprint(headroom), func(t *testing.T) {
			inWorld(t, func(w *world) {
				var binds [2]*framingBind
				alter := func(i int) func(*wireguard.Config) {
					return func(c *wireguard.Config) {
						if headroom > 0 {
							binds[i] = newFramingBind(c.Bind.(scribblingBind).Bind, headroom)
							c.Bind = binds[i]
						}
					}
				}
				a, b := w.node("a", alter(0)), w.node("b", alter(1))
				a.knows(b)
				b.knows(a)

				wireguard.ForceLoad(b.Device, true)
				a.send(b, "staged") // b answers the initiation with a cookie reply
				w.advance(6 * time.Second)
				b.wantArrived("a sends an initiation with the cookie, and b responds", "staged")
				wireguard.ForceLoad(b.Device, false)
				long := strings.Repeat("x", 1200)
				a.send(b, long, long, "1", "22", long) // several trains and single messages
				b.wantArrived("b receives trains and single messages", long, long, "1", "22", long)
				b.send(a, long, "back", long)
				a.wantArrived("a receives trains and single messages", long, "back", long)
				w.advance(11 * time.Second) // b sends a keepalive

				status := [2]wireguard.PeerStatus{a.status(b), b.status(a)}
				for i := range status {
					s := &status[i]
					*s = wireguard.PeerStatus{Received: s.Received, Sent: s.Sent, Drops: s.Drops}
				}
				if headroom == 0 {
					plain = status
					return
				}
				if !reflect.DeepEqual(status, plain) {
					t.Errorf("with headroom the counters are %+v, want %+v", status, plain)
				}
				for i, want := range []map[pipe.MessageType]int{
					{pipe.TypeInitiation: 2, pipe.TypeData: 6, pipe.TypeKeepalive: 1},
					{pipe.TypeCookieReply: 1, pipe.TypeResponse: 1, pipe.TypeData: 3},
				} {
					if got := binds[i]; got.wrong != nil || !reflect.DeepEqual(got.sent, want) {
						t.Errorf("device %d sent %v (error %v), want %v", i, got.sent, got.wrong, want)
					}
				}
			})
		})
	}
}

type greedyBind struct {
	wireguard.Bind
	headroom int
}

func (b greedyBind) Headroom() int { return b.headroom }

func TestHeadroomBounds(t *testing.T) {
	for _, n := range []int{-1, 65} {
		_, err := wireguard.New(wireguard.Config{Tunnel: pipe.NewTunnel(0), Bind: greedyBind{pipe.NewNetwork(pipe.Config{}).NewEnd(), n}})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("wants %d bytes of headroom: want 0 to 64", n)) {
			t.Errorf("with a Bind that wants %d bytes of headroom, New returned the error %v, want one with the limits", n, err)
		}
	}
}

// TestHeadroomOfForeignBatch sends a batch that does not come from the device's NewBatch, so it may have no space for the Bind's
// header. Send must make the space.
func TestHeadroomOfForeignBatch(t *testing.T) {
	inWorld(t, func(w *world) {
		var bind *framingBind
		a := w.node("a", func(c *wireguard.Config) {
			bind = newFramingBind(c.Bind.(scribblingBind).Bind, 64)
			c.Bind = bind
		})
		b := w.node("b", func(c *wireguard.Config) { c.Bind = newFramingBind(c.Bind.(scribblingBind).Bind, 64) })
		a.knows(b)
		b.knows(a)
		a.send(b, "first")
		b.wantArrived("the session is established", "first")
		for i, batch := range []*wireguard.Batch{new(wireguard.Batch), b.NewBatch()} {
			for range 2 { // the second time the batch already has the layout of a's batches
				var want []string
				long := strings.Repeat("x", 1000)
				for batch.Append(a.packet(b, long)) {
					want = append(want, long)
				}
				if err := a.Send(batch); err != nil || batch.Len() != 0 {
					t.Fatalf("batch %d: Send returned %v and left %d packets in the batch, want no error and no packets", i, err, batch.Len())
				}
				b.wantArrived("all packets of the batch arrive in order", want...)
			}
		}
		if bind.wrong != nil {
			t.Error(bind.wrong)
		}
	})
}
