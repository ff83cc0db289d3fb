package uapi

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
)

// FuzzSet checks that Set never panics. If Set refuses a request, the device is as it was, and the error is one short line. If
// Set accepts a request, Set also accepts the answer of Get on another device, and Get then has the same answer for both devices.
func FuzzSet(f *testing.F) {
	f.Add([]byte(before))
	f.Add([]byte(halfDevice + halfPeers))
	f.Add([]byte("public_key=" + hexKey(1) + "\nallowed_ip=-10.0.0.0/8\nallowed_ip=+10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=::/0\n\nrest"))
	for _, bad := range badLines[:12] {
		f.Add([]byte(halfDevice + halfPeers + bad.line + "\n"))
	}
	for _, bad := range badDeviceLines {
		f.Add([]byte(bad))
	}
	for _, bad := range badPeerLines {
		f.Add([]byte(halfPeers + bad))
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		d := newDown(t)
		set(t, d, before)
		was := get(t, d)
		if err := Set(bytes.NewReader(request), d); err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Errno <= 0 || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Fatalf("Set returned %v, want an *Error with an errno and one short line", err)
			}
			if is := get(t, d); is != was {
				t.Fatalf("a refused request (error %v) changed the device from\n%s\nto\n%s", err, was, is)
			}
			return
		}
		is := get(t, d)
		again := newDown(t)
		set(t, again, before)
		set(t, again, settable(is))
		if got := get(t, again); canonical(got) != canonical(is) {
			t.Fatalf("a device set from the answer of Get answers\n%s\nwant\n%s", got, is)
		}
	})
}

// FuzzServer checks that the server gives one answer to each request, whatever a client sends, and that it does not
// panic.
func FuzzServer(f *testing.F) {
	f.Add([]byte("get=1\n\nset=1\nfwmark=1\n\nget=1\n\n"))
	f.Add([]byte("set=1\n" + before + "\nset=1\nx\n\nget=1\nx\n\nget=1\n"))
	f.Add([]byte("get=1\r\n\n"))
	f.Add([]byte("\n"))
	f.Add([]byte(strings.Repeat("x", readBuffer+maxLine)))
	f.Fuzz(func(t *testing.T, sent []byte) {
		s := &Server{Device: newDown(t)}
		c := &script{in: bytes.NewReader(sent)}
		r := bufio.NewReaderSize(c.in, readBuffer)
		answers := 0
		for s.answer(c, r) {
			answers++
			if n := strings.Count(c.out.String(), "errno="); n != answers {
				t.Fatalf("the server wrote %d answers to %d requests", n, answers)
			}
		}
		lines := bytes.ReplaceAll(sent, []byte("\r\n"), []byte("\n"))
		if asked := bytes.Count(lines, []byte("=1\n")); answers > asked {
			t.Fatalf("the server wrote %d answers, but the client sent at most %d requests", answers, asked)
		}
		if n := s.inUse.Load(); n != 0 {
			t.Fatalf("%d bytes still count as being read after all requests, want 0", n)
		}
	})
}

// A script is a connection whose client has already sent everything.
type script struct {
	net.Conn
	in  *bytes.Reader
	out strings.Builder
}

func (s *script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }
