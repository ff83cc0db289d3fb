package netstack

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

var (
	echoes   = flag.Int("echoes", 0, "how many connections TestEcho opens in each case, with 16 MiB in each direction and at most 0.1 % loss; 0 means up to 25 connections with fewer bytes and small buffers")
	patience = flag.Duration("patience", time.Minute, "how long a client of TestEcho waits for the next bytes of a connection")
)

// piped returns two Nets, each with a device. The wire between the devices has the given conditions.
func piped(t testing.TB, c pipe.Conditions) (a, b *Net, wire *pipe.Network) {
	t.Helper()
	wire = pipe.NewNetwork(pipe.Config{Seed: 1})
	wire.SetConditions(c)
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
	devices.Pair(t, sideA, sideB)
	return a, b, wire
}

// TestEcho sends bulk data in both directions of a connection. The server copies with io.Copy on one goroutine, so it reads
// only as much as it can write. So each window closes and opens again many times. The test checks that no connection stops; see
// the type windows.
//
// The test finds faults only with some probability. With 0.1 % loss, 1 of 100 connections stopped without the lowered windows,
// and 4 stopped without the table of closed windows. With the present loss, a connection stopped in every second run without
// heard, cutRecv and earlyRecv. TestWindowKeepsItsEdge, TestAckBeyondClosedWindow and TestAckToClosedWindow fail every time
// without the code that they test.
func TestEcho(t *testing.T) {
	lossy := pipe.Conditions{Loss: 0.006, Reorder: 0.01}
	long := lossy
	long.Delay = 5 * time.Millisecond // so long that a longPath recovers losses
	for _, x := range []struct {
		name         string
		conditions   pipe.Conditions
		addr         netip.Addr
		size, buffer int
	}{
		{"IPv4", pipe.Conditions{}, b4, 4 << 20, 256 << 10},
		{"IPv6", pipe.Conditions{}, b6, 4 << 20, 256 << 10},
		{"IPv4 with loss", lossy, b4, 2 << 20, 16 << 10},
		{"IPv6 with loss", lossy, b6, 2 << 20, 16 << 10},
		{"IPv4 on a long path with loss", long, b4, 2 << 20, 0},
		{"IPv6 on a long path with loss", long, b6, 256 << 10, 16 << 10},
	} {
		t.Run(x.name, func(t *testing.T) {
			count, size, buffer := 25, x.size, x.buffer
			if testkit.Race || testkit.OneThread {
				count = 4 // 25 connections take a minute
			}
			if *echoes > 0 {
				count, size, buffer = *echoes, 16<<20, 0
				x.conditions.Loss = min(x.conditions.Loss, 0.001)
			}
			a, b, _ := piped(t, x.conditions)
			l, err := b.Listen("tcp", netip.AddrPortFrom(x.addr, 7).String())
			if err != nil {
				t.Fatal(err)
			}
			var servers, clients sync.WaitGroup
			servers.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					shrink(t, c, buffer)
					servers.Go(func() {
						_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
						_ = c.Close()
					})
				}
			})
			var next atomic.Int64
			together := 4
			if x.conditions.Loss > 0 {
				together = 12 // a connection that has lost a packet mostly waits
			}
			for range together {
				clients.Go(func() {
					for i := next.Add(1); i <= int64(count) && !t.Failed(); i = next.Add(1) {
						c, err := a.Dial("tcp", l.Addr().String())
						if err != nil {
							t.Error(err)
							return
						}
						shrink(t, c, buffer)
						if err := sendAndReceive(c, uint64(i), size); err != nil {
							t.Errorf("connection %d: %v", i, err)
						}
						_ = c.Close()
					}
				})
			}
			clients.Wait()
			_ = l.Close()
			_, _ = a.Close(), b.Close() // ends the server's goroutines for clients that have failed
			servers.Wait()
		})
	}
}

// shrink gives c buffers of n bytes, unless n is 0.
func shrink(t testing.TB, c net.Conn, n int) {
	if n == 0 {
		return
	}
	if err := c.(*TCPConn).SetReadBuffer(n); err != nil {
		t.Error(err)
	}
	if err := c.(*TCPConn).SetWriteBuffer(n); err != nil {
		t.Error(err)
	}
}

// sendAndReceive writes size bytes to c, which leads to an echo server, and checks that the same bytes return.
func sendAndReceive(c net.Conn, seed uint64, size int) error {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	sent := make(chan []byte, 1)
	go func() {
		h := sha256.New()
		_, _ = io.CopyN(io.MultiWriter(h, struct{ io.Writer }{c}), rand.NewChaCha8(key), int64(size))
		_ = c.(*TCPConn).CloseWrite()
		sent <- h.Sum(nil)
	}()
	h, got := sha256.New(), 0
	b := make([]byte, 128<<10)
	for {
		_ = c.SetReadDeadline(time.Now().Add(*patience))
		n, err := c.Read(b)
		h.Write(b[:n])
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			_ = c.Close()
			<-sent
			return fmt.Errorf("reading failed after %d of %d bytes: %w", got, size, err)
		}
	}
	if s := <-sent; got != size || string(s) != string(h.Sum(nil)) {
		return fmt.Errorf("%d bytes returned, want the same %d bytes that were sent", got, size)
	}
	return nil
}
