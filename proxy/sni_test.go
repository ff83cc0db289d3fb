package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"testing"
)

// hellos returns the ClientHello of crypto/tls for a server name. If name is empty, the ClientHello has no server name.
func hellos(t testing.TB, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	_ = tls.Client(recorder{w: &b}, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	if b.Len() == 0 {
		t.Fatal("the TLS client wrote no ClientHello")
	}
	return b.Bytes()
}

// A recorder passes what a client writes to w, and sends the client nothing.
type recorder struct {
	net.Conn
	w io.Writer
}

func (r recorder) Write(b []byte) (int, error) { return r.w.Write(b) }
func (r recorder) Read([]byte) (int, error)    { return 0, io.EOF }
func (r recorder) Close() error                { return nil }

// TestSNI checks that a TLS client reaches the host that it names, without decryption on the path, even if the ClientHello
// arrives byte by byte.
func TestSNI(t *testing.T) {
	web := webTarget(t, true)
	for name, want := range map[string]string{"example.com": "example.com:443", "a.b_c-d.example": "a.b_c-d.example:443"} {
		var asked string
		addr, done := serve(t, &Server{Protocol: SNI{}, DialContext: to(web.Listener.Addr().String(), nil)})
		c := tls.Client(byteWise{dial(t, addr)}, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		write(t, c, "GET /x HTTP/1.1\r\nHost: "+name+"\r\nConnection: close\r\n\r\n")
		if got := wantEnd(t, "the answer", c); !strings.Contains(got, "GET /x host="+name) {
			t.Errorf("%s: the response is %q, want one with the host of the request", name, got)
		}
		c.Close()
		if asked = done.next(t).Target; asked != want {
			t.Errorf("%s: target %q, want %q", name, asked, want)
		}
	}
}

// byteWise writes one byte at a time.
type byteWise struct{ net.Conn }

func (c byteWise) Write(b []byte) (n int, err error) {
	for ; n < len(b) && err == nil; n++ {
		_, err = c.Conn.Write(b[n : n+1])
	}
	return n, err
}

// TestSNIAlerts checks that the server answers each failure with the TLS alert that the comment of SNI names.
func TestSNIAlerts(t *testing.T) {
	hello := string(hellos(t, "example.com"))
	for name, c := range map[string]struct {
		p     SNI
		err   error // what the dial of the target returns
		send  string
		alert byte
	}{
		"no name":         {SNI{}, nil, string(hellos(t, "")), alertUnrecognizedName},
		"an address":      {SNI{}, nil, strings.ReplaceAll(hello, "example.com", "192.0.2.100"), alertUnrecognizedName},
		"not TLS":         {SNI{}, nil, "GET / HTTP/1.1\r\n\r\n", alertDecodeError},
		"an end within":   {SNI{}, nil, hello[:40], alertDecodeError},
		"by policy":       {SNI{}, fs.ErrPermission, hello, alertAccessDenied},
		"no such name":    {SNI{}, &net.DNSError{IsNotFound: true}, hello, alertUnrecognizedName},
		"a broken dialer": {SNI{}, errors.New("broken"), hello, alertInternalError},
		"a refused name":  {SNI{Target: func(string) (string, error) { return "", fs.ErrPermission }}, nil, hello, alertAccessDenied},
		"a name with a NUL": {SNI{}, nil, strings.ReplaceAll(hello, "example.com", "example\x00com"),
			alertUnrecognizedName},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.err
			if err == nil {
				err = errors.New("dialed")
			}
			addr, done := serve(t, &Server{Protocol: c.p, DialContext: failing(err)})
			conn := dial(t, addr)
			write(t, conn, c.send)
			_ = conn.CloseWrite()
			want(t, "the alert", conn, string([]byte{21, 3, 3, 0, 2, 2, c.alert}))
			if r := done.next(t); r.Err == nil || c.err != nil && !errors.Is(r.Err, c.err) {
				t.Errorf("report: %+v, want the error of the dial", r)
			}
		})
	}
}

// TestIsName checks which names the proxy may dial.
func TestIsName(t *testing.T) {
	for name, want := range map[string]bool{
		"example.com": true, "EXAMPLE": true, "_a.b-c": true, "": false, "192.0.2.1": false, "::1": false, "a b": false, "a:443": false, "a/b": false,
		"ä": false, strings.Repeat("a", 254): false,
	} {
		if isName(name) != want {
			t.Errorf("isName(%q) returns %v, want the opposite", name, !want)
		}
	}
}

// endless is a reader that returns head, and then the same byte without end.
type endless struct {
	head []byte
	n    int
}

func (e *endless) Read(b []byte) (int, error) {
	if len(e.head) > 0 {
		n := copy(b, e.head)
		e.head = e.head[n:]
		return n, nil
	}
	e.n += len(b)
	return len(b), nil
}

// FuzzSNI checks that readHello reads at most maxHello bytes whatever a client sends, that it loses none of them, and that the
// name that it returns can be dialed.
func FuzzSNI(f *testing.F) {
	f.Add(hellos(f, "example.com"))
	f.Add(hellos(f, ""))
	f.Add([]byte{22, 3, 1, 64, 0, 1, 0, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &endless{head: bytes.Clone(b)}
		name, read, err := readHello(e)
		if e.n > maxHello {
			t.Errorf("readHello read %d bytes after the input, want at most 65536 in all", e.n)
		}
		if err != nil {
			return
		}
		if !isName(name) || !bytes.HasPrefix(read, b[:min(len(b), len(read))]) {
			t.Errorf("readHello returns the name %q and %d bytes for an input of %d bytes; want a name that can be dialed and the bytes of the input", name, len(read), len(b))
		}
	})
}
