package netstack

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// TestFlowMisuse checks that a program can decide about a flow only once, and only with a method for the flow's network. It
// also checks that Data returns the payload of a ping.
func TestFlowMisuse(t *testing.T) {
	done := make(chan struct{}, 3)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		defer func() { done <- struct{}{} }()
		if f.Network() == "ping" {
			if _, err := f.Accept(); err == nil {
				t.Error("Accept of a ping succeeded")
			}
			if f.Source().Port() != 0 || f.Destination().Port() != 0 || !bytes.Equal(f.Data(), []byte("data")) {
				t.Errorf("the ping is from %v to %v with the data %q, want ports 0 and \"data\"", f.Source(), f.Destination(), f.Data())
			}
		} else {
			if err := f.Answer(); err == nil {
				t.Error("Answer of a datagram succeeded")
			}
			if f.Data() != nil {
				t.Error("Data of a datagram is not nil")
			}
		}
		f.Discard()
		f.Discard()
		for _, err := range []error{f.Refuse(0), second(f.Accept()), f.Answer()} {
			if err == nil {
				t.Error("a second decision succeeded")
			}
		}
	}})
	src, dst := netip.AddrPortFrom(clientAddrs[0][0], 1), netip.AddrPortFrom(far4, 2)
	for _, p := range [][]byte{
		udpPacket(src, dst, "data"),
		ipPacket(src.Addr(), far4, protoICMP4, append([]byte{8, 0, 0, 0, 0, 1, 0, 2}, "data"...)...),
		ipPacket(clientAddrs[0][1], far6, protoICMP6, append([]byte{128, 0, 0, 0, 0, 1, 0, 2}, "data"...)...),
	} {
		if _, err := g.WritePackets([][]byte{p}); err != nil {
			t.Fatal(err)
		}
		<-done
	}
}

func second(_ net.Conn, err error) error { return err }

// TestForwardUndecided checks that a flow ends if the program takes more than a minute to decide.
func TestForwardUndecided(t *testing.T) {
	begun, ends := make(chan struct{}), make(chan error, 1)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		close(begun)
		<-f.Context().Done()
		ends <- context.Cause(f.Context())
	}})
	if _, err := g.WritePackets([][]byte{floodPacket(0, true)}); err != nil {
		t.Fatal(err)
	}
	<-begun
	now := time.Now()
	g.sweep(now.Add(decideLimit - time.Second))
	if len(ends) > 0 {
		t.Errorf("the flow ended before %v", decideLimit)
	}
	g.sweep(now.Add(decideLimit + time.Second))
	if err := <-ends; err != errFlowUndecided {
		t.Errorf("the flow's context ended with the cause %v, want %v", err, errFlowUndecided)
	}
	g.settles(t, func(n flowCounts) bool { return n == flowCounts{} })
}

// TestForwardHairpin checks that a packet to the peer that sent it is dropped, unless Forwarding.Hairpin is set. A packet whose
// source belongs to no peer is dropped in any case.
func TestForwardHairpin(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		flows := make(chan *Flow, 2)
		g := newGateway(t, Config{Forwarding: Forwarding{Hairpin: hairpin}, Forward: func(f *Flow) { flows <- f }})
		src := netip.AddrPortFrom(clientAddrs[0][0], 1)
		g.route(far4, 0)
		want := Stats{Martian: 1, Hairpin: 1}
		if hairpin {
			want.Hairpin = 0
		}
		for _, p := range [][]byte{
			udpPacket(src, netip.AddrPortFrom(far4, 2), ""),
			udpPacket(netip.MustParseAddrPort("192.0.2.99:1"), netip.AddrPortFrom(far4, 2), ""),
		} {
			if _, err := g.WritePackets([][]byte{p}); err != nil {
				t.Fatal(err)
			}
		}
		got := g.Stats()
		got.Memory = 0 // a packet that waits takes some memory
		if got != want {
			t.Errorf("Hairpin %t: the Stats are %+v, want %+v", hairpin, got, want)
		}
		if hairpin {
			if f := <-flows; f.Source() != src {
				t.Errorf("the flow's source is %v, want %v", f.Source(), src)
			}
		}
		if len(flows) > 0 {
			t.Errorf("Hairpin %t: an unexpected flow from %v began", hairpin, (<-flows).Source())
		}
	}
}

// TestQuota checks that each peer can take half of the free places, and at least 10. After all peers have given their places back,
// all places are free.
func TestQuota(t *testing.T) {
	q := quota[wireguard.PublicKey]{limit: 1000, least: 10}
	var peers [200]wireguard.PublicKey
	for i := range peers {
		peers[i] = wireguard.NewPrivateKey().Public()
		n := 0
		for q.take(peers[i], 1) {
			n++
		}
		want := 10
		if i < 6 {
			want = max(10, []int{500, 250, 125, 63, 31, 16}[i])
		}
		if n != want {
			t.Errorf("peer %d got %d places, want %d", i, n, want)
		}
	}
	if most := q.limit + len(peers)*q.least; q.total > most {
		t.Errorf("%d places are taken, want at most %d", q.total, most)
	}
	for _, p := range peers {
		q.give(p, q.held[p])
	}
	if q.total != 0 || len(q.held) != 0 {
		t.Errorf("%d places are still taken, and %d peers still have places; want none", q.total, len(q.held))
	}
}
