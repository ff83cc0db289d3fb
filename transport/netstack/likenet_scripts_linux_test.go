package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing/iotest"
	"time"
)

// scripts make the calls whose outcomes TestLikeNet compares. The name of each step is unique within its script.
var scripts = []struct {
	name string
	run  func(*likeness)
}{
	{"listen", scriptListen},
	{"relisten", scriptRelisten},
	{"dial", scriptDial},
	{"deadlines", scriptDeadlines},
	{"half-close", scriptHalfClose},
	{"linger", scriptLinger},
	{"refused", scriptRefused},
	{"unreachable", scriptUnreachable},
	{"broadcast", scriptBroadcast},
	{"dual stack", scriptDualStack},
	{"port 0", scriptPortZero},
	{"double close", scriptDoubleClose},
	{"close while waiting", scriptCloseWhileWaiting},
	{"datagrams", scriptDatagrams},
	{"copy", scriptCopy},
}

func scriptListen(l *likeness) {
	listen := func(step, network, address string) {
		listener, err := l.server.listener.Listen(context.Background(), network, address)
		l.say(step, err)
		if err == nil {
			_ = listener.Close()
		}
	}
	packets := func(step, network, address string) {
		c, err := l.server.listener.ListenPacket(context.Background(), network, address)
		l.say(step, err)
		if err == nil {
			_ = c.Close()
		}
	}
	for _, x := range []struct {
		of         string
		listen     func(step, network, address string)
		tcp, other string
	}{{"TCP", listen, "tcp", "udp"}, {"UDP", packets, "udp", "tcp"}} {
		x.listen(x.of+", any address", x.tcp, ":0")
		x.listen(x.of+", IPv4", x.tcp, net.JoinHostPort(l.server.ip4, "0"))
		x.listen(x.of+", IPv6", x.tcp, net.JoinHostPort(l.server.ip6, "0"))
		x.listen(x.of+", unspecified IPv4", x.tcp, "0.0.0.0:0")
		x.listen(x.of+", unspecified IPv6", x.tcp, "[::]:0")
		x.listen(x.of+", IPv4 alone", x.tcp+"4", ":0")
		x.listen(x.of+", IPv6 alone", x.tcp+"6", ":0")
		x.listen(x.of+", empty address", x.tcp, "")
		x.listen(x.of+", IPv4 on the network of IPv6", x.tcp+"6", net.JoinHostPort(l.server.ip4, "0"))
		x.listen(x.of+", IPv6 on the network of IPv4", x.tcp+"4", net.JoinHostPort(l.server.ip6, "0"))
		x.listen(x.of+", unspecified IPv6 on the network of IPv4", x.tcp+"4", "[::]:0")
		x.listen(x.of+", unspecified IPv4 on the network of IPv6", x.tcp+"6", "0.0.0.0:0")
		x.listen(x.of+", mapped IPv4", x.tcp, "[::ffff:"+l.server.ip4+"]:0")
		x.listen(x.of+", not our address", x.tcp, "203.0.113.9:0")
		x.listen(x.of+", not our address of IPv6", x.tcp, "[2001:db8::9]:0")
		x.listen(x.of+", no port", x.tcp, l.server.ip4)
		x.listen(x.of+", empty port", x.tcp, l.server.ip4+":")
		x.listen(x.of+", port 65536", x.tcp, l.server.ip4+":65536")
		x.listen(x.of+", port -1", x.tcp, l.server.ip4+":-1")
		x.listen(x.of+", unknown port", x.tcp, l.server.ip4+":no-such-service")
		x.listen(x.of+", network of the other protocol", x.other, ":0")
		x.listen(x.of+", unknown network", "carrier-pigeon", ":0")
		x.listen(x.of+", no network", "", ":0")
	}
	listener := l.listen("tcp", net.JoinHostPort(l.server.ip4, "0"))
	l.say("network of Addr", listener.Addr().Network())
	l.say("port of Addr is 0", listener.Addr().(*net.TCPAddr).Port == 0)
	for _, network := range []string{"tcp", "tcp4", "tcp6"} {
		l.say("host of Addr of "+network, hostIn(l.listen(network, ":0").Addr()))
	}
}

// hostIn returns the network and the host of an address, without its port.
func hostIn(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return err.Error()
	}
	return a.Network() + " " + host
}

func scriptRelisten(l *likeness) {
	listen := func(step, network, address string) (close func()) {
		listener, err := l.server.listener.Listen(context.Background(), network, address)
		l.say(step, err)
		if err != nil {
			return func() {}
		}
		l.Cleanup(func() { _ = listener.Close() })
		return func() { _ = listener.Close() }
	}
	first := l.listen("tcp", net.JoinHostPort(l.server.ip4, "0"))
	at := first.Addr().String()
	_, port, _ := net.SplitHostPort(at)
	listen("twice", "tcp", at)
	listen("all addresses beside one", "tcp", ":"+port)
	listen("all addresses of IPv4 beside one", "tcp4", ":"+port)
	listen("all addresses of IPv6 beside one of IPv4", "tcp6", ":"+port)()
	l.must(first.Close())
	all := listen("all addresses, after Close", "tcp", ":"+port)
	listen("one address beside all", "tcp", at)
	listen("one address of IPv6 beside all", "tcp", net.JoinHostPort(l.server.ip6, port))
	all()
	four := listen("all addresses of IPv4", "tcp4", ":"+port)
	six := listen("all addresses of IPv6 beside those of IPv4", "tcp6", ":"+port)
	four()
	six()

	// Listen again while connections of an earlier listener still use the port.
	again := l.listen("tcp", at)
	c, err := l.dial("tcp", at)
	l.must(err)
	s, err := again.Accept()
	l.must(err)
	l.must(again.Close())
	second := l.listen("tcp", at)
	c2, err := l.dial("tcp", at)
	l.say("dial the second listener", err)
	s2, err := second.Accept()
	l.say("accept at the second listener", err)
	l.say("write to a connection of the first listener", errOf(c.Write([]byte("x"))))
	_, err = s.Read(make([]byte, 1))
	l.say("read from a connection of the first listener", err)
	_ = s.Close() // the server closes first, so that its end waits in TIME-WAIT
	_ = s2.Close()
	_ = c.Close()
	_ = c2.Close()
	l.must(second.Close())
	listen("after connections that the server closed", "tcp", at)()

	u := l.packets(l.server, "udp", net.JoinHostPort(l.server.ip4, "0"))
	_, err = l.server.listener.ListenPacket(context.Background(), "udp", u.LocalAddr().String())
	l.say("UDP twice", err)
	_, port, _ = net.SplitHostPort(u.LocalAddr().String())
	_, err = l.server.listener.ListenPacket(context.Background(), "udp", ":"+port)
	l.say("UDP, all addresses beside one", err)
	l.must(u.Close())
	l.packets(l.server, "udp", u.LocalAddr().String())
	l.say("UDP after Close", nil)
	var listener net.Listener
	for range 20 { // another process may use the port for TCP
		if listener, err = l.server.listener.Listen(context.Background(), "tcp", u.LocalAddr().String()); err == nil {
			l.Cleanup(func() { _ = listener.Close() })
			break
		}
		u = l.packets(l.server, "udp", net.JoinHostPort(l.server.ip4, "0"))
	}
	l.say("TCP on a port of UDP", err)
}

// errOf returns the error of a read or a write, without the count.
func errOf(_ int, err error) error { return err }

func scriptDial(l *likeness) {
	listener := l.listen("tcp", ":0")
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	at := net.JoinHostPort(l.server.ip4, port)
	dial := func(step, network, address string, o dialOptions) {
		c, err := l.client.dialer(o).DialContext(context.Background(), network, address)
		l.say(step, err)
		if err == nil {
			_ = c.Close()
		}
	}
	dial("IPv4", "tcp", at, dialOptions{})
	dial("IPv6", "tcp", net.JoinHostPort(l.server.ip6, port), dialOptions{})
	dial("mapped", "tcp", "[::ffff:"+l.server.ip4+"]:"+port, dialOptions{})
	dial("mapped, IPv6 alone", "tcp6", "[::ffff:"+l.server.ip4+"]:"+port, dialOptions{})
	for _, protocol := range []string{"tcp", "udp"} {
		dial(protocol+", IPv4 on the network of IPv6", protocol+"6", at, dialOptions{})
		dial(protocol+", IPv6 on the network of IPv4", protocol+"4", net.JoinHostPort(l.server.ip6, port), dialOptions{})
		dial(protocol+", no port", protocol, l.server.ip4, dialOptions{})
		dial(protocol+", empty port", protocol, l.server.ip4+":", dialOptions{timeout: 20 * time.Second})
		dial(protocol+", empty address", protocol, "", dialOptions{})
		dial(protocol+", too many colons", protocol, "a:b:c", dialOptions{})
		dial(protocol+", port 65536", protocol, l.server.ip4+":65536", dialOptions{})
		dial(protocol+", unknown port", protocol, l.server.ip4+":no-such-service", dialOptions{})
		dial(protocol+", from an address that is not ours", protocol, at, dialOptions{local: addrOf(protocol, "203.0.113.9:0")})
		dial(protocol+", from the other family", protocol, at, dialOptions{local: addrOf(protocol, net.JoinHostPort(l.client.ip6, "0"))})
		dial(protocol+", from our address", protocol, at, dialOptions{local: addrOf(protocol, net.JoinHostPort(l.client.ip4, "0"))})
		dial(protocol+", from any address", protocol, at, dialOptions{local: addrOf(protocol, ":0")})
	}
	dial("unknown network", "carrier-pigeon", at, dialOptions{})
	dial("from an address of the wrong type", "tcp", at, dialOptions{local: &net.UDPAddr{}})
	dial("negative timeout", "tcp", at, dialOptions{timeout: -1})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := l.client.dialer(dialOptions{}).DialContext(ctx, "tcp", at)
	l.say("canceled", err)
	ctx, cancel = context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	_, err = l.client.dialer(dialOptions{}).DialContext(ctx, "tcp", at)
	l.say("past deadline", err)
	_, err = l.client.dialer(dialOptions{}).DialContext(ctx, "udp", at)
	l.say("past deadline, UDP", err)

	// Dial the same address a second time from the same port.
	c, err := l.dial("tcp", at)
	l.must(err)
	dial("from a port in use to the same place", "tcp", at, dialOptions{local: c.LocalAddr()})
	l.say("network of addresses", c.LocalAddr().Network()+" "+c.RemoteAddr().Network())
	l.say("remote address is the dialed one", c.RemoteAddr().String() == at)
}

func addrOf(network, a string) net.Addr {
	if network == "udp" {
		u, _ := net.ResolveUDPAddr("udp", a)
		return u
	}
	t, _ := net.ResolveTCPAddr("tcp", a)
	return t
}

func scriptDeadlines(l *likeness) {
	past, near := time.Now().Add(-time.Second), func() time.Time { return time.Now().Add(20 * time.Millisecond) }
	b := make([]byte, 10)
	c, s := l.connected()
	l.say("set one in the past", c.SetReadDeadline(past))
	l.say("read past it", errOf(c.Read(b)))
	l.say("read nothing past it", errOf(c.Read(nil)))
	l.must(c.SetReadDeadline(near()))
	l.say("read until a deadline", errOf(c.Read(b)))
	l.must(errOf(s.Write([]byte("data"))))
	l.say("read past it, with data", errOf(c.Read(b)))
	l.must(c.SetReadDeadline(time.Time{}))
	l.say("read without a deadline", errOf(c.Read(b)))
	l.must(c.SetWriteDeadline(past))
	l.say("write past it", errOf(c.Write(b)))
	l.say("write nothing past it", errOf(c.Write(nil)))
	l.say("copy past it", func() error { _, err := c.ReadFrom(iotest.OneByteReader(strings.NewReader("x"))); return err }())
	l.must(c.SetWriteDeadline(time.Time{}))
	l.say("write without a deadline", errOf(c.Write(b)))
	l.must(c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)))
	var err error
	for err == nil { // the peer does not read
		_, err = c.Write(make([]byte, 1<<20))
	}
	l.say("write into a full buffer until a deadline", err)
	waiting := make(chan error)
	go func() { _, err := c.Read(b); waiting <- err }()
	time.Sleep(5 * time.Millisecond)
	l.must(c.SetDeadline(past))
	l.say("set one while reading", <-waiting)

	listener := l.listen("tcp", ":0")
	accepts := listener.(interface{ SetDeadline(time.Time) error })
	l.say("of a listener, in the past", accepts.SetDeadline(past))
	_, err = listener.Accept()
	l.say("accept past it", err)
	l.must(accepts.SetDeadline(near()))
	_, err = listener.Accept()
	l.say("accept until a deadline", err)
	l.must(listener.Close())
	l.say("of a closed listener", accepts.SetDeadline(past))

	u := l.packets(l.client, "udp", ":0")
	l.must(u.SetReadDeadline(past))
	_, _, err = u.ReadFrom(b)
	l.say("UDP read past it", err)
	l.must(u.SetReadDeadline(near()))
	_, _, err = u.ReadFrom(b)
	l.say("UDP read until a deadline", err)
	l.must(u.SetWriteDeadline(past))
	_, err = u.WriteTo(b, u.LocalAddr())
	l.say("UDP write past it", err)
}

func scriptHalfClose(l *likeness) {
	b := make([]byte, 10)
	c, s := l.connected()
	l.must(errOf(c.Write([]byte("question"))))
	l.say("CloseWrite", c.CloseWrite())
	l.say("write after it", errOf(c.Write(b)))
	l.say("CloseWrite again", c.CloseWrite())
	all, err := io.ReadAll(s)
	l.say("the other end reads all", string(all))
	l.say("then EOF", err)
	l.say("EOF again", errOf(s.Read(b)))
	l.say("write to an end that closed its writing side", errOf(s.Write([]byte("answer"))))
	l.must(s.Close())
	all, err = io.ReadAll(c)
	l.say("the answer", string(all))
	l.say("then EOF at the client", err)
	l.say("close", c.Close())

	c, s = l.connected()
	l.say("CloseRead", c.CloseRead())
	l.say("read after it", errOf(c.Read(b)))
	l.say("CloseRead again", c.CloseRead())
	l.say("write after CloseRead", errOf(c.Write([]byte("open"))))
	_, err = io.ReadFull(s, b[:4])
	l.say("the other end reads", err)
	l.say("CloseWrite after CloseRead", c.CloseWrite())
	l.say("the other end reads EOF", errOf(s.Read(b)))
	l.say("close after both", c.Close())

	c, s = l.connected()
	l.must(s.Close())
	l.say("read from a closed end", errOf(c.Read(b)))
	l.say("write to a closed end", errOf(c.Write(b)))
	_ = c.SetReadDeadline(soon())
	for err = nil; err == nil; time.Sleep(time.Millisecond) { // until the reset has arrived
		_, err = c.Write(b)
	}
	l.say("write until the reset arrives", errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE))
	l.say("write after the reset", errOf(c.Write(b)))
}

func scriptLinger(l *likeness) {
	b := make([]byte, 10)
	c, s := l.connected()
	l.say("set 0", s.SetLinger(0))
	l.must(s.Close())
	l.say("read after the other end's reset", errOf(c.Read(b)))
	l.say("read again", errOf(c.Read(b)))
	l.say("write after a reset that was read", errOf(c.Write(b)))
	l.say("CloseWrite after it", c.CloseWrite())
	l.say("CloseRead after it", c.CloseRead())
	l.say("close after it", c.Close())

	c, s = l.connected()
	l.say("set 5", s.SetLinger(5))
	l.must(errOf(s.Write([]byte("data"))))
	l.say("close with 5", s.Close())
	all, err := io.ReadAll(c)
	l.say("data arrives", string(all))
	l.say("then EOF", err)

	c, s = l.connected()
	l.say("set -1", s.SetLinger(-1))
	l.must(errOf(s.Write([]byte("data"))))
	l.must(s.Close())
	all, err = io.ReadAll(c)
	l.say("data arrives with -1", string(all))
	l.say("then EOF with -1", err)

	c, s = l.connected()
	l.must(errOf(c.Write([]byte("unread"))))
	_ = s.SetReadDeadline(soon())
	l.must(errOf(io.ReadFull(s, b[:1])))
	l.must(s.Close())
	_, err = io.ReadAll(c)
	l.say("read from an end that closed with unread data", err)

	c, s = l.connected()
	waiting := make(chan error)
	go func() { _, err := c.Read(b); waiting <- err }()
	time.Sleep(5 * time.Millisecond)
	l.must(s.SetLinger(0))
	l.must(s.Close())
	l.say("reset while reading", <-waiting)
}

func scriptRefused(l *likeness) {
	b := make([]byte, 10)
	_, err := l.dial("tcp", l.closedPort("tcp"))
	l.say("dial", err)
	_, port, _ := net.SplitHostPort(l.closedPort("tcp"))
	_, err = l.dial("tcp", net.JoinHostPort(l.server.ip6, port))
	l.say("dial IPv6", err)
	c, err := l.dial("udp", l.closedPort("udp"))
	l.say("dial UDP", err)
	l.must(err)
	l.say("write UDP", errOf(c.Write(b)))
	_ = c.SetReadDeadline(soon())
	l.say("read UDP", errOf(c.Read(b)))
	l.must(c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	l.say("read UDP again", errOf(c.Read(b)))
	for err = nil; err == nil; time.Sleep(time.Millisecond) { // until the ICMP error has arrived
		_, err = c.Write(b)
	}
	l.say("write UDP until the refusal", err)
	u := l.packets(l.client, "udp", ":0")
	to, _ := net.ResolveUDPAddr("udp", l.closedPort("udp"))
	l.say("write UDP, not connected", errOf(u.WriteTo(b, to)))
	time.Sleep(20 * time.Millisecond)
	l.say("write UDP again, not connected", errOf(u.WriteTo(b, to)))
	l.must(u.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	_, _, err = u.ReadFrom(b)
	l.say("read UDP, not connected", err)
}

func scriptUnreachable(l *likeness) {
	for _, to := range []string{"255.255.255.255:9", "224.0.0.1:9"} {
		_, err := l.dial("tcp", to)
		l.say("dial "+to, err)
	}
	u := l.packets(l.client, "udp4", ":0")
	to := netip.MustParseAddrPort("[::1]:9")
	if l.client.ip6 != "::1" {
		to = netip.AddrPortFrom(b6, 9)
	}
	l.say("write to IPv6 from a socket for IPv4", errOf(u.WriteToUDPAddrPort([]byte("x"), to)))
	l.say("write to IPv6 from a socket for IPv4, WriteTo", errOf(u.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to))))
	u = l.packets(l.client, "udp6", ":0")
	four := netip.MustParseAddrPort(net.JoinHostPort(l.server.ip4, "9"))
	l.say("write to IPv4 from a socket for IPv6", errOf(u.WriteToUDPAddrPort([]byte("x"), four)))
	u = l.packets(l.client, "udp", net.JoinHostPort(l.client.ip4, "0"))
	l.say("write to IPv6 from an address of IPv4", errOf(u.WriteToUDPAddrPort([]byte("x"), to)))
	u = l.packets(l.client, "udp", net.JoinHostPort(l.client.ip6, "0"))
	l.say("write to IPv4 from an address of IPv6", errOf(u.WriteToUDPAddrPort([]byte("x"), four)))
}

func scriptBroadcast(l *likeness) {
	everybody := "255.255.255.255:9"
	if l.client.ip4 == "127.0.0.1" {
		everybody = "127.255.255.255:9" // the broadcast address of the loopback interface
	}
	u := l.packets(l.client, "udp4", ":0")
	l.say("write", errOf(u.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(everybody))))
	u = l.packets(l.client, "udp", ":0")
	l.say("write from both families", errOf(u.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(everybody))))
	c, err := l.dial("udp", everybody)
	l.say("dial", err)
	if err == nil {
		l.say("write to the dialed address", errOf(c.Write([]byte("x"))))
	}
}

func scriptDualStack(l *likeness) {
	b := make([]byte, 10)
	for _, network := range []string{"tcp", "tcp4", "tcp6"} {
		listener := l.listen(network, ":0")
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		for _, ip := range []string{l.server.ip4, l.server.ip6} {
			of := network + " from IPv4"
			if ip == l.server.ip6 {
				of = network + " from IPv6"
			}
			c, err := l.dial("tcp", net.JoinHostPort(ip, port))
			l.say(of, err)
			if err != nil {
				continue
			}
			s, err := listener.Accept()
			l.must(err)
			l.say(of+", accepted at the dialed address", s.LocalAddr().String() == c.RemoteAddr().String())
			l.say(of+", remote address", s.RemoteAddr().String() == c.LocalAddr().String())
			l.say(of+", bytes of the remote address", len(s.RemoteAddr().(*net.TCPAddr).IP))
			l.say(of+", Is4 of the remote address", s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Is4())
			_ = s.Close()
		}
	}
	for _, network := range []string{"udp", "udp4", "udp6"} {
		u := l.packets(l.server, network, ":0")
		_, port, _ := net.SplitHostPort(u.LocalAddr().String())
		for _, ip := range []string{l.server.ip4, l.server.ip6} {
			of := network + " from IPv4"
			if ip == l.server.ip6 {
				of = network + " from IPv6"
			}
			if network == "udp4" && ip == l.server.ip6 || network == "udp6" && ip == l.server.ip4 {
				continue
			}
			for _, how := range []string{"ReadFrom", "ReadFromUDPAddrPort"} {
				c, err := l.dial("udp", net.JoinHostPort(ip, port))
				l.must(err)
				l.must(errOf(c.Write([]byte("x"))))
				_ = u.SetReadDeadline(soon())
				var from netip.AddrPort
				if how == "ReadFrom" {
					_, a, err := u.ReadFrom(b)
					l.must(err)
					l.say(of+", ReadFrom, source", a.String() == c.LocalAddr().String())
					from = a.(*net.UDPAddr).AddrPort()
				} else {
					_, from, err = u.ReadFromUDPAddrPort(b)
					l.must(err)
				}
				l.say(of+", "+how+", mapped", from.Addr().Is4In6())
				_, err = u.WriteToUDPAddrPort([]byte("answer"), from)
				l.say(of+", "+how+", answer", err)
				_ = c.SetReadDeadline(soon())
				l.say(of+", "+how+", read the answer", errOf(c.Read(b)))
			}
		}
	}
}

func scriptPortZero(l *likeness) {
	_, err := l.dial("tcp", net.JoinHostPort(l.server.ip4, "0"))
	l.say("dial", err)
	c, err := l.dial("udp", net.JoinHostPort(l.server.ip4, "0"))
	l.say("dial UDP", err)
	if err == nil {
		l.say("write to the dialed port 0", errOf(c.Write([]byte("x"))))
	}
	u := l.packets(l.client, "udp", ":0")
	l.say("write", errOf(u.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(l.server.ip4+":0"))))
	u = l.packets(l.client, "udp4", ":0")
	l.say("write from a socket for IPv4", errOf(u.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(l.server.ip4+":0"))))
	first, second := l.listen("tcp", ":0"), l.listen("tcp", ":0")
	l.say("two listeners have the same port", first.Addr().String() == second.Addr().String())
}

func scriptDoubleClose(l *likeness) {
	b := make([]byte, 10)
	c, s := l.connected()
	l.say("close", c.Close())
	l.say("close again", c.Close())
	l.say("read", errOf(c.Read(b)))
	l.say("write", errOf(c.Write(b)))
	l.say("CloseRead", c.CloseRead())
	l.say("CloseWrite", c.CloseWrite())
	l.say("SetDeadline", c.SetDeadline(time.Time{}))
	l.say("SetReadDeadline", c.SetReadDeadline(time.Time{}))
	l.say("SetWriteDeadline", c.SetWriteDeadline(time.Time{}))
	l.say("SetNoDelay", c.SetNoDelay(true))
	l.say("SetLinger", c.SetLinger(0))
	l.say("SetKeepAlive", c.SetKeepAlive(true))
	_, err := c.WriteTo(io.Discard)
	l.say("WriteTo", err)
	_, err = c.ReadFrom(strings.NewReader("x"))
	l.say("ReadFrom", err)
	l.say("addresses stay", c.LocalAddr().String() == s.RemoteAddr().String() && c.RemoteAddr().String() == s.LocalAddr().String())

	listener := l.listen("tcp", ":0")
	at := listener.Addr().String()
	l.say("close a listener", listener.Close())
	l.say("close a listener again", listener.Close())
	_, err = listener.Accept()
	l.say("accept", err)
	l.say("the address stays", listener.Addr().String() == at)

	u := l.packets(l.client, "udp", ":0")
	l.say("close UDP", u.Close())
	l.say("close UDP again", u.Close())
	_, _, err = u.ReadFrom(b)
	l.say("ReadFrom UDP", err)
	_, _, err = u.ReadFromUDPAddrPort(b)
	l.say("ReadFromUDPAddrPort", err)
	l.say("WriteTo UDP", errOf(u.WriteTo(b, &net.UDPAddr{IP: net.ParseIP(l.server.ip4), Port: 9})))
	l.say("UDP SetDeadline", u.SetDeadline(time.Time{}))
}

func scriptCloseWhileWaiting(l *likeness) {
	b := make([]byte, 10)
	waiting := make(chan error)
	wait := func(f func() error) {
		go func() { waiting <- f() }()
		time.Sleep(5 * time.Millisecond)
	}
	listener := l.listen("tcp", net.JoinHostPort(l.server.ip4, "0"))
	wait(func() error { _, err := listener.Accept(); return err })
	l.must(listener.Close())
	l.say("accept", <-waiting)

	listener = l.listen("tcp", net.JoinHostPort(l.server.ip4, "0"))
	c, err := l.dial("tcp", listener.Addr().String())
	l.must(err)
	l.must(listener.Close())
	_ = c.SetReadDeadline(soon())
	l.say("a connection that nobody accepted", errOf(c.Read(b)))

	stream, s := l.connected()
	wait(func() error { _, err := stream.Read(b); return err })
	l.must(stream.Close())
	l.say("read", <-waiting)
	_ = s.SetReadDeadline(soon())
	l.say("the other end reads", errOf(s.Read(b)))

	stream, _ = l.connected()
	wait(func() (err error) {
		for err == nil {
			_, err = stream.Write(make([]byte, 1<<20))
		}
		return err
	})
	time.Sleep(20 * time.Millisecond)
	l.must(stream.Close())
	l.say("write", <-waiting)

	stream, _ = l.connected()
	wait(func() error { _, err := stream.Read(b); return err })
	l.must(stream.CloseRead())
	l.say("read, CloseRead", <-waiting)

	u := l.packets(l.client, "udp", ":0")
	wait(func() error { _, _, err := u.ReadFrom(b); return err })
	l.must(u.Close())
	l.say("UDP read", <-waiting)
}

func scriptDatagrams(l *likeness) {
	b := make([]byte, 10)
	s := l.packets(l.server, "udp", net.JoinHostPort(l.server.ip4, "0"))
	c, err := l.dial("udp", s.LocalAddr().String())
	l.must(err)
	p := c.(packetConn)
	_ = s.SetDeadline(soon())
	to := s.LocalAddr().(*net.UDPAddr)

	l.say("RemoteAddr of one that is not dialed", s.(net.Conn).RemoteAddr() == nil)
	l.say("write to a dialed one, WriteTo", errOf(p.WriteTo(b, to)))
	l.say("write to a dialed one, WriteToUDP", errOf(p.WriteToUDP(b, to)))
	l.say("write to a dialed one, WriteToUDPAddrPort", errOf(p.WriteToUDPAddrPort(b, to.AddrPort())))
	_, _, err = p.WriteMsgUDP(b, nil, to)
	l.say("write to a dialed one, WriteMsgUDP", err)
	_, _, err = p.WriteMsgUDP(b, nil, nil)
	l.say("write to a dialed one, WriteMsgUDP without an address", err)
	l.must(errOf(s.Read(b)))

	l.say("write without an address", errOf(s.(net.Conn).Write(b)))
	l.say("write to nil", errOf(s.WriteToUDP(b, nil)))
	l.say("write to a nil address", errOf(s.WriteTo(b, (*net.UDPAddr)(nil))))
	l.say("write to an address of TCP", errOf(s.WriteTo(b, &net.TCPAddr{IP: to.IP, Port: 9})))
	l.say("write to an invalid AddrPort", errOf(s.WriteToUDPAddrPort(b, netip.AddrPort{})))
	l.say("write to an address without an IP", errOf(s.WriteToUDP(b, &net.UDPAddr{IP: net.IP{1, 2}, Port: 9})))
	_, _, err = s.WriteMsgUDP(b, nil, nil)
	l.say("WriteMsgUDP without an address", err)

	n, err := c.Write(nil)
	l.say("write nothing", err)
	l.say("write nothing, count", n)
	n, from, err := s.ReadFrom(b)
	l.say("read nothing", err)
	l.say("read nothing, count", n)
	l.say("read nothing, source", from != nil && from.String() == c.LocalAddr().String())
	l.must(errOf(c.Write([]byte("datagram"))))
	l.must(errOf(c.Write([]byte("next"))))
	n, _, err = s.ReadFrom(b[:3])
	l.say("read a part", err)
	l.say("read a part, count", n)
	n, _, err = s.ReadFrom(b)
	l.say("read the next", err)
	l.say("read the next, count", n)
	l.must(errOf(c.Write([]byte("datagram"))))
	n, _, err = s.ReadFrom(nil)
	l.say("read into no buffer", err)
	l.say("read into no buffer, count", n)
	l.say("write 65507 bytes", errOf(c.Write(make([]byte, 65507))))
	n, _, err = s.ReadFrom(make([]byte, 65536))
	l.say("read 65507 bytes", err)
	l.say("read 65507 bytes, count", n)
	l.say("write 65508 bytes", errOf(c.Write(make([]byte, 65508))))
	l.say("write 1 MiB", errOf(c.Write(make([]byte, 1<<20))))
	l.say("write 1 MiB to", errOf(s.WriteTo(make([]byte, 1<<20), c.LocalAddr())))

	// A dialed connection receives only from its remote address.
	other := l.packets(l.server, "udp", net.JoinHostPort(l.server.ip4, "0"))
	l.must(errOf(other.WriteTo([]byte("other"), c.LocalAddr())))
	l.must(errOf(s.WriteTo([]byte("right"), c.LocalAddr())))
	_ = c.SetReadDeadline(soon())
	n, err = c.Read(b)
	l.say("read at a dialed one", err)
	l.say("read at a dialed one, data", string(b[:n]))
}

func scriptCopy(l *likeness) {
	broken := errors.New("broken")
	c, s := l.connected()
	n, err := c.ReadFrom(iotest.ErrReader(broken))
	l.say("from a broken reader", err)
	l.say("from a broken reader, count", n)
	l.say("from a broken reader, wrapped", errors.Is(err, broken))
	n, err = c.ReadFrom(strings.NewReader("data"))
	l.say("from a reader", err)
	l.say("from a reader, count", n)
	l.must(s.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	var to strings.Builder
	n, err = s.WriteTo(&to)
	l.say("to a writer until a deadline", err)
	l.say("to a writer, count", n)
	l.must(s.SetReadDeadline(time.Time{}))
	l.must(errOf(c.Write([]byte("data"))))
	n, err = s.WriteTo(brokenWriter{broken})
	l.say("to a broken writer", err)
	l.say("to a broken writer, count", n)
	l.say("to a broken writer, wrapped", errors.Is(err, broken))
	l.must(errOf(c.Write([]byte("data"))))
	l.must(c.CloseWrite())
	n, err = s.WriteTo(&to)
	l.say("to a writer until EOF", err)
	l.say("to a writer until EOF, count", n)
	n, err = s.WriteTo(&to)
	l.say("after EOF", err)
	l.say("after EOF, count", n)
	n, err = c.ReadFrom(strings.NewReader("data"))
	l.say("after CloseWrite", err)
	l.say("after CloseWrite, count", n)
	n, err = c.ReadFrom(strings.NewReader(""))
	l.say("nothing, after CloseWrite", err)
	l.say("nothing, after CloseWrite, count", n)
	other, s2 := l.connected()
	l.must(errOf(s.Write([]byte("relay"))))
	l.must(s.Close())
	n, err = io.Copy(other, c)
	l.say("from a connection to another", err)
	l.say("from a connection to another, count", n)
	l.must(other.CloseWrite())
	all, err := io.ReadAll(s2)
	l.say("what arrives", string(all))
	l.say("what arrives, then", err)
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }
