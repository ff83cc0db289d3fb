//go:build linux && !android

package tun

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/udp"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	theirs "golang.zx2c4.com/wireguard/tun"
)

// BenchmarkTCP measures one TCP connection between two network namespaces, through two devices in this process. It measures first
// with devices of this library, and then with devices of wireguard-go, which use wireguard-go's TUN.
//
//	x: wg0 ══ device ── 127.0.0.1 ── device ══ wg0 :y
func BenchmarkTCP(b *testing.B) {
	for _, x := range sides {
		b.Run(x.name, func(b *testing.B) {
			l := x.link(b)
			out, in := l.connection(b)
			go func() {
				buf := make([]byte, 1<<20)
				for {
					if _, err := out.Write(buf); err != nil {
						return
					}
				}
			}()
			buf := make([]byte, 1<<20)
			for range 100 { // so that TCP's window has grown before the measurement
				if _, err := io.ReadFull(in, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(1 << 20)
			before := processorTime(b)
			for b.Loop() {
				if _, err := io.ReadFull(in, buf); err != nil {
					b.Fatal(err)
				}
			}
			used := processorTime(b) - before
			b.ReportMetric(used.Seconds()/float64(b.N)/(1<<20)*1e9, "cpu-s/GB")
		})
	}
}

// BenchmarkEcho measures the time for sending one byte over the TCP connection and back.
func BenchmarkEcho(b *testing.B) {
	for _, x := range sides {
		b.Run(x.name, func(b *testing.B) {
			l := x.link(b)
			out, in := l.connection(b)
			go func() { _, _ = io.Copy(in, in) }()
			var buf [1]byte
			before := processorTime(b)
			for b.Loop() {
				if _, err := out.Write(buf[:]); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(out, buf[:]); err != nil {
					b.Fatal(err)
				}
			}
			used := processorTime(b) - before
			b.ReportMetric(used.Seconds()/float64(b.N)*1e6, "cpu-µs/op")
		})
	}
}

// processorTime returns the processor time that this process has used so far, including the kernel's work for it. On a machine
// that runs other programs too, this time varies less than the throughput.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var sides = []struct {
	name string
	link func(b *testing.B) link
}{{"ours", ourLink}, {"wireguard-go", theirLink}}

// ourLink returns a link whose interfaces are connected through two devices of this library.
func ourLink(b *testing.B) link {
	l := newLink(b, Config{})
	l.devices(b)
	return l
}

// devices connects the interfaces through two devices of this library.
func (l link) devices(t testing.TB) {
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	bind := &udp.Bind{Address: netip.MustParseAddr("127.0.0.1")}
	devices.Pair(t, devices.Side{Tunnel: l.a, Bind: bind, Inside: all}, devices.Side{Tunnel: l.b, Bind: bind, Inside: all})
}

// theirLink returns a link whose interfaces are connected through two devices of wireguard-go.
func theirLink(b *testing.B) link {
	l := link{x: newNamespace(b), y: newNamespace(b)}
	keyA, keyB := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	start := func(n *namespace, address string, own wireguard.PrivateKey, peer wireguard.PublicKey, port int, more string) *device.Device {
		var t theirs.Device
		n.do(b, func() {
			var err error
			if t, err = theirs.CreateTUN("wg0", 1420); err != nil {
				b.Error(err)
			}
		})
		d := device.NewDevice(t, conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
		b.Cleanup(d.Close)
		if err := d.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=%d\npublic_key=%x\nallowed_ip=0.0.0.0/0\n%s", own[:], port, peer[:], more)); err != nil {
			b.Fatal(err)
		}
		if err := d.Up(); err != nil {
			b.Fatal(err)
		}
		n.ip(b, "link set lo up")
		n.ip(b, "address add "+address+" dev wg0")
		n.ip(b, "link set wg0 up")
		return d
	}
	start(l.y, "10.9.0.2/24", keyB, keyA.Public(), 40917, "")
	start(l.x, "10.9.0.1/24", keyA, keyB.Public(), 0, "endpoint=127.0.0.1:40917\n")
	return l
}

// connection opens a TCP connection from x to y, and returns its ends in x (out) and in y (in).
func (l link) connection(t testing.TB) (out, in net.Conn) {
	t.Helper()
	l.y.do(t, func() {
		listener, err := net.Listen("tcp", "10.9.0.2:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		l.x.do(t, func() {
			if out, err = net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second); err != nil {
				t.Fatal(err)
			}
		})
		if in, err = listener.Accept(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		out.Close()
		in.Close()
	})
	return out, in
}
