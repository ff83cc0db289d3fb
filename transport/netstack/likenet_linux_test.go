package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A host is the client or the server in a script. It uses package net or a Net.
type host struct {
	ip4, ip6 string
	dialer   func(dialOptions) dials
	listener listens
}

type dialOptions struct {
	timeout time.Duration
	local   net.Addr
}

type dials interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

type listens interface {
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// streamConn and packetConn contain the methods of connections that scripts call.
type streamConn interface {
	net.Conn
	io.ReaderFrom
	io.WriterTo
	CloseRead() error
	CloseWrite() error
	SetLinger(sec int) error
	SetNoDelay(on bool) error
	SetKeepAlive(on bool) error
}

type packetConn interface {
	net.Conn
	net.PacketConn
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	WriteToUDP(b []byte, to *net.UDPAddr) (int, error)
	WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error)
}

func hostOfSystem() host {
	return host{"127.0.0.1", "::1", func(o dialOptions) dials {
		return &net.Dialer{Timeout: o.timeout, LocalAddr: o.local}
	}, &net.ListenConfig{}}
}

func hostOfNet(n *Net, ip4, ip6 netip.Addr) host {
	return host{ip4.String(), ip6.String(), func(o dialOptions) dials {
		return &Dialer{Net: n, Timeout: o.timeout, LocalAddr: o.local}
	}, &ListenConfig{Net: n}}
}

// A likeness runs one script and records the outcome of each step.
type likeness struct {
	*testing.T
	client, server host
	steps          []string          // the names of the steps, in order
	outcomes       map[string]string // maps the name of a step to its outcome
}

// say records the outcome of a step. The outcome is an error or a value. Only the class of an error is recorded; see class.
func (l *likeness) say(step string, outcome any) {
	l.Helper()
	if _, ok := l.outcomes[step]; ok {
		l.Fatalf("two steps of the script have the name %q", step)
	}
	l.steps = append(l.steps, step)
	switch x := outcome.(type) {
	case error:
		l.outcomes[step] = class(x)
	case nil:
		l.outcomes[step] = "ok"
	default:
		l.outcomes[step] = fmt.Sprint(x)
	}
}

// must ends the script if err is not nil. err is the error of a call that only prepares later steps.
func (l *likeness) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// class describes the properties of err that programs can test: the types in its chain and their fields, the error number, and
// which errors of packages net, os, context and io it matches. It leaves out addresses and texts.
func class(err error) string {
	var s []string
	for e := err; e != nil; e = errors.Unwrap(e) {
		switch x := e.(type) {
		case *net.OpError:
			s = append(s, fmt.Sprintf("OpError(%s %s%s%s)", x.Op, x.Net, set(" source", x.Source), set(" addr", x.Addr)))
		case *os.SyscallError:
			s = append(s, x.Syscall)
		case *net.AddrError:
			s = append(s, "AddrError")
		case *net.DNSError:
			s = append(s, fmt.Sprintf("DNSError(notfound=%v)", x.IsNotFound))
		case net.UnknownNetworkError:
			s = append(s, "UnknownNetworkError")
		case syscall.Errno:
			s = append(s, fmt.Sprintf("errno %d (%s)", int(x), x.Error()))
		}
	}
	for _, x := range []struct {
		name string
		err  error
	}{{"ErrClosed", net.ErrClosed}, {"DeadlineExceeded", os.ErrDeadlineExceeded}, {"context deadline", context.DeadlineExceeded},
		{"Canceled", context.Canceled}, {"EOF", io.EOF}, {"ErrWriteToConnected", net.ErrWriteToConnected}} {
		if errors.Is(err, x.err) {
			s = append(s, x.name)
		}
	}
	if e, ok := err.(net.Error); ok && e.Timeout() {
		s = append(s, "timeout")
	}
	return strings.Join(s, ", ")
}

func set(name string, a net.Addr) string {
	if a == nil {
		return ""
	}
	return name
}

// listen makes the server listen on address. It closes the listener when the script ends.
func (l *likeness) listen(network, address string) net.Listener {
	l.Helper()
	listener, err := l.server.listener.Listen(context.Background(), network, address)
	l.must(err)
	l.Cleanup(func() { _ = listener.Close() })
	return listener
}

// packets opens a packet connection of h.
func (l *likeness) packets(h host, network, address string) packetConn {
	l.Helper()
	c, err := h.listener.ListenPacket(context.Background(), network, address)
	l.must(err)
	l.Cleanup(func() { _ = c.Close() })
	return c.(packetConn)
}

// dial connects the client to address.
func (l *likeness) dial(network, address string) (net.Conn, error) {
	c, err := l.client.dialer(dialOptions{timeout: 20 * time.Second}).DialContext(context.Background(), network, address)
	if err == nil {
		l.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// connected returns both ends of a connection over IPv4.
func (l *likeness) connected() (c, s streamConn) {
	l.Helper()
	listener := l.listen("tcp", net.JoinHostPort(l.server.ip4, "0"))
	d, err := l.dial("tcp", listener.Addr().String())
	l.must(err)
	a, err := listener.Accept()
	l.must(err)
	l.Cleanup(func() { _ = a.Close() })
	return d.(streamConn), a.(streamConn)
}

// closedPort returns an address and a port of the server on which nothing listens.
func (l *likeness) closedPort(network string) string {
	l.Helper()
	if network == "udp" {
		c := l.packets(l.server, "udp", net.JoinHostPort(l.server.ip4, "0"))
		l.must(c.Close())
		return c.LocalAddr().String()
	}
	listener := l.listen("tcp", net.JoinHostPort(l.server.ip4, "0"))
	l.must(listener.Close())
	return listener.Addr().String()
}

// soon returns a deadline 20 seconds from now, which no step should reach.
func soon() time.Time { return time.Now().Add(20 * time.Second) }

// TestLikeNet runs each script against package net on the loopback interface, between two Nets, and within one Net. Each step
// must have the same outcome in all three cases, unless the table unlike lists the step.
func TestLikeNet(t *testing.T) {
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("this test needs IPv6 on the loopback interface: ", err)
	} else {
		_ = l.Close()
	}
	a, b := pair(t)
	system, netA, netB := hostOfSystem(), hostOfNet(a, a4, a6), hostOfNet(b, b4, b6)
	used := make(map[string]bool)
	for _, script := range scripts {
		t.Run(script.name, func(t *testing.T) {
			run := func(world string, client, server host) *likeness {
				l := &likeness{client: client, server: server, outcomes: make(map[string]string)}
				t.Run(world, func(t *testing.T) {
					l.T = t
					script.run(l)
				})
				return l
			}
			want := run("package net", system, system)
			two, one := run("two Nets", netA, netB), run("one Net", netB, netB)
			for _, got := range []*likeness{two, one} {
				if !slices.Equal(got.steps, want.steps) {
					t.Fatalf("%s: the script ran the steps %q, want %q as with package net", got.Name(), got.steps, want.steps)
				}
				for _, step := range want.steps {
					name := script.name + ": " + step
					u, listed := unlike[name]
					used[name] = used[name] || listed && got.outcomes[step] != want.outcomes[step]
					switch g, w := got.outcomes[step], want.outcomes[step]; {
					case g == w:
					case !listed:
						t.Errorf("%s: %s:\n\tthe outcome is %s\n\twant, as with package net: %s", got.Name(), step, g, w)
					case g != u.ours:
						t.Errorf("%s: %s: the outcome is %s, want %s as the table unlike says", got.Name(), step, g, u.ours)
					}
				}
			}
		})
	}
	if t.Failed() {
		return
	}
	for name := range unlike {
		if !used[name] {
			t.Errorf("the table unlike lists %q, but package net and a Net have the same outcome there", name)
		}
	}
}
