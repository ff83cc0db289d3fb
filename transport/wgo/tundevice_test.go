package wgo

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

const offset = 16 // the offset that wireguard-go uses

func theirBuffers(n int) (bufs [][]byte, sizes []int) {
	for range n {
		bufs = append(bufs, make([]byte, slot))
	}
	return bufs, make([]int, n)
}

func tunDeviceOf(t *testing.T, tn wireguard.Tunnel) tun.Device {
	t.Helper()
	d, err := TUNDevice(tn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestTUNDeviceReads(t *testing.T) {
	q := newQueue()
	d := tunDeviceOf(t, q)
	for i := range 40 {
		q.in <- packet(100+i, uint32(i))
	}
	bufs, sizes := theirBuffers(7) // fewer buffers than a batch can hold packets
	bufs[2] = bufs[2][:offset+50]  // this buffer is too small for its packet
	for at := 0; at < 40; {
		n, err := d.Read(bufs, sizes, offset)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		for i := range n {
			if i == 2 {
				if sizes[i] != 0 {
					t.Errorf("packet %d has size %d in a buffer of 50 bytes, want 0", at+i, sizes[i])
				}
			} else if want := packet(100+at+i, uint32(at+i)); !bytes.Equal(bufs[i][offset:offset+sizes[i]], want) {
				t.Errorf("packet %d is missing or was changed", at+i)
			}
		}
		at += n
	}
	read := make(chan error)
	go func() {
		_, err := d.Read(bufs, sizes, offset)
		read <- err
	}()
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: error %v, want os.ErrClosed, after which wireguard-go ends without an error message", err)
	}
}

// A failing is a queue whose ReadPackets returns a packet together with an error.
type failing struct {
	*queue
	err error
}

func (f *failing) ReadPackets(b *wireguard.Batch) error {
	b.Append(packet(100, 1))
	return f.err
}

func TestTUNDeviceReadError(t *testing.T) {
	broken := errors.New("broken")
	d := tunDeviceOf(t, &failing{newQueue(), broken})
	bufs, sizes := theirBuffers(4)
	if n, err := d.Read(bufs, sizes, offset); n != 1 || err != nil || sizes[0] != 100 {
		t.Errorf("Read returned %d packets, error %v; want the packet before the error", n, err)
	}
	for range 2 {
		if n, err := d.Read(bufs, sizes, offset); n != 0 || !errors.Is(err, broken) {
			t.Errorf("Read returned %d packets, error %v; want no packet and the tunnel's error", n, err)
		}
	}
}

func TestTUNDeviceWrites(t *testing.T) {
	q := newQueue()
	d := tunDeviceOf(t, q)
	bufs, _ := theirBuffers(3)
	for i := range bufs {
		bufs[i] = bufs[i][:offset+copy(bufs[i][offset:], packet(100+i, uint32(i)))]
	}
	bufs[1] = bufs[1][:offset] // a buffer without a packet
	if n, err := d.Write(bufs, offset); n != 2 || err != nil {
		t.Errorf("Write returned %d, error %v; want 2 packets and no error", n, err)
	}
	for _, i := range []int{0, 2} {
		if p := <-q.out; !bytes.Equal(p, packet(100+i, uint32(i))) {
			t.Errorf("packet %d was changed", i)
		}
	}
}

func TestTUNDeviceEvents(t *testing.T) {
	q := newQueue()
	d := tunDeviceOf(t, q)
	if e := <-d.Events(); e != tun.EventUp {
		t.Errorf("the first event is %d, want EventUp, for which wireguard-go waits", e)
	}
	for mtu := 1300; mtu < 1310; mtu++ { // more changes than the channel of events can hold
		q.mtu = mtu
		d.Write(nil, offset)
	}
	for len(d.Events()) > 0 {
		if e := <-d.Events(); e != tun.EventMTUUpdate {
			t.Errorf("received event %d, want EventMTUUpdate", e)
		}
	}
	if d.Write(nil, offset); len(d.Events()) != 1 {
		t.Error("no event reports the last change of the MTU, which did not fit the channel at first")
	}
	if mtu, err := d.MTU(); mtu != 1309 || err != nil {
		t.Errorf("MTU returned %d, error %v; want 1309", mtu, err)
	}
	if d.Write(nil, offset); len(d.Events()) != 1 {
		t.Error("Write sent another event, although the MTU did not change")
	}
	<-d.Events()
	d.Close()
	q.mtu = 1
	d.Write(nil, offset) // must not send an event to the closed channel
	if _, ok := <-d.Events(); ok {
		t.Error("Events is open after Close")
	}
	if name, err := d.Name(); name == "" || err != nil || d.File() != nil || d.BatchSize() != 128 {
		t.Errorf("Name %q, error %v, File %v, BatchSize %d; want a name, no file and a batch size of 128", name, err, d.File(), d.BatchSize())
	}
}

type attacher struct{ wireguard.Tunnel }

func (attacher) Attach(*wireguard.Device) {}

type manyQueues struct {
	wireguard.Tunnel
	queues []wireguard.PacketSource
}

func (m manyQueues) Queues() []wireguard.PacketSource { return m.queues }

func TestTUNDeviceRefuses(t *testing.T) {
	q := newQueue()
	for _, c := range []struct {
		tunnel wireguard.Tunnel
		says   string // part of the error; empty means no error
	}{
		{attacher{q}, "attacher pushes its packets"},
		{struct{ wireguard.Tunnel }{q}, "implement wireguard.PacketSource"},
		{manyQueues{q, nil}, "0 queues"},
		{manyQueues{q, []wireguard.PacketSource{q, q}}, "2 queues"},
		{manyQueues{q, []wireguard.PacketSource{q}}, ""},
	} {
		d, err := TUNDevice(c.tunnel)
		switch {
		case c.says != "":
			if d != nil || err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("TUNDevice(%T): error %v, want one that contains %q", c.tunnel, err, c.says)
			}
		case err != nil:
			t.Error(err)
		default:
			q.in <- packet(100, 1)
			bufs, sizes := theirBuffers(1)
			if n, err := d.Read(bufs, sizes, offset); n != 1 || err != nil {
				t.Errorf("Read from the only queue returned %d packets, error %v; want 1", n, err)
			}
		}
	}
}

// A mirror is a Tunnel whose ReadPackets always returns the same packets.
type mirror struct {
	*queue
	p []byte
}

func (m *mirror) ReadPackets(b *wireguard.Batch) error {
	for b.Len() < 64 && b.Append(m.p) {
	}
	return nil
}

func (m *mirror) WritePackets(pkts [][]byte) (int, error) { return len(pkts), nil }

func (m *mirror) Close() error { return net.ErrClosed }

func TestTUNDeviceAllocations(t *testing.T) {
	d := tunDeviceOf(t, &mirror{newQueue(), packet(1400, 1)})
	bufs, sizes := theirBuffers(128)
	testkit.NoAllocations(t, 100, func() {
		n, err := d.Read(bufs, sizes, offset)
		if n != 64 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := d.Write(bufs[:n], offset); n != 64 || err != nil {
			t.Fatal(n, err)
		}
	})
}
