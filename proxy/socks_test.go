package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hello is a greeting without authentication, and helloAnswer is the answer to it.
const hello, helloAnswer = "\x05\x01\x00", "\x05\x00"

// connectName returns a CONNECT request for a name and port 80.
func connectName(name string) string {
	return "\x05\x01\x00\x03" + string([]byte{byte(len(name))}) + name + "\x00\x50"
}

// TestSOCKSConnect checks that each type of address reaches the dialer, that names reach the dialer unresolved, and that
// half-close works in both directions.
func TestSOCKSConnect(t *testing.T) {
	upper := target(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c) // the target answers only after the client has closed its side
		_, _ = c.Write(bytes.ToUpper(b))
	})
	for ask, want := range map[string]string{
		"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50":                    "192.0.2.1:80",
		"\x05\x01\x00\x04" + "\xfd" + zeros(14) + "\x01" + "\x01\xbb": "[fd00::1]:443",
		connectName("intranet.example"):                               "intranet.example:80",
	} {
		var asked sync.Map
		addr, done := serve(t, &Server{Protocol: SOCKS5{}, DialContext: to(upper, &asked)})
		c := dial(t, addr)
		write(t, c, hello+ask+"early ") // the client sends data before it gets the answers
		wantReply(t, c, 0)
		write(t, c, "late")
		_ = c.CloseWrite()
		if got := wantEnd(t, "after the target's answer", c); got != "EARLY LATE" {
			t.Errorf("%s: the client read %q, want EARLY LATE", want, got)
		}
		if _, ok := asked.Load("tcp " + want); !ok {
			t.Errorf("the server did not dial %s", want)
		}
		if r := done.next(t); r.Err != nil || r.Sent != 10 || r.Received != 10 || r.Target != want || r.Client == nil || r.Duration <= 0 {
			t.Errorf("report: %+v, want no error, 10 bytes in each direction, the target, the client and a duration", r)
		}
	}
}

func zeros(n int) string { return string(make([]byte, n)) }

// wantReply reads the answer to the greeting, and then a reply with this code.
func wantReply(t testing.TB, c io.Reader, code byte) (bound netip.AddrPort) {
	t.Helper()
	want(t, "the answer to the greeting", c, helloAnswer)
	return wantCode(t, c, code)
}

func wantCode(t testing.TB, c io.Reader, code byte) (bound netip.AddrPort) {
	t.Helper()
	want(t, "the reply", c, "\x05"+string(rune(code))+"\x00")
	host, port, err := readAddress(bufio.NewReaderSize(io.LimitReader(c, 7), 16))
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(host), port)
}

// TestSOCKSReplies checks that a client gets the code of RFC 1928 for a failed dial.
func TestSOCKSReplies(t *testing.T) {
	for _, c := range []struct {
		err  error
		code byte
	}{
		{errors.New("broken"), 1},
		{fmt.Errorf("policy: %w", fs.ErrPermission), 2},
		{os.NewSyscallError("connect", syscall.ENETUNREACH), 3},
		{os.NewSyscallError("connect", syscall.EHOSTUNREACH), 4},
		{&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}, 4},
		{context.DeadlineExceeded, 4},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, 5},
	} {
		addr, done := serve(t, &Server{Protocol: SOCKS5{}, DialContext: failing(c.err)})
		conn := dial(t, addr)
		write(t, conn, hello+connectName("x"))
		wantReply(t, conn, c.code)
		if rest := wantEnd(t, "after a failure", conn); rest != "" {
			t.Errorf("%v: the server sent %q after the reply, want nothing", c.err, rest)
		}
		if r := done.next(t); !errors.Is(r.Err, c.err) || r.Target != "x:80" {
			t.Errorf("report: %+v, want the error of the dial and the target x:80", r)
		}
	}
}

// TestSOCKSRefusals checks that the server answers each request that it does not serve with the right code, and closes the
// connection.
func TestSOCKSRefusals(t *testing.T) {
	secret := SOCKS5{Username: "u", Password: "p"}
	for name, c := range map[string]struct {
		p            SOCKS5
		send, answer string
		err          error
	}{
		"SOCKS4":                  {SOCKS5{}, "\x04\x01\x00\x50\x01\x02\x03\x04\x00", "", errSOCKSVersion},
		"HTTP":                    {SOCKS5{}, "GET / HTTP/1.1\r\n\r\n", "", errSOCKSVersion},
		"no method":               {SOCKS5{}, "\x05\x00", "\x05\xff", errSOCKSMethod},
		"password only":           {SOCKS5{}, "\x05\x01\x02", "\x05\xff", errSOCKSMethod},
		"no password":             {secret, hello, "\x05\xff", errSOCKSMethod},
		"wrong password":          {secret, "\x05\x02\x00\x02" + "\x01\x01u\x01x", "\x05\x02\x01\x01", errSOCKSPassword},
		"wrong username":          {secret, "\x05\x01\x02" + "\x01\x01v\x01p", "\x05\x02\x01\x01", errSOCKSPassword},
		"password as a prefix":    {secret, "\x05\x01\x02" + "\x01\x01u\x02pp", "\x05\x02\x01\x01", errSOCKSPassword},
		"BIND":                    {SOCKS5{}, hello + "\x05\x02\x00\x01\x01\x02\x03\x04\x00\x50", helloAnswer + "\x05\x07\x00\x01" + zeros(6), errSOCKSCommand},
		"no datagrams here":       {SOCKS5{}, hello + "\x05\x03\x00\x01" + zeros(6), helloAnswer + "\x05\x07\x00\x01" + zeros(6), errSOCKSCommand},
		"unknown type of address": {SOCKS5{}, hello + "\x05\x01\x00\x02", helloAnswer + "\x05\x08\x00\x01" + zeros(6), errSOCKSAddressType},
		"empty name":              {SOCKS5{}, hello + "\x05\x01\x00\x03\x00\x00\x50", helloAnswer + "\x05\x01\x00\x01" + zeros(6), errSOCKSName},
		"an end in the request":   {SOCKS5{}, hello + "\x05\x01\x00\x03\x09abc", helloAnswer, io.ErrUnexpectedEOF},
		"an end in the greeting":  {SOCKS5{}, "\x05\x09\x00", "", io.ErrUnexpectedEOF},
		"nothing":                 {SOCKS5{}, "", "", io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			addr, done := serve(t, &Server{Protocol: c.p, DialContext: failing(errors.New("dialed"))})
			conn := dial(t, addr)
			write(t, conn, c.send)
			_ = conn.CloseWrite()
			want(t, "the answer", conn, c.answer)
			if rest := wantEnd(t, "after a refusal", conn); rest != "" {
				t.Errorf("the server sent %q after the answer, want nothing", rest)
			}
			if r := done.next(t); !errors.Is(r.Err, c.err) {
				t.Errorf("the report has the error %v, want %v", r.Err, c.err)
			}
		})
	}
}

// TestSOCKSPassword checks that the server accepts the right username and password, and reports the username.
func TestSOCKSPassword(t *testing.T) {
	long := strings.Repeat("x", 255)
	addr, done := serve(t, &Server{Protocol: SOCKS5{Username: long, Password: long}, DialContext: to(target(t, echo), nil)})
	c := dial(t, addr)
	write(t, c, "\x05\x02\x00\x02\x01\xff"+long+"\xff"+long+connectName(long))
	want(t, "the method", c, "\x05\x02")
	want(t, "the answer to the right password", c, "\x01\x00")
	wantCode(t, c, 0)
	write(t, c, "hi")
	_ = c.CloseWrite()
	if got := wantEnd(t, "the echo", c); got != "hi" {
		t.Errorf("the client read %q, want the echo hi", got)
	}
	if r := done.next(t); r.Username != long || r.Err != nil {
		t.Errorf("report: %+v, want no error and the username", r)
	}
}

// FuzzSOCKS checks that the server does not panic whatever a client sends, and that it reads no more bytes than the longest
// request has. Each request that it serves must have a target.
func FuzzSOCKS(f *testing.F) {
	f.Add([]byte(hello + connectName("example.com") + "data"))
	f.Add([]byte(hello + "\x05\x03\x00\x04" + zeros(18)))
	f.Add([]byte("\x05\x02\x00\x02\x01\x01u\x01p\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []SOCKS5{{}, {Username: "u", Password: "p"}} {
			r := bytes.NewReader(b)
			head := bufio.NewReaderSize(r, 1<<10)
			n := &session{server: &Server{ListenPacket: net.ListenPacket}}
			command, target, err := p.ask(n, io.Discard, head)
			if err != nil {
				continue
			}
			if host, _, err := net.SplitHostPort(target); err != nil && !strings.ContainsAny(target, "[]:") || err == nil && host == "" {
				t.Errorf("target %q: %v, want host:port with a host that is not empty", target, err)
			}
			if command != commandConnect && command != commandAssociate {
				t.Errorf("the server accepts the command %d, want CONNECT or UDP ASSOCIATE only", command)
			}
			if used := len(b) - r.Len() - head.Buffered(); used > 1032 {
				t.Errorf("the server read %d bytes as the request, want at most 1032", used)
			}
		}
	})
}

// TestDialTimeout checks that the server cancels a dial after DialTimeout, and that the client gets a reply with a code.
func TestDialTimeout(t *testing.T) {
	addr, done := serve(t, &Server{Protocol: SOCKS5{}, DialTimeout: 20 * time.Millisecond, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	c := dial(t, addr)
	write(t, c, hello+connectName("x"))
	wantReply(t, c, byte(replyHostUnreachable))
	if r := done.next(t); !errors.Is(r.Err, context.DeadlineExceeded) {
		t.Errorf("the report has the error %v, want %v", r.Err, context.DeadlineExceeded)
	}
}

// A scarce is a listener whose Accept fails as if the process had no descriptors left. The field failures is how many of the next
// calls fail.
type scarce struct {
	net.Listener
	failures int
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.failures--; l.failures >= 0 {
		return nil, os.NewSyscallError("accept", syscall.EMFILE)
	}
	return l.Listener.Accept()
}

// TestAcceptAgain checks that Serve continues after Accept has failed for lack of descriptors, and ends after other errors of
// Accept.
func TestAcceptAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Protocol: Forward{Target: target(t, echo)}}
	background(t, s, func() error { return s.Serve(&scarce{l, 3}) })
	c := dial(t, l.Addr().String())
	write(t, c, "hello")
	want(t, "the echo", c, "hello")
	broken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	broken.Close()
	other := &Server{Protocol: Forward{Target: "x:1"}}
	if err := other.Serve(broken); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a listener that somebody else closed: %v, want net.ErrClosed", err)
	}
}

// TestHandshakeTimeout checks that the server closes the connection of a client that sends nothing, or one byte at a time, after
// HandshakeTimeout.
func TestHandshakeTimeout(t *testing.T) {
	for name, p := range map[string]Protocol{"socks": SOCKS5{}, "http": HTTP{}} {
		t.Run(name, func(t *testing.T) {
			addr, done := serve(t, &Server{Protocol: p, HandshakeTimeout: 50 * time.Millisecond})
			silent, slow := dial(t, addr), dial(t, addr)
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for b := []byte{5, 255, 'G'}; ; time.Sleep(5 * time.Millisecond) {
					if _, err := slow.Write(b[:1]); err != nil {
						return
					}
					b = append(b[1:], 0)
					select {
					case <-stop:
						return
					default:
					}
				}
			}()
			wantEnd(t, "a client that sends nothing", silent)
			wantEnd(t, "a slow client", slow)
			for range 2 {
				if r := done.next(t); r.Err == nil {
					t.Error("the report of a client that sent no complete request has no error")
				}
			}
		})
	}
}
