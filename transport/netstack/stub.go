package netstack

import (
	"context"
	"encoding/binary"
	"net"

	"golang.org/x/net/dns/dnsmessage"
)

// Resolver returns a *net.Resolver for libraries that need this type. Prefer the Net's own methods, such as LookupHost, because
// they do not depend on the host. The *net.Resolver gets its answers from the Net, with the Net's cache and choice of servers,
// but the host decides these points:
//
//   - A name in the host's hosts file has the address from that file. If nsswitch.conf names only files, no other name resolves.
//   - Names that do not end in a dot are completed with the search list of the host's resolv.conf instead of Config.Search.
//   - Each query has the timeout and the number of attempts from resolv.conf, for each server in resolv.conf.
//   - An error names a server from resolv.conf, although that server was not asked. It does not say what the tunnel's name
//     servers answered.
//   - LookupPort reads the host's list of services.
func (n *Net) Resolver() *net.Resolver { return &n.resolver.stub }

// dialStub returns a connection to a name server inside the process, which gets its answers from r. Package net uses DNS over TCP
// on the connection, because the connection lacks the methods of a net.PacketConn.
func (r *resolver) dialStub(ctx context.Context, _, _ string) (net.Conn, error) {
	if len(r.servers) == 0 {
		return nil, r.missing
	}
	if r.net.isClosed() {
		return nil, net.ErrClosed
	}
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		// Package net cancels ctx when it has its answer.
		defer context.AfterFunc(ctx, func() { _ = ours.Close() })()
		for {
			m, err := readMessage(ours)
			if err != nil {
				return
			}
			if m, err = r.stubAnswer(ctx, m); err != nil {
				return
			}
			m = append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
			if _, err := ours.Write(m); err != nil {
				return
			}
		}
	}()
	return theirs, nil
}

// stubAnswer returns the response to a query of package net.
func (r *resolver) stubAnswer(ctx context.Context, query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	a, err := r.resolve(ctx, question{lower(q.Name.String()), q.Type})
	switch {
	case err != nil:
		m.RCode = dnsmessage.RCodeServerFailure
	case a.noName:
		m.RCode = dnsmessage.RCodeNameError
	default:
		m.Answers, err = a.resources(q.Name)
		if err != nil {
			return nil, err
		}
	}
	return m.Pack()
}

// resources returns the records of a. If they belong to another name than name, a CNAME record from name to their owner comes
// first.
func (a *answer) resources(name dnsmessage.Name) (all []dnsmessage.Resource, err error) {
	if lower(name.String()) != a.owner {
		owner, err := dnsmessage.NewName(a.owner)
		if err != nil {
			return nil, err
		}
		h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}
		all = append(all, dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: owner}})
	}
	_, own := records(a, (*dnsmessage.Parser).Answer)
	return append(all, own...), nil
}
