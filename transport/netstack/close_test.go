package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// TestCloseUnblocks closes a Net, its device, or both at once while one call of each kind waits: Accept, Dial, Dial of a name,
// Read, WriteTo and Write of TCP, Read of UDP, and Ping. It checks that all of them soon fail with net.ErrClosed. TestMain checks
// that no goroutine is left.
func TestCloseUnblocks(t *testing.T) {
	for name, shut := range map[string]func(a *Net, da *wireguard.Device) error{
		"Net":    func(a *Net, _ *wireguard.Device) error { return a.Close() },
		"device": func(_ *Net, da *wireguard.Device) error { return da.Close() },
		"both": func(a *Net, da *wireguard.Device) error {
			closed := make(chan error)
			go func() { closed <- a.Close() }()
			return errors.Join(da.Close(), <-closed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, da, db := twoNets(t)
			a.resolver.init(a, &Config{DNS: []netip.Addr{b4}}) // no server answers at this address
			reads, _ := connectedTCP(t, a, b, b4)
			writes, _ := connectedTCP(t, a, b, b6)
			l, err := a.Listen("tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			u, err := a.ListenUDP(netip.AddrPort{})
			if err != nil {
				t.Fatal(err)
			}
			db.Down() // from here on, nothing answers

			ctx := context.Background()
			var written atomic.Int64
			failed := map[string]chan error{}
			blocks := func(what string, f func() error) {
				c := make(chan error, 1)
				failed[what] = c
				go func() { c <- f() }()
			}
			blocks("Accept", func() error { _, err := l.Accept(); return err })
			blocks("Dial", func() error { _, err := a.Dial("tcp", "10.8.0.2:81"); return err })
			blocks("Dial of an IPv6 address", func() error { _, err := a.DialContext(ctx, "tcp", "[fd08::2]:81"); return err })
			blocks("Dial of a name", func() error { _, err := a.DialContext(ctx, "tcp", "example.com:80"); return err })
			blocks("Read of TCP", func() error { _, err := reads.Read(make([]byte, 1)); return err })
			blocks("WriteTo of TCP", func() error { _, err := writes.WriteTo(io.Discard); return err })
			blocks("Read of UDP", func() error { _, _, err := u.ReadFromUDPAddrPort(make([]byte, 1)); return err })
			blocks("Ping", func() error { _, err := a.Ping(ctx, b4); return err })
			blocks("Write of TCP", func() error {
				for p := make([]byte, 64<<10); ; {
					n, err := writes.Write(p)
					if written.Add(int64(n)); err != nil {
						return err
					}
				}
			})
			for last := int64(-1); last != written.Load() || last == 0; { // wait until the send buffer is full
				last = written.Load()
				time.Sleep(20 * time.Millisecond)
			}
			for what, c := range failed {
				select {
				case err := <-c:
					t.Errorf("%s returned before anything was closed: %v", what, err)
					c <- net.ErrClosed
				default:
				}
			}
			if err := shut(a, da); err != nil {
				t.Error(err)
			}
			late := time.After(5 * time.Second)
			for what, c := range failed {
				select {
				case err := <-c:
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("%s returned %v, want net.ErrClosed", what, err)
					}
				case <-late:
					t.Fatalf("%s still waits 5 s after the end of Close", what)
				}
			}
		})
	}
}
