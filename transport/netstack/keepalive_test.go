package netstack

import (
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// probesOf returns the keep-alive configuration of c, as the stack reports it.
func probesOf(t *testing.T, c net.Conn) net.KeepAliveConfig {
	t.Helper()
	ep := c.(*TCPConn).Endpoint()
	var (
		idle     tcpip.KeepaliveIdleOption
		interval tcpip.KeepaliveIntervalOption
	)
	for _, o := range []tcpip.GettableSocketOption{&idle, &interval} {
		if err := ep.GetSockOpt(o); err != nil {
			t.Fatal(err)
		}
	}
	count, err := ep.GetSockOptInt(tcpip.KeepaliveCountOption)
	if err != nil {
		t.Fatal(err)
	}
	return net.KeepAliveConfig{
		Enable: ep.SocketOptions().GetKeepAlive(), Idle: time.Duration(idle), Interval: time.Duration(interval), Count: count,
	}
}

// TestKeepAliveDefaults checks that the fields of Dialer and ListenConfig have the same meaning as in package net.
func TestKeepAliveDefaults(t *testing.T) {
	a, b := pair(t)
	const s = time.Second
	standard := net.KeepAliveConfig{Enable: true, Idle: 15 * s, Interval: 15 * s, Count: 9}
	for _, x := range []struct {
		idle   time.Duration
		config net.KeepAliveConfig
		want   net.KeepAliveConfig
	}{
		{0, net.KeepAliveConfig{}, standard},
		{3 * s, net.KeepAliveConfig{}, net.KeepAliveConfig{Enable: true, Idle: 3 * s, Interval: 15 * s, Count: 9}},
		{3 * s, net.KeepAliveConfig{Enable: true}, standard},
		{-1, net.KeepAliveConfig{Enable: true, Idle: s, Interval: 2 * s, Count: 3}, net.KeepAliveConfig{Enable: true, Idle: s, Interval: 2 * s, Count: 3}},
	} {
		l, err := (&ListenConfig{Net: b, KeepAlive: x.idle, KeepAliveConfig: x.config}).Listen(t.Context(), "tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		c, err := (&Dialer{Net: a, KeepAlive: x.idle, KeepAliveConfig: x.config}).Dial("tcp", "10.8.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]net.Conn{"dialed": c, "accepted": accepted} {
			if got := probesOf(t, c); got != x.want {
				t.Errorf("KeepAlive %v, KeepAliveConfig %+v, %s connection: the configuration is %+v, want %+v", x.idle, x.config, what, got, x.want)
			}
		}
		_, _, _ = c.Close(), accepted.Close(), l.Close()
	}
	echo(t, b, ":81")
	c, err := (&Dialer{Net: a, KeepAlive: -1}).Dial("tcp", "10.8.0.2:81")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if probesOf(t, c).Enable {
		t.Error("the probes are on although KeepAlive is negative")
	}
	if c, err = a.Dial("tcp", "10.8.0.2:81"); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := probesOf(t, c); got != standard {
		t.Errorf("after Net.Dial, the configuration is %+v, want %+v", got, standard)
	}
	tc := c.(*TCPConn)
	if err := tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: s, Interval: -1}); err != nil {
		t.Error(err)
	}
	if err := tc.SetKeepAlivePeriod(2 * s); err != nil {
		t.Error(err)
	}
	want := net.KeepAliveConfig{Enable: true, Idle: 2 * s, Interval: 15 * s, Count: 9}
	if got := probesOf(t, c); got != want {
		t.Errorf("after SetKeepAliveConfig and SetKeepAlivePeriod, the configuration is %+v, want %+v", got, want)
	}
	if err := tc.SetKeepAlive(false); err != nil || probesOf(t, c).Enable {
		t.Errorf("SetKeepAlive(false) returned %v, and the configuration is %+v; want the probes off", err, probesOf(t, c))
	}
}

// TestKeepAlive checks that keep-alive probes make a connection fail after the peer has vanished. gVisor answers at most one
// probe per 500 ms.
func TestKeepAlive(t *testing.T) {
	a, b, ab, _ := wired(t, 0)
	var probes atomic.Int32
	ab.tap = func([]byte) bool { probes.Add(1); return false }
	l, err := b.ListenTCP(netip.AddrPortFrom(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const pause = 550 * time.Millisecond
	d := Dialer{Net: a, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: pause, Interval: pause, Count: 3}}
	c, err := d.Dial("tcp", "10.8.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for begin, before := time.Now(), probes.Load(); probes.Load() < before+2; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("an idle connection sent fewer than two probes in 30 s")
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); err == nil || !err.(net.Error).Timeout() {
		t.Fatalf("although the probes were answered, Read returned %v, want a timeout", err)
	}
	ab.cut.Store(true)
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	_, err = c.Read(make([]byte, 1))
	wantOpError(t, "read from an end that vanished", err, syscall.ETIMEDOUT)
}
