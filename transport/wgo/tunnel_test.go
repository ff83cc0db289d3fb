package wgo

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// fill puts packets of n bytes with consecutive numbers into all of bufs.
func fill(bufs [][]byte, sizes []int, offset, n int, seq *uint32) int {
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], packet(n, *seq))
		*seq++
	}
	return len(bufs)
}

func closeTunnel(t *testing.T, tn wireguard.Tunnel) {
	t.Helper()
	if err := tn.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestTunnelKeepsWhatDoesNotFit(t *testing.T) {
	dev := newFakeTUN(t, 128)
	var seq uint32
	dev.read = func(bufs [][]byte, sizes []int, offset int) (int, error) {
		n := fill(bufs, sizes, offset, 9000, &seq)
		sizes[3] = 0 // ReadPackets must skip this packet
		return n, nil
	}
	tn := Tunnel(dev).(*tunnel)
	defer closeTunnel(t, tn)
	var b wireguard.Batch
	var want uint32
	for range 40 {
		if err := tn.ReadPackets(&b); err != nil {
			t.Fatal(err)
		}
		if b.Len() == 0 || b.Len() > 14 {
			t.Fatalf("a batch of about 128 KiB holds %d packets of 9000 bytes, want 1 to 14", b.Len())
		}
		for i := range b.Len() {
			if want%128 == 3 {
				want++
			}
			if !bytes.Equal(b.Packet(i), packet(9000, want)) {
				t.Fatalf("packet %d is missing or was changed", want)
			}
			want++
		}
		b.Reset()
	}
}

func TestTunnelReadErrors(t *testing.T) {
	broken := errors.New("broken")
	long := func(err error, times int) []error {
		errs := make([]error, times)
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	for _, c := range []struct {
		name string
		errs []error
		want error // the error with which the tunnel ends; nil means that the tunnel continues
		gone bool  // the tunnel ends with an error that wraps no other error
	}{
		{name: "too many segments", errs: long(tun.ErrTooManySegments, 100)},
		{name: "temporary", errs: long(syscall.EAGAIN, 20)},
		{name: "odd packets", errs: long(broken, readFailures-1)},
		{name: "no packet and no error", errs: long(nil, 3)},
		{name: "broken", errs: long(broken, readFailures), want: broken},
		{name: "interface deleted", errs: []error{os.ErrClosed}, gone: true},
		{name: "interface deleted, net's error", errs: []error{net.ErrClosed}, gone: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := newFakeTUN(t, 2)
			dev.read = func(bufs [][]byte, sizes []int, offset int) (int, error) {
				if len(c.errs) > 0 {
					err := c.errs[0]
					c.errs = c.errs[1:]
					if err == nil {
						clear(sizes)
						return len(bufs), nil
					}
					return -1, err // the TUN of wireguard-go on Linux may return -1 with ErrTooManySegments
				}
				var seq uint32 = 7
				return fill(bufs[:1], sizes, offset, 100, &seq), tun.ErrTooManySegments // the packets that were read are valid
			}
			tn := Tunnel(dev).(*tunnel)
			defer closeTunnel(t, tn)
			var b wireguard.Batch
			err := tn.ReadPackets(&b)
			closed := errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed)
			switch {
			case c.want != nil:
				if !errors.Is(err, c.want) || closed {
					t.Errorf("ReadPackets returned %v, want %v, and no error of a Close", err, c.want)
				}
				if again := tn.ReadPackets(&b); again != err {
					t.Errorf("the next ReadPackets returned %v, want the same error", again)
				}
			case c.gone:
				if err == nil || closed {
					t.Errorf("ReadPackets returned %v, want an error other than those after Close", err)
				}
			case err != nil || b.Len() != 1 || !bytes.Equal(b.Packet(0), packet(100, 7)):
				t.Errorf("ReadPackets returned %d packets, error %v; want the valid packet and no error", b.Len(), err)
			}
			b.Reset()
		})
	}
}

func TestTunnelClose(t *testing.T) {
	dev := newFakeTUN(t, 1)
	tn := Tunnel(dev).(*tunnel)
	read := make(chan error)
	go func() {
		var b wireguard.Batch
		read <- tn.ReadPackets(&b)
	}()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { closeTunnel(t, tn) }) // Close of the fakeTUN panics if it is called twice
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadPackets after Close: error %v, want net.ErrClosed", err)
	}
	all.Wait()
	if _, err := tn.WritePackets([][]byte{packet(100, 1)}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WritePackets after Close: error %v, want net.ErrClosed", err)
	}
	closeTunnel(t, Tunnel(newFakeTUN(t, 1))) // a tunnel that is never read
}

// TestTunnelCloseWhileWriteWaitsForRead checks that Close returns even if a Write of the tun.Device waits for a Read, as in
// tun/netstack, and no goroutine calls ReadPackets.
func TestTunnelCloseWhileWriteWaitsForRead(t *testing.T) {
	dev := newFakeTUN(t, 1)
	wake, writing := make(chan struct{}), make(chan struct{})
	dev.write = func(bufs [][]byte, _ int) (int, error) {
		close(writing)
		<-wake
		return len(bufs), nil
	}
	dev.read = func([][]byte, []int, int) (int, error) {
		wake <- struct{}{}
		return 0, nil
	}
	tn := Tunnel(dev).(*tunnel)
	wrote := make(chan error)
	go func() {
		_, err := tn.WritePackets([][]byte{packet(100, 1)})
		wrote <- err
	}()
	<-writing
	go tn.Close()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	closeTunnel(t, tn)
}

func TestTunnelWrite(t *testing.T) {
	broken := errors.New("broken")
	dev := newFakeTUN(t, 4)
	var got [][]byte
	var fail bool
	dev.write = func(bufs [][]byte, offset int) (int, error) {
		total := 0
		for i, b := range bufs {
			got = append(got, bytes.Clone(b[offset:]))
			total += len(b) - offset
			bufs[i] = append(b, 1, 2, 3) // as the TUN of wireguard-go does on Linux
		}
		if fail {
			return total, broken // the TUN of wireguard-go on Linux returns the number of bytes
		}
		return 0, nil
	}
	tn := Tunnel(dev).(*tunnel)
	defer closeTunnel(t, tn)
	var pkts [][]byte
	for i := range 10 {
		pkts = append(pkts, packet(1000+i, uint32(i)))
	}
	check := func(want int, wantErr error) {
		t.Helper()
		got = nil
		n, err := tn.WritePackets(pkts)
		if n != want || !errors.Is(err, wantErr) {
			t.Errorf("WritePackets returned %d, error %v; want %d, error %v", n, err, want, wantErr)
		}
		if len(got) != len(pkts) {
			t.Fatalf("the device received %d packets, want %d", len(got), len(pkts))
		}
		for i := range got {
			if !bytes.Equal(got[i], packet(1000+i, uint32(i))) || !bytes.Equal(pkts[i], got[i]) {
				t.Errorf("packet %d was changed", i)
			}
		}
	}
	check(10, nil)
	fail = true
	check(3+3+1, broken) // three calls of Write with 4, 4 and 2 packets; each call counts one of its packets as not accepted
	fail = false
	if n, err := tn.WritePackets([][]byte{make([]byte, 65535)}); n != 0 || err != nil {
		t.Errorf("a packet too large to have arrived in a UDP datagram: %d written, error %v; want 0 and no error", n, err)
	}
}

func TestTunnelFollowsMTU(t *testing.T) {
	dev := newFakeTUN(t, 1)
	dev.mtu = 0
	seen := make(chan tun.Event, 4)
	tn := TunnelWithEvents(dev, func(e tun.Event) { seen <- e }).(*tunnel)
	if tn.MTU() != 1420 {
		t.Errorf("the MTU is %d for a device that cannot tell its MTU, want 1420", tn.MTU())
	}
	go func() {
		var b wireguard.Batch
		tn.ReadPackets(&b)
	}()
	for _, mtu := range []int{1280, 9000} {
		dev.setMTU(mtu)
		if e := <-seen; e != tun.EventMTUUpdate || tn.MTU() != mtu {
			t.Errorf("after event %d the MTU is %d, want %d", e, tn.MTU(), mtu)
		}
	}
	for range 8 {
		dev.events <- tun.EventDown // a goroutine of the tunnel receives each event
		if e := <-seen; e != tun.EventDown {
			t.Errorf("received event %d, want EventDown", e)
		}
	}
	closeTunnel(t, tn)
}

func TestTunnelAllocations(t *testing.T) {
	dev := newFakeTUN(t, 8)
	p := packet(1400, 1)
	dev.read = func(bufs [][]byte, sizes []int, offset int) (int, error) {
		for i := range bufs {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(bufs), nil
	}
	dev.write = func(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
	tn := Tunnel(dev).(*tunnel)
	defer closeTunnel(t, tn)
	pkts := make([][]byte, 64)
	for i := range pkts {
		pkts[i] = p
	}
	var b wireguard.Batch
	testkit.NoAllocations(t, 100, func() {
		if err := tn.ReadPackets(&b); err != nil || b.Len() != 8 {
			t.Fatal(b.Len(), err)
		}
		b.Reset()
		if n, err := tn.WritePackets(pkts); n != 64 || err != nil {
			t.Fatal(n, err)
		}
	})
}

// TestTunnelClosesNetstack checks that a stack of wireguard-go can be closed, whether a goroutine reads it or not. TestMain
// checks that no goroutine of the stack is left.
func TestTunnelClosesNetstack(t *testing.T) {
	for _, read := range []bool{false, true} {
		dev, _, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil, 1420)
		if err != nil {
			t.Fatal(err)
		}
		tn := Tunnel(dev).(*tunnel)
		ended := make(chan error, 1)
		if read {
			go func() {
				var b wireguard.Batch
				ended <- tn.ReadPackets(&b)
			}()
		} else {
			ended <- net.ErrClosed
		}
		closeTunnel(t, tn)
		closeTunnel(t, tn)
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("ReadPackets ended with %v, want net.ErrClosed", err)
		}
	}
}
