package wireguard

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// A goLine is a wireguard-go Bind (conn.Bind) that is connected to the test instead of a network.
type goLine struct {
	in, out chan []byte
	mu      sync.Mutex
	closed  chan struct{}
}

type goEndpoint struct{}

func (goEndpoint) ClearSrc() {}

func (goEndpoint) SrcToString() string { return "" }

func (goEndpoint) DstToString() string { return "192.0.2.1:1" }

func (goEndpoint) DstToBytes() []byte { return []byte{192, 0, 2, 1, 0, 1} }

func (goEndpoint) DstIP() netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, 1}) }

func (goEndpoint) SrcIP() netip.Addr { return netip.Addr{} }

func (l *goLine) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	closed := make(chan struct{})
	l.closed = closed
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case m := <-l.in:
			sizes[0], eps[0] = copy(packets[0], m), goEndpoint{}
			return 1, nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}}, port, nil
}

func (l *goLine) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed != nil {
		close(l.closed)
		l.closed = nil
	}
	return nil
}

func (l *goLine) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, b := range bufs {
		l.out <- bytes.Clone(b)
	}
	return nil
}

func (l *goLine) SetMark(uint32) error { return nil }

func (l *goLine) ParseEndpoint(string) (conn.Endpoint, error) { return goEndpoint{}, nil }

func (l *goLine) BatchSize() int { return 1 }

// A goEnd is a wireguard-go device whose only peer is a remote.
type goEnd struct {
	line *goLine
	tun  *tuntest.ChannelTUN
}

func newGoEnd(t *testing.T, key PrivateKey, r *remote) *goEnd {
	t.Helper()
	e := &goEnd{&goLine{in: make(chan []byte), out: make(chan []byte, 16)}, tuntest.NewChannelTUN()}
	d := device.NewDevice(e.tun.TUN(), e.line, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(d.Close)
	err := d.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%x\npreshared_key=%x\nallowed_ip=%v/32\nendpoint=192.0.2.1:1\n",
		key[:], r.id.public[:], r.psk[:], r.addr))
	if err == nil {
		err = d.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}
