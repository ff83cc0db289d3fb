package udp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// A wayUnderLoad sends packets in one direction between two devices. It sends all the time, but has at most 64 packets (the
// constant window) under way, so that no queue overflows. A packet can only be lost if no socket receives it.
type wayUnderLoad struct {
	from, to       *pipe.Tunnel
	src, dst       netip.AddrPort
	sent, received atomic.Int64
}

const window = 64

func (w *wayUnderLoad) send(ctx context.Context) {
	for n := uint64(0); ctx.Err() == nil; {
		if w.sent.Load()-w.received.Load() >= window {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		n++
		if w.from.Send(ctx, pipe.UDPPacket(w.src, w.dst, binary.BigEndian.AppendUint64(nil, n))) == nil {
			w.sent.Add(1)
		}
	}
}

func (w *wayUnderLoad) receive(ctx context.Context) {
	for {
		if _, err := w.to.Receive(ctx); err != nil {
			return
		}
		w.received.Add(1)
	}
}

// lost waits up to 2 s for the packets that have not arrived yet, and returns how many did not arrive.
func (w *wayUnderLoad) lost() int64 {
	for begin := time.Now(); w.received.Load() < w.sent.Load() && time.Since(begin) < 2*time.Second; {
		time.Sleep(time.Millisecond)
	}
	return w.sent.Load() - w.received.Load()
}

// TestWakeUnderLoad checks that no packet in either direction is lost during ten Wakes of a device and ten Wakes of its peer.
// It also checks that no packet that the device sends is lost while it changes its port ten times.
func TestWakeUnderLoad(t *testing.T) {
	for name, bind := range map[string]*udp.Bind{"offload": {}, "portable": {Portable: true}, "receivers": {Receivers: 3}} {
		t.Run(name, func(t *testing.T) {
			addrA, addrB := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")
			tunA, tunB := pipe.NewTunnel(1420), pipe.NewTunnel(1420)
			a, b := devices.Pair(t,
				devices.Side{Tunnel: tunA, Bind: bind, Inside: []netip.Prefix{prefix(addrA)}},
				devices.Side{Tunnel: tunB, Bind: bind, Inside: []netip.Prefix{prefix(addrB)}},
			)
			first := pipe.UDPPacket(addrA, addrB, []byte("first"))
			patient, enough := context.WithTimeout(t.Context(), 20*time.Second)
			defer enough()
			if err := tunA.Send(patient, first); err != nil {
				t.Fatal(err)
			}
			if got, err := tunB.Receive(patient); err != nil || !bytes.Equal(got, first) {
				t.Fatalf("the first packet arrived as %x, error %v; want it unchanged", got, err)
			}

			out := &wayUnderLoad{from: tunA, to: tunB, src: addrA, dst: addrB}
			in := &wayUnderLoad{from: tunB, to: tunA, src: addrB, dst: addrA}
			var receivers sync.WaitGroup
			done, stopAll := context.WithCancel(t.Context())
			defer receivers.Wait()
			defer stopAll()
			for _, w := range []*wayUnderLoad{out, in} {
				receivers.Go(func() { w.receive(done) })
			}
			load := func(what string, ways []*wayUnderLoad, change func() error) {
				t.Helper()
				ctx, stop := context.WithCancel(t.Context())
				var senders sync.WaitGroup
				for _, w := range ways {
					senders.Go(func() { w.send(ctx) })
				}
				for range 10 {
					for _, w := range ways {
						for n := w.received.Load(); w.received.Load() < n+window/2 && patient.Err() == nil; {
							time.Sleep(50 * time.Microsecond)
						}
					}
					if err := change(); err != nil {
						t.Error(err)
					}
				}
				stop()
				senders.Wait()
				for _, w := range ways {
					if n := w.lost(); n != 0 {
						t.Errorf("%s: %d of %d packets from %v are lost", what, n, w.sent.Load(), w.src)
					}
				}
			}
			load("10 Wakes", []*wayUnderLoad{out, in}, a.Wake)
			load("10 Wakes of the peer", []*wayUnderLoad{out, in}, b.Wake)
			load("10 changes of port", []*wayUnderLoad{out}, func() error {
				free, err := bind.Listen(0)
				if err != nil {
					return err
				}
				port := free.Port()
				free.Close()
				return a.Configure(wireguard.Change{ListenPort: &port})
			})
		})
	}
}
