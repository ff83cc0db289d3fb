package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestStdio checks that the input reaches the target, and that the target's answer after the end of the input is written to the
// output.
func TestStdio(t *testing.T) {
	upper := target(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		_, _ = c.Write(bytes.ToUpper(b))
	})
	var out bytes.Buffer
	var r Report
	s := &Server{Protocol: Forward{Target: upper}, Done: func(got Report) { r = got }}
	defer s.Close()
	if err := s.ServeStdio(strings.NewReader("hello"), &out); err != nil || out.String() != "HELLO" {
		t.Errorf("ServeStdio wrote %q, %v, want HELLO", &out, err)
	}
	if r.Err != nil || r.Sent != 5 || r.Received != 5 || r.Target != upper {
		t.Errorf("report: %+v, want no error, 5 bytes in each direction and the address of the target", r)
	}
	if err := (&Server{Protocol: SOCKS5{}}).ServeStdio(nil, nil); !errors.Is(err, errStdio) {
		t.Errorf("ServeStdio with SOCKS5: %v, want errStdio", err)
	}
}

// TestStdioEnds checks that ServeStdio returns in three cases: when the target closes its connection while the input continues,
// when the output fails, and after Close.
func TestStdioEnds(t *testing.T) {
	input, more := io.Pipe()
	defer more.Close()
	s := &Server{Protocol: Forward{Target: target(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("bye")) })}}
	defer s.Close()
	var out bytes.Buffer
	if err := s.ServeStdio(input, &out); err != nil || out.String() != "bye" {
		t.Errorf("when the target closes, ServeStdio has written %q, %v, want bye", &out, err)
	}
	broken, w := io.Pipe()
	broken.Close()
	if err := s.ServeStdio(input, w); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("when the output fails, ServeStdio returns %v, want io.ErrClosedPipe", err)
	}
	waiting := &Server{Protocol: Forward{Target: target(t, echo)}}
	input, more = io.Pipe()
	defer more.Close()
	output, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- waiting.ServeStdio(input, w) }()
	write(t, more, "x")
	want(t, "the echo", output, "x")
	waiting.Close()
	if err := testkit.Next(t, ended, "ServeStdio returns after Close"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close, ServeStdio returns %v, want net.ErrClosed", err)
	}
	if err := waiting.ServeStdio(input, io.Discard); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ServeStdio on a closed server: %v, want net.ErrClosed", err)
	}
}
