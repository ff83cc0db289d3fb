package proxy

import (
	"errors"
	"fmt"
	"io"
	"time"
)

var errStdio = errors.New("proxy: ServeStdio needs a Forward, which names the target")

// ServeStdio connects r and w to the target of a Forward. With standard input and output as r and w, a program can serve as the
// ProxyCommand of ssh. When r ends, ServeStdio half-closes the connection to the target. ServeStdio returns when the target has
// closed its side and all that the target sent is written to w, or when the connection fails. A Read of r may still be waiting at
// that time; the bytes that it reads are dropped. DialTimeout and IdleTimeout apply, and Done is called.
func (s *Server) ServeStdio(r io.Reader, w io.Writer) error {
	p, ok := s.Protocol.(Forward)
	if !ok {
		return errStdio
	}
	if err := s.ready(); err != nil {
		return err
	}
	n := &session{server: s, report: Report{Target: p.Target, Start: time.Now()}}
	if !s.register(n) {
		return errClosed
	}
	err := p.stdio(s, n, r, w)
	n.end(err)
	return err
}

func (p Forward) stdio(s *Server, n *session, r io.Reader, w io.Writer) error {
	to, err := s.dial(s.context, "tcp", p.Target)
	if err != nil {
		return fmt.Errorf("proxy: dial %s: %w", p.Target, err)
	}
	n.own(to)
	n.watch(s.idle())
	go func() {
		if err := copyGrowing(to, r, &n.sent); err != nil {
			n.fail(err)
		} else if c, ok := to.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}()
	err = n.copy(w, to, &n.received)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return n.err
	}
	return err
}
