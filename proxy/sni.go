package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// SNI connects TLS clients to the host that their ClientHello names, and does not decrypt what they send.
//
// A TLS alert tells a client why its connection failed:
//
//   - 49 (access_denied): the dialer or Target refuses the name with an error that wraps fs.ErrPermission.
//   - 50 (decode_error): the client does not speak TLS.
//   - 80 (internal_error): a limit of the Server is reached, or the dial fails for another reason.
//   - 112 (unrecognized_name): the ClientHello has no name, or the name does not exist.
type SNI struct {
	// Target returns the address to dial for a name, "host:port". It may refuse the name with an error. Nil means the name itself
	// on port 443.
	Target func(name string) (address string, err error)
}

// maxHello is how many bytes are read at most to find a complete ClientHello. A record has at most 16 KiB of plaintext, and a
// ClientHello may span several records.
const maxHello = 64 << 10

// Alerts of RFC 8446, section 6.
const (
	alertAccessDenied     = 49
	alertDecodeError      = 50
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

var (
	errHello     = errors.New("proxy: the client sent no ClientHello of TLS")
	errLongHello = fmt.Errorf("proxy: a ClientHello of more than %d bytes", maxHello)
	errNoName    = errors.New("proxy: the ClientHello names no host")
)

func (p SNI) start(s *Server) (service, error) {
	return service{conn: func(n *session) { n.end(p.serve(s, n)) }, refuses: true}, nil
}

func (p SNI) serve(s *Server, n *session) error {
	c := n.conn()
	_ = c.SetDeadline(s.deadline())
	name, early, err := readHello(c)
	if err != nil {
		code := byte(alertDecodeError)
		if errors.Is(err, errNoName) {
			code = alertUnrecognizedName
		}
		sendAlert(c, code)
		return err
	}
	if n.refused {
		sendAlert(c, alertInternalError)
		return ErrLimit
	}
	address := net.JoinHostPort(name, "443")
	if p.Target != nil {
		if address, err = p.Target(name); err != nil {
			sendAlert(c, alertOf(err))
			return fmt.Errorf("proxy: target of %q: %w", name, err)
		}
	}
	n.report.Target = address
	to, err := s.dial(s.context, "tcp", address)
	if err != nil {
		sendAlert(c, alertOf(err))
		return fmt.Errorf("proxy: dial %s: %w", address, err)
	}
	n.own(to)
	_ = c.SetDeadline(time.Time{})
	if err := n.first(to, early); err != nil {
		return err
	}
	return n.relay(c, to)
}

// alertOf returns the TLS alert that tells a client why a dial failed with err.
func alertOf(err error) byte {
	var dns *net.DNSError
	switch {
	case failureOf(err) == forbidden:
		return alertAccessDenied
	case errors.As(err, &dns) && dns.IsNotFound:
		return alertUnrecognizedName
	}
	return alertInternalError
}

// sendAlert sends a record with a fatal alert.
func sendAlert(c net.Conn, code byte) {
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, code})
}

// readHello reads until the ClientHello is complete. It returns the server name in the ClientHello, and all bytes that were read.
// Package crypto/tls parses the ClientHello, and readHello ends the handshake before crypto/tls answers.
func readHello(r io.Reader) (name string, read []byte, err error) {
	h := &helloConn{r: r}
	found := false
	_ = tls.Server(h, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		found, name = true, hello.ServerName
		return nil, errHello // any error ends the handshake
	}}).Handshake()
	switch {
	case !found && h.err != nil:
		return "", nil, fmt.Errorf("proxy: read a ClientHello: %w", unexpectedEOF(h.err))
	case !found:
		return "", nil, errHello
	case !isName(name):
		return "", nil, errNoName
	}
	return name, h.read.Bytes(), nil
}

// isName reports whether s has only characters and a length that a DNS name may have, and is not an IP address.
// RFC 6066, section 3: "Literal IPv4 and IPv6 addresses are not permitted".
func isName(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil || s == "" || len(s) > 253 {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// A helloConn stores the bytes that crypto/tls reads, and discards the bytes that crypto/tls writes.
type helloConn struct {
	net.Conn // nil, because crypto/tls calls only the methods that helloConn defines
	r        io.Reader
	read     bytes.Buffer
	err      error // the error of the last Read
}

func (h *helloConn) Read(b []byte) (int, error) {
	if h.read.Len() >= maxHello {
		h.err = errLongHello
		return 0, h.err
	}
	n, err := h.r.Read(b[:min(len(b), maxHello-h.read.Len())])
	h.read.Write(b[:n])
	h.err = err
	return n, err
}

func (h *helloConn) Write(b []byte) (int, error)        { return len(b), nil }
func (h *helloConn) Close() error                       { return nil }
func (h *helloConn) SetWriteDeadline(_ time.Time) error { return nil }
