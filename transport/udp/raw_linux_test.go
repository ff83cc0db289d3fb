package udp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// rawCase is the environment variable with the name of the case of TestBlockingSocket that this process runs.
const rawCase = "UDP_TEST_RAW"

// TestBlockingSocket checks that garbage collection, signals and Close work even if the program uses the descriptor that it got
// in Bind.Control to make the socket blocking. Each case runs in a separate process, which is killed if it freezes.
func TestBlockingSocket(t *testing.T) {
	cases := map[string]func(t *testing.T, s *Socket, ended chan error){
		"collect while a receiver waits": func(t *testing.T, s *Socket, _ chan error) {
			for range 3 {
				runtime.GC()
			}
		},
		"close while a receiver waits": func(t *testing.T, s *Socket, ended chan error) {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("the receiver ended with %v, want net.ErrClosed", err)
			}
		},
		"a signal while a receiver waits": func(t *testing.T, s *Socket, _ chan error) {
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, syscall.SIGTERM)
			if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			<-signals
		},
		"send more than the buffer holds": func(t *testing.T, s *Socket, _ chan error) {
			to := wireguard.EndpointOf(netip.AddrPortFrom(loopback(ipv4), s.Port()))
			train := wireguard.Train{Data: make([]byte, 40*1400), Size: 1400, Endpoint: to}
			for range 1000 {
				s.Send([]wireguard.Train{train})
			}
			runtime.GC()
		},
	}
	if name := os.Getenv(rawCase); name != "" {
		var fds []int
		b := &Bind{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				if other, err := unix.Dup(int(fd)); err == nil {
					fds = append(fds, other)
				}
			})
		}}
		socket, err := b.Listen(0)
		if err != nil {
			t.Fatal(err)
		}
		s := socket.(*Socket)
		defer s.Close()
		for _, fd := range fds {
			defer unix.Close(fd)
			if err := unix.SetNonblock(fd, false); err != nil {
				t.Fatal(err)
			}
		}
		ended := make(chan error, 1)
		for _, r := range s.Receivers() {
			go func() {
				for {
					if _, err := r.Receive(); err != nil {
						select {
						case ended <- err:
						default:
						}
						return
					}
				}
			}()
		}
		time.Sleep(300 * time.Millisecond) // so that the receivers wait
		cases[name](t, s, ended)
		return
	}
	for name := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			c := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestBlockingSocket$")
			c.Env = append(os.Environ(), rawCase+"="+name)
			if out, err := c.CombinedOutput(); ctx.Err() != nil {
				t.Errorf("the process froze: it did not end within 60 s\n%s", out)
			} else if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
