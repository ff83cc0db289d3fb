//go:build linux || darwin || freebsd

package netstack

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// controlMessage returns one control message in the format of the operating system.
func controlMessage(level, kind int, data ...byte) []byte {
	w := controlWriter{free: make([]byte, unix.CmsgSpace(len(data)))}
	b := slices.Clip(w.free)
	copy(w.message(level, kind, len(data)), data)
	return b
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// sourceMessage returns a control message that sets the source address to a.
func sourceMessage(a netip.Addr) []byte {
	if a.Is4() {
		return (&ipv4.ControlMessage{Src: a.AsSlice()}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: a.AsSlice()}).Marshal()
}

// tosMessage returns a control message that sets the type of service. The message is for a datagram that is sent to the address a.
func tosMessage(a netip.Addr, tos uint8) []byte {
	if a.Is4() {
		return controlMessage(unix.IPPROTO_IP, unix.IP_TOS, tos)
	}
	return controlMessage(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, native(uint32(tos))...)
}

// describe parses the control messages oob with golang.org/x/net and golang.org/x/sys, as programs do. It returns the destination,
// the type of service and the TTL.
func describe(t *testing.T, oob []byte, is4 bool) (to netip.Addr, tos, ttl int) {
	t.Helper()
	var dst net.IP
	if is4 {
		var m ipv4.ControlMessage
		if err := m.Parse(oob); err != nil {
			t.Fatal(err)
		}
		dst, ttl = m.Dst, m.TTL
	} else {
		var m ipv6.ControlMessage
		if err := m.Parse(oob); err != nil {
			t.Fatal(err)
		}
		dst, tos, ttl = m.Dst, m.TrafficClass, m.HopLimit
	}
	to, _ = netip.AddrFromSlice(dst)
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			t.Fatal(err)
		}
		if int(h.Level) == unix.IPPROTO_IP && (int(h.Type) == unix.IP_TOS || int(h.Type) == unix.IP_RECVTOS) && len(data) == 1 {
			tos = int(data[0])
		}
		oob = rest
	}
	return to.Unmap(), tos, ttl
}

// TestMessages sends datagrams with control messages that set the TOS and the source, and checks the control messages of the
// received datagrams. b has two addresses per family, and must answer from the address to which the question was sent.
func TestMessages(t *testing.T) {
	second := addrs("10.8.0.3", "fd08::3")
	x, y, xy, yx := wired(t, 0)
	_ = y.Close()
	b, err := New(Config{Addresses: append([]netip.Addr{b4, b6}, second...)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	xy.to = b
	b.link.attach(yx)
	a := x

	for _, at := range []string{":53", "10.8.0.3:54", "[fd08::3]:55", "0.0.0.0:56"} {
		conn, err := b.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s := conn.(*UDPConn)
		for _, to := range append([]netip.Addr{b4, b6}, second...) {
			if s.bound.IsValid() && s.bound != to {
				continue
			}
			server := netip.AddrPortFrom(to, uint16(s.local.Port))
			dialed, err := a.DialUDP(netip.AddrPort{}, server)
			if err != nil {
				t.Fatal(err)
			}
			defer dialed.Close()
			for _, err := range []error{dialed.SetTOS(0xb8 | 2), dialed.SetTTL(33)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			buf, oob := make([]byte, 100), make([]byte, 128)
			question := func(send func() error, tos, ttl int) (from netip.AddrPort) {
				t.Helper()
				if err := send(); err != nil {
					t.Fatalf("write to %v: %v", server, err)
				}
				_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
				n, oobn, flags, from, err := s.ReadMsgUDPAddrPort(buf, oob)
				if err != nil || string(buf[:n]) != "question" || flags != 0 {
					t.Fatalf("to %v: the server read %q, flags %x, %v; want the question, no flags and no error", server, buf[:n], flags, err)
				}
				gotTo, gotTOS, gotTTL := describe(t, oob[:oobn], to.Is4())
				if gotTo != to || gotTOS != tos || gotTTL != ttl {
					t.Errorf("to %v: the control messages contain destination %v, TOS %x, TTL %d; want that destination, TOS %x, TTL %d", server, gotTo, gotTOS, gotTTL, tos, ttl)
				}
				return from
			}
			question(func() error { _, err := dialed.Write([]byte("question")); return err }, 0xba, 33)
			question(func() error {
				_, _, err := dialed.WriteMsgUDP([]byte("question"), tosMessage(to, 1), nil)
				return err
			}, 1, 33)
			from := question(func() error { // control messages of both kinds in one call
				oob := tosMessage(to, 3)
				if to.Is4() {
					oob = append(oob, controlMessage(unix.IPPROTO_IP, unix.IP_TTL, native(7)...)...)
				} else {
					oob = append(oob, controlMessage(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, native(7)...)...)
				}
				_, oobn, err := dialed.WriteMsgUDPAddrPort([]byte("question"), oob, netip.AddrPort{})
				if oobn != len(oob) {
					t.Errorf("wrote %d of %d bytes of control messages", oobn, len(oob))
				}
				return err
			}, 3, 7)

			// The dialed connection accepts the answer only from the address to which it sent the question.
			answer := append(sourceMessage(to), tosMessage(to, 2)...)
			if _, _, err := s.WriteMsgUDP([]byte("answer"), answer, net.UDPAddrFromAddrPort(from)); err != nil {
				t.Fatalf("write of the answer from %v: %v", server, err)
			}
			_ = dialed.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, oobn, _, _, err := dialed.ReadMsgUDP(buf, oob)
			if err != nil || string(buf[:n]) != "answer" {
				t.Fatalf("from %v: the client read %q, %v; want the answer", server, buf[:n], err)
			}
			if _, tos, ttl := describe(t, oob[:oobn], to.Is4()); tos != 2 || ttl != 64 {
				t.Errorf("the answer from %v has TOS %x and TTL %d, want 2 and 64", server, tos, ttl)
			}
		}
	}
}

// TestMessagesFit checks the flags and the control messages of reads into buffers that are too short.
func TestMessagesFit(t *testing.T) {
	a, b := pair(t)
	c, s := connectedUDP(t, a, b, a4, b4)
	whole := make([]byte, 128)
	write(t, c, "datagram")
	_, oobn, _, _, err := s.ReadMsgUDP(make([]byte, 8), whole)
	if err != nil {
		t.Fatal(err)
	}
	for n := range oobn + 1 {
		write(t, c, "datagram")
		oob := bytes.Repeat([]byte{0xff}, n)
		got, oobn1, flags, _, err := s.ReadMsgUDP(make([]byte, 4), oob)
		if got != 4 || err != nil || flags&unix.MSG_TRUNC == 0 {
			t.Fatalf("read %d bytes, flags %x, %v; want 4 bytes, MSG_TRUNC and no error", got, flags, err)
		}
		if truncated := flags&unix.MSG_CTRUNC != 0; truncated != (n > 0 && n < oobn) {
			t.Errorf("buffer of %d bytes for %d bytes of control messages: flags %x, want MSG_CTRUNC if and only if the buffer is too short and not empty", n, oobn, flags)
		}
		if !bytes.Equal(oob[:oobn1], whole[:oobn1]) {
			t.Errorf("buffer of %d bytes for control messages: read %x, want the beginning of %x", n, oob[:oobn1], whole)
		}
		if _, err := unix.ParseSocketControlMessage(oob[:oobn1]); err != nil {
			t.Error(err)
		}
	}
}

// TestSegments checks that UDP_SEGMENT divides one write into several datagrams.
func TestSegments(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has UDP_SEGMENT")
	}
	a, b := pair(t)
	c, s := connectedUDP(t, a, b, a6, b6)
	data := make([]byte, 3500)
	for i := range data {
		data[i] = byte(i / 100)
	}
	oob := controlMessage(unix.IPPROTO_UDP, sendSegment, binary.NativeEndian.AppendUint16(nil, 1000)...)
	for _, size := range []int{0, 1, 999, 1000, 1001, 3000, 3500} {
		n, _, err := c.WriteMsgUDP(data[:size], oob, nil)
		if n != size || err != nil {
			t.Fatalf("wrote %d of %d bytes, %v", n, size, err)
		}
		var got []byte
		for pieces := 0; pieces == 0 || len(got) < size; pieces++ {
			buf := make([]byte, 2000)
			_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := s.Read(buf)
			if want := min(size-len(got), 1000); n != want || err != nil {
				t.Fatalf("datagram %d of a write of %d bytes: read %d bytes, %v; want %d", pieces, size, n, err, want)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, data[:size]) {
			t.Errorf("write of %d bytes in segments: the datagrams contain other bytes", size)
		}
	}
}

// TestMessageMisuse checks that a connection refuses wrong control messages and addresses.
func TestMessageMisuse(t *testing.T) {
	a, b := pair(t)
	c, _ := connectedUDP(t, a, b, a4, b4)
	l, err := a.ListenUDP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.AddrPortFrom(b4, 9)
	tos := tosMessage(b4, 1)
	for name, x := range map[string]struct {
		c    *UDPConn
		oob  []byte
		to   netip.AddrPort
		want error
		says string
	}{
		"dialed, with an address":      {c, tos, to, net.ErrWriteToConnected, ""},
		"not dialed, without one":      {l, tos, netip.AddrPort{}, errMissingRemote, ""},
		"half a header":                {l, tos[:5], to, syscall.EINVAL, "end within"},
		"longer than the buffer":       {l, tos[:unix.CmsgLen(0)], to, syscall.EINVAL, "bytes in a buffer"},
		"unknown":                      {l, controlMessage(unix.SOL_SOCKET, 77, 1), to, syscall.EINVAL, "type 77"},
		"TOS of three bytes":           {l, controlMessage(unix.IPPROTO_IP, unix.IP_TOS, 1, 2, 3), to, syscall.EINVAL, "valid"},
		"TOS of 256":                   {l, controlMessage(unix.IPPROTO_IP, unix.IP_TOS, native(256)...), to, syscall.EINVAL, "valid"},
		"short source":                 {l, controlMessage(unix.IPPROTO_IP, sendSource4, 1, 2), to, syscall.EINVAL, "valid"},
		"short source, IPv6":           {l, controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, 1, 2), to, syscall.EINVAL, "valid"},
		"a source that is not ours":    {l, sourceMessage(netip.MustParseAddr("10.9.9.9")), to, syscall.EINVAL, "10.9.9.9"},
		"source of the other family":   {l, sourceMessage(a6), to, syscall.EINVAL, "fd08::1"},
		"source that is not the bound": {c, sourceMessage(netip.MustParseAddr("10.8.0.3")), netip.AddrPort{}, syscall.EINVAL, "10.8.0.3"},
		"port 0":                       {l, tos, netip.AddrPortFrom(b4, 0), syscall.EINVAL, "port 0"},
		"loopback":                     {l, tos, netip.MustParseAddrPort("127.0.0.1:9"), syscall.ENETUNREACH, "no loopback"},
		"segments of no length":        {l, controlMessage(unix.IPPROTO_UDP, 103, 0, 0), to, syscall.EINVAL, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n, oobn, err := x.c.WriteMsgUDPAddrPort([]byte("x"), x.oob, x.to)
			if n != 0 || oobn != 0 {
				t.Errorf("a refused call wrote %d bytes of payload and %d of control messages, want none", n, oobn)
			}
			wantOpError(t, "write", err, x.want)
			if err != nil && !strings.Contains(err.Error(), x.says) {
				t.Errorf("the error does not contain %q: %v", x.says, err)
			}
		})
	}
	if _, _, err := l.WriteMsgUDP(make([]byte, 65508), tos, net.UDPAddrFromAddrPort(to)); err == nil {
		t.Error("a datagram that is too long was sent")
	} else {
		wantOpError(t, "write of 65,508 bytes", err, syscall.EMSGSIZE)
	}
	_ = l.SetWriteDeadline(time.Now().Add(-time.Second))
	if _, _, err := l.WriteMsgUDPAddrPort([]byte("x"), tos, to); err == nil || !err.(net.Error).Timeout() {
		t.Errorf("write after the deadline: %v, want a timeout", err)
	}
}

// FuzzMessage parses arbitrary bytes as control messages. It checks that nothing panics, and that accepted values are within
// their bounds.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{})
	f.Add(tosMessage(a4, 1))
	f.Add(append(tosMessage(a6, 255), sourceMessage(a6)...))
	f.Add(append(sourceMessage(a4), controlMessage(unix.IPPROTO_UDP, 103, 1, 2)...))
	f.Add(controlMessage(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, native(0xffffffff)...))
	r := received{to: a6, tos: 3, ttl: 64}
	oob := make([]byte, 128)
	n, _ := r.put(oob)
	f.Add(oob[:n])
	f.Fuzz(func(t *testing.T, oob []byte) {
		before := bytes.Clone(oob)
		m := message{tos: -1, ttl: -1}
		err := m.parse(oob)
		if !bytes.Equal(oob, before) {
			t.Error("parse changed its input")
		}
		if err == nil && (m.tos < -1 || m.tos > 255 || m.ttl < -1 || m.ttl > 255 || m.segment < 0) {
			t.Errorf("parse of %x returned %+v, which has a value out of bounds", oob, m)
		}
		to := a4
		if len(oob)%2 == 1 {
			to = a6
		}
		if n, _ := (&received{to: to}).put(oob); n > len(oob) {
			t.Errorf("put wrote %d bytes into a buffer of %d", n, len(oob))
		} else if _, err := unix.ParseSocketControlMessage(oob[:n]); err != nil {
			t.Error(err)
		}
	})
}
