package netstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"syscall"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// udpAnswer is the size, in bytes, of the largest answer that the resolver asks for in one datagram. A datagram of that
	// size fits any path (dnsflagday.net/2020).
	udpAnswer = 1232

	// maxStrays is how many datagrams the resolver reads from a question's socket. If none of these datagrams answers the question,
	// somebody is probably sending forged answers and guessing the ID of the query, so the resolver then asks over TCP.
	maxStrays = 16
)

var (
	errTruncated = errors.New("truncated answer")
	errStrays    = errors.New("too many answers to other questions")
	errCut       = errors.New("connection closed before the answer")
)

// exchange asks one server over UDP and, if necessary, over TCP.
func (r *resolver) exchange(ctx context.Context, server netip.AddrPort, q question) (*answer, error) {
	a, err := r.exchangeEDNS(ctx, server, q, true)
	if rcode, ok := err.(rcodeError); ok {
		switch dnsmessage.RCode(rcode) {
		case dnsmessage.RCodeFormatError, dnsmessage.RCodeNotImplemented, rcodeBadVersion:
			// The server may not know EDNS (RFC 6891, section 7).
			return r.exchangeEDNS(ctx, server, q, false)
		}
	}
	return a, err
}

const rcodeBadVersion dnsmessage.RCode = 16

func (r *resolver) exchangeEDNS(ctx context.Context, server netip.AddrPort, q question, edns bool) (*answer, error) {
	m, err := newQuery(q, edns)
	if err != nil {
		return nil, err
	}
	wire, err := r.overUDP(ctx, server, m)
	if err == errTruncated || err == errStrays {
		why := err
		if wire, err = r.overTCP(ctx, server, m); err != nil {
			return nil, fmt.Errorf("%w over UDP, and over TCP: %w", why, said(err))
		}
	}
	if err != nil {
		return nil, said(err)
	}
	return parseAnswer(q, server, wire)
}

// said returns the part of err that says what happened, without the addresses. The resolver adds the server's address itself.
func said(err error) error {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return errCut
	}
	return err
}

// overUDP sends the query from a port that gVisor chooses at random, and returns the answer. The socket is connected, so it
// receives datagrams from the server alone. overUDP closes the socket when ctx ends.
func (r *resolver) overUDP(ctx context.Context, server netip.AddrPort, m *query) ([]byte, error) {
	c, err := r.net.DialUDP(netip.AddrPort{}, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if _, err := c.Write(m.wire[2:]); err != nil {
		return nil, err
	}
	b := make([]byte, udpAnswer)
	for range maxStrays {
		n, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		switch h, ok := m.answeredBy(b[:n]); {
		case !ok:
		case h.Truncated:
			return nil, errTruncated
		default:
			return bytes.Clone(b[:n]), nil
		}
	}
	return nil, errStrays
}

// overTCP sends the query on a new connection and returns the answer. The connection is closed when ctx ends.
func (r *resolver) overTCP(ctx context.Context, server netip.AddrPort, m *query) ([]byte, error) {
	c, err := r.net.DialTCP(ctx, netip.AddrPort{}, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if _, err := c.Write(m.wire); err != nil {
		return nil, err
	}
	wire, err := readMessage(c)
	if err != nil {
		return nil, err
	}
	if _, ok := m.answeredBy(wire); !ok {
		return nil, errMalformed
	}
	return wire, nil
}

// readMessage reads a message from a stream, where the message's length precedes it (RFC 1035, section 4.2.2). It returns the
// message without the length.
func readMessage(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	wire := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, wire)
	return wire, err
}

// A query is the message that asks a question. It has a random ID, which the answer must repeat.
type query struct {
	id       uint16
	question dnsmessage.Question
	wire     []byte // the message, after its length in two bytes, as it is sent over TCP
}

func newQuery(q question, edns bool) (*query, error) {
	name, err := dnsmessage.NewName(q.name)
	if err != nil {
		return nil, err
	}
	m := &query{question: dnsmessage.Question{Name: name, Type: q.t, Class: dnsmessage.ClassINET}}
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails
	m.id = binary.BigEndian.Uint16(id[:])
	b := dnsmessage.NewBuilder(make([]byte, 2, 512), dnsmessage.Header{ID: m.id, RecursionDesired: true})
	errs := []error{b.StartQuestions(), b.Question(m.question)}
	if edns {
		var opt dnsmessage.ResourceHeader
		errs = append(errs, b.StartAdditionals(), opt.SetEDNS0(udpAnswer, dnsmessage.RCodeSuccess, false))
		errs = append(errs, b.OPTResource(opt, dnsmessage.OPTResource{}))
	}
	m.wire, err = b.Finish()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(m.wire, uint16(len(m.wire)-2))
	return m, nil
}

// answeredBy reports whether wire is a response to m, and returns the header of wire. A response with an error may lack the
// question, because a server that cannot read a query does not copy the question into its response.
func (m *query) answeredBy(wire []byte) (h dnsmessage.Header, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(wire)
	if err != nil || !h.Response || h.ID != m.id || h.OpCode != 0 {
		return h, false
	}
	q, err := p.Question()
	if err == dnsmessage.ErrSectionDone {
		return h, h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError
	}
	if err != nil || q.Type != m.question.Type || q.Class != m.question.Class {
		return h, false
	}
	if lower(q.Name.String()) != m.question.Name.String() {
		return h, false
	}
	_, err = p.Question()
	return h, err == dnsmessage.ErrSectionDone
}
