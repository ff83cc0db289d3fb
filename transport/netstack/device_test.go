package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// twoNets returns two Nets, whose devices are each other's peers. When the wire between the devices is full, the devices wait, so
// the wire loses no datagram.
func twoNets(t testing.TB) (a, b *Net, da, db *wireguard.Device) {
	t.Helper()
	wire := pipe.NewNetwork(pipe.Config{Lossless: true})
	side := func(addrs ...netip.Addr) (n *Net, s devices.Side) {
		n, err := New(Config{Addresses: addrs})
		if err != nil {
			t.Fatal(err)
		}
		end := wire.NewEnd()
		s = devices.Side{Tunnel: n, Bind: end, At: end.Endpoint}
		for _, a := range addrs {
			s.Inside = append(s.Inside, netip.PrefixFrom(a, a.BitLen()))
		}
		return n, s
	}
	a, sideA := side(a4, a6)
	b, sideB := side(b4, b6)
	da, db = devices.Pair(t, sideA, sideB)
	return a, b, da, db
}

// TestBulk sends data in both directions of several connections at once, over IPv4 and IPv6, and compares digests. It checks
// that neither the links nor the devices drop a packet.
func TestBulk(t *testing.T) {
	a, b, da, db := twoNets(t)
	l, err := b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Add(2)
		go func() {
			defer wg.Done()
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			exchange(t, c, int64(i))
		}()
		go func() {
			defer wg.Done()
			c, err := a.Dial("tcp", []string{"10.8.0.2:80", "[fd08::2]:80"}[i%2])
			if err != nil {
				t.Error(err)
				return
			}
			exchange(t, c, int64(i+100))
		}()
	}
	wg.Wait()
	for _, n := range []*Net{a, b} {
		d := n.Stats()
		if d.Memory = 0; d != (Stats{}) { // the listener and the connections use some memory
			t.Errorf("the Stats of a Net are %+v, want no drops", d)
		}
	}
	for _, d := range []*wireguard.Device{da, db} {
		if s := d.Status(); s.Drops.Total() != 0 {
			t.Errorf("a device counted the drops %+v, want none", s.Drops)
		}
	}
}

// exchange writes some megabytes and their digest to c, reads as much from c, compares the digests, and closes c.
func exchange(t testing.TB, c net.Conn, seed int64) {
	size := int64(8 << 20)
	if oneThread {
		size = 128 << 10 // in WebAssembly, a device seals only a few megabytes per second
	}
	defer c.Close()
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		h := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(c, h), rand.New(rand.NewSource(seed)), size); err != nil {
			t.Error(err)
		}
		if _, err := c.Write(h.Sum(nil)); err != nil {
			t.Error(err)
		}
		if err := c.(*TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	h := sha256.New()
	if _, err := io.CopyN(h, c, size); err != nil {
		t.Error(err)
	}
	if want, err := io.ReadAll(c); err != nil || !bytes.Equal(want, h.Sum(nil)) {
		t.Errorf("the digest of the %d received bytes differs from the sender's, or reading it failed: %v", size, err)
	}
	wg.Wait()
}

// TestHTTP checks that an http.Client and an http.Server work through two Nets.
func TestHTTP(t *testing.T) {
	a, b, _, _ := twoNets(t)
	l, err := b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte("a page of some length "), 100_000)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.Copy(w, r.Body)
			return
		}
		_, _ = w.Write(page)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	client := &http.Client{Transport: &http.Transport{DialContext: a.DialContext}}
	get := func(r *http.Response, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || !bytes.Equal(got, page) {
			t.Errorf("%s: the response has %d bytes, %v; want the page of %d bytes", r.Request.Method, len(got), err, len(page))
		}
	}
	get(client.Get("http://10.8.0.2/"))
	get(client.Get("http://[fd08::2]/"))
	get(client.Post("http://10.8.0.2/", "text/plain", bytes.NewReader(page)))
	client.CloseIdleConnections()
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != http.ErrServerClosed {
		t.Error(err)
	}
}

// TestDeviceUnreachable dials and pings addresses that no peer has. It checks that the device's ICMP error ends each attempt at
// once.
func TestDeviceUnreachable(t *testing.T) {
	a, _, _, _ := twoNets(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		to := netip.MustParseAddr(to)
		_, err := a.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(to, 80))
		wantOpError(t, "dial", err, syscall.EHOSTUNREACH)
		_, err = a.Ping(ctx, to)
		wantOpError(t, "ping", err, syscall.EHOSTUNREACH)
	}
}

// TestCloseUnderLoad closes Nets and devices, in various orders, while they carry data. TestMain checks that no goroutine
// is left.
func TestCloseUnderLoad(t *testing.T) {
	for name, shut := range map[string]func(a, b *Net, da, db *wireguard.Device) error{
		"device":      func(a, b *Net, da, db *wireguard.Device) error { return errors.Join(da.Close(), db.Close()) },
		"Net":         func(a, b *Net, da, db *wireguard.Device) error { return errors.Join(b.Close(), a.Close()) },
		"Net, device": func(a, b *Net, da, db *wireguard.Device) error { return errors.Join(a.Close(), da.Close()) },
		"down, Net": func(a, b *Net, da, db *wireguard.Device) error {
			da.Down()
			return errors.Join(a.Close(), b.Close())
		},
		"Net, twice": func(a, b *Net, da, db *wireguard.Device) error { return errors.Join(a.Close(), a.Close(), b.Close()) },
		"device, twice": func(a, b *Net, da, db *wireguard.Device) error {
			return errors.Join(da.Close(), db.Close(), da.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, da, db := twoNets(t)
			l := echo(t, b, ":80")
			_ = l
			var wg sync.WaitGroup
			started := make(chan struct{}, 100)
			load := func(f func() error) {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for once := false; f() == nil; once = true {
						if !once {
							started <- struct{}{}
						}
					}
				}()
			}
			buf := make([]byte, 64<<10)
			for range 4 {
				c, err := a.Dial("tcp", "10.8.0.2:80")
				if err != nil {
					t.Fatal(err)
				}
				load(func() error { _, err := c.Write(buf); return err })
				load(func() error { _, err := c.Read(make([]byte, 1000)); return err })
			}
			u, err := a.ListenUDP(netip.AddrPort{})
			if err != nil {
				t.Fatal(err)
			}
			load(func() error { _, err := u.WriteToUDPAddrPort(buf[:1000], netip.AddrPortFrom(b6, 9)); return err })
			load(func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				defer cancel()
				c, err := a.DialContext(ctx, "tcp", "[fd08::2]:80")
				if err == nil {
					_ = c.Close()
				} else if !errors.Is(err, net.ErrClosed) {
					return nil
				}
				return err
			})
			load(func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				defer cancel()
				if _, err := a.Ping(ctx, b4); errors.Is(err, net.ErrClosed) {
					return err
				}
				return nil
			})
			for range 11 {
				<-started
			}
			if err := shut(a, b, da, db); err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			wg.Wait()
		})
	}
}
