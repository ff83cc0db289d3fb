package proxy

import (
	"bufio"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// SOCKS5 is a proxy as RFC 1928 describes it. It serves CONNECT and, if Server.ListenPacket is set, UDP ASSOCIATE. It refuses
// BIND, and drops datagrams that are fragments. The zero value serves every client.
//
// A UDP association ends when the TCP connection on which the client asked for it ends. The association accepts datagrams only
// from the client's IP address, and only from one port. This is the port that the client named in its request, or otherwise the
// source port of the first datagram.
//
// The code of the reply tells a client why its request failed:
//
//   - 1: the name is empty, a limit of the Server is reached, or the dial fails for a reason that has no code.
//   - 2: the dialer refuses the target.
//   - 3: no route leads to the target.
//   - 4: the target does not answer, or its name has no address.
//   - 5: the target refuses the connection.
//   - 7: the server does not serve the command.
//   - 8: the address is of an unknown type.
type SOCKS5 struct {
	// Username and Password are the credentials that a client must send (RFC 1929). If both are empty, clients need neither.
	Username, Password string

	// ListenPacket opens the socket to which the client of a UDP association sends its datagrams. Its arguments are "udp" and
	// the server's address that the client has connected to, with port 0. Nil means a socket of the host.
	ListenPacket func(network, address string) (net.PacketConn, error)
}

// Values of bytes in the messages of RFC 1928 and RFC 1929.
const (
	socksVersion = 5

	methodNone     = 0
	methodPassword = 2
	methodRefused  = 0xff

	passwordVersion = 1
	passwordRight   = 0
	passwordWrong   = 1

	commandConnect   = 1
	commandBind      = 2
	commandAssociate = 3

	addressIP4  = 1
	addressName = 3
	addressIP6  = 4
)

// A socksReply is a reply code, the field REP of RFC 1928, section 6.
type socksReply uint8

const (
	replySucceeded socksReply = iota
	replyFailure
	replyForbidden
	replyNetUnreachable
	replyHostUnreachable
	replyRefused
	replyTTLExpired
	replyCommand
	replyAddressType
)

var replies = map[failure]socksReply{
	failedOther: replyFailure, forbidden: replyForbidden, netUnreachable: replyNetUnreachable, hostUnreachable: replyHostUnreachable,
	refused: replyRefused, timedOut: replyHostUnreachable,
}

var (
	errSOCKSVersion     = errors.New("proxy: the client does not speak SOCKS5; its first byte must be 5")
	errSOCKSMethod      = errors.New("proxy: the client offers no authentication method that this server accepts")
	errSOCKSPassword    = errors.New("proxy: wrong username or password")
	errSOCKSAddressType = errors.New("proxy: SOCKS address of an unknown type")
	errSOCKSCommand     = errors.New("proxy: SOCKS command that this server does not serve")
	errSOCKSName        = errors.New("proxy: SOCKS name that is empty")
)

// heads is a pool of readers for what a client sends before its data: the greeting, the credentials and the request. The longest
// ones have 1,032 bytes together.
var heads = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 1<<10) }}

func (p SOCKS5) start(s *Server) (service, error) {
	return service{conn: func(n *session) { n.end(p.serve(s, n)) }, refuses: true}, nil
}

// serve serves a client's connection until it ends, and returns why it ended.
func (p SOCKS5) serve(s *Server, n *session) error {
	c := n.conn()
	_ = c.SetDeadline(s.deadline())
	head := heads.Get().(*bufio.Reader)
	head.Reset(c)
	command, target, err := p.ask(n, c, head)
	var early []byte
	if k := head.Buffered(); err == nil && k > 0 {
		early, _ = head.Peek(k) // data that the client sent before it had the reply
		early = append([]byte(nil), early...)
	}
	head.Reset(nil)
	heads.Put(head)
	if err != nil {
		return fmt.Errorf("proxy: read the request of a SOCKS client: %w", err)
	}
	if n.refused {
		_ = reply(c, replyFailure, nil)
		return ErrLimit
	}
	_ = c.SetDeadline(time.Time{})
	if command == commandAssociate {
		return p.associate(s, n, target)
	}
	return p.connect(s, n, target, early)
}

// ask reads the greeting and the request of a client. It answers the greeting. If the server does not serve the request, ask
// answers the request too.
func (p SOCKS5) ask(n *session, c io.Writer, head *bufio.Reader) (command byte, target string, err error) {
	if err := p.greet(n, c, head); err != nil {
		return 0, "", unexpectedEOF(err)
	}
	command, target, err = readRequest(head)
	switch {
	case errors.Is(err, errSOCKSAddressType):
		_ = reply(c, replyAddressType, nil)
	case errors.Is(err, errSOCKSName):
		_ = reply(c, replyFailure, nil)
	case err == nil && command != commandConnect && (command != commandAssociate || n.server.ListenPacket == nil):
		err = errSOCKSCommand
		_ = reply(c, replyCommand, nil)
	}
	return command, target, unexpectedEOF(err)
}

// greet reads the client's greeting, chooses an authentication method, and authenticates the client.
func (p SOCKS5) greet(n *session, c io.Writer, head *bufio.Reader) error {
	version, err := head.ReadByte()
	if err != nil {
		return err
	}
	if version != socksVersion {
		return errSOCKSVersion
	}
	methods, err := readShort(head)
	if err != nil {
		return err
	}
	want := byte(methodNone)
	if p.Username != "" || p.Password != "" {
		want = methodPassword
	}
	offered := false
	for _, m := range methods {
		offered = offered || m == want
	}
	if !offered {
		_, _ = c.Write([]byte{socksVersion, methodRefused})
		return errSOCKSMethod
	}
	if _, err := c.Write([]byte{socksVersion, want}); err != nil || want == methodNone {
		return err
	}
	return p.authenticate(n, c, head)
}

// authenticate reads the username and the password, and answers, as RFC 1929 says.
func (p SOCKS5) authenticate(n *session, c io.Writer, head *bufio.Reader) error {
	version, err := head.ReadByte()
	if err != nil {
		return err
	}
	username, err := readShort(head)
	if err != nil {
		return err
	}
	password, err := readShort(head)
	if err != nil {
		return err
	}
	if version != passwordVersion || !same(username, p.Username, password, p.Password) {
		_, _ = c.Write([]byte{passwordVersion, passwordWrong})
		return errSOCKSPassword
	}
	n.report.Username = p.Username
	_, err = c.Write([]byte{passwordVersion, passwordRight})
	return err
}

// same compares credentials. The time that it takes reveals only their lengths.
func same[B []byte | string](username B, wantUsername string, password B, wantPassword string) bool {
	a := subtle.ConstantTimeCompare([]byte(username), []byte(wantUsername))
	b := subtle.ConstantTimeCompare([]byte(password), []byte(wantPassword))
	return a&b == 1
}

// readShort reads one byte with a length, and then that number of bytes.
func readShort(r *bufio.Reader) ([]byte, error) {
	k, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	b := make([]byte, k)
	_, err = io.ReadFull(r, b)
	return b, err
}

// readRequest reads "VER CMD RSV ATYP DST.ADDR DST.PORT".
func readRequest(r *bufio.Reader) (command byte, target string, err error) {
	var b [3]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, "", err
	}
	if b[0] != socksVersion {
		return 0, "", errSOCKSVersion
	}
	host, port, err := readAddress(r)
	if err != nil {
		return 0, "", err
	}
	return b[1], net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// readAddress reads "ATYP ADDR PORT".
func readAddress(r *bufio.Reader) (host string, port uint16, err error) {
	kind, err := r.ReadByte()
	if err != nil {
		return "", 0, err
	}
	var b []byte
	switch kind {
	case addressIP4:
		b = make([]byte, 4)
		_, err = io.ReadFull(r, b)
	case addressIP6:
		b = make([]byte, 16)
		_, err = io.ReadFull(r, b)
	case addressName:
		b, err = readShort(r)
	default:
		return "", 0, errSOCKSAddressType
	}
	if err != nil {
		return "", 0, err
	}
	var p [2]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		return "", 0, err
	}
	if kind == addressName {
		if len(b) == 0 {
			return "", 0, errSOCKSName
		}
		return string(b), binary.BigEndian.Uint16(p[:]), nil
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip.String(), binary.BigEndian.Uint16(p[:]), nil
}

// reply writes "VER REP RSV ATYP BND.ADDR BND.PORT". bound may be nil.
func reply(c io.Writer, code socksReply, bound net.Addr) error {
	b := append(make([]byte, 0, 22), socksVersion, byte(code), 0)
	_, err := c.Write(appendAddress(b, addrPort(bound)))
	return err
}

// appendAddress appends "ATYP ADDR PORT". It writes an invalid address as 0.0.0.0:0.
func appendAddress(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr().Unmap()
	switch {
	case !ip.IsValid():
		b = append(b, addressIP4, 0, 0, 0, 0)
	case ip.Is4():
		b = append(b, addressIP4)
		b = append(b, ip.AsSlice()...)
	default:
		b = append(b, addressIP6)
		b = append(b, ip.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// addrPort returns the address and port of a, and turns an IPv4-mapped IPv6 address into IPv4. The result is invalid if a has
// no IP address.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// connect serves CONNECT.
func (p SOCKS5) connect(s *Server, n *session, target string, early []byte) error {
	n.report.Target = target
	c := n.conn()
	to, err := s.dial(s.context, "tcp", target)
	if err != nil {
		_ = c.SetWriteDeadline(s.deadline())
		_ = reply(c, replies[failureOf(err)], nil)
		return fmt.Errorf("proxy: dial %s: %w", target, err)
	}
	n.own(to)
	if err := reply(c, replySucceeded, to.LocalAddr()); err != nil {
		return err
	}
	if err := n.first(to, early); err != nil {
		return err
	}
	return n.relay(c, to)
}
