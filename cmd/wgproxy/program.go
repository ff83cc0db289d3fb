package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/internal/idlemem"
	"github.com/seed-86b749af/wireguard/internal/systemd"
	"github.com/seed-86b749af/wireguard/proxy"
	"github.com/seed-86b749af/wireguard/wgnet"
)

// A program is one run of wgproxy. Only the goroutine of run changes it.
type program struct {
	*settings
	options  *options
	family   string    // settings.family at the start; dials read it, and a reload does not change it
	lookup   lookup    // resolves the names of targets if the file has no DNS; otherwise nil
	out      io.Writer // gets the messages for the user
	terminal bool      // whether out shows progress
	stdin    io.Reader // what [STDIOTunnel] sends; nothing else may use stdin and stdout
	stdout   io.Writer // what [STDIOTunnel] receives

	tunnel    *wgnet.Tunnel
	gateway   *exit // nil without [Gateway]
	inherited sockets
	metrics   *metrics
	running   map[service]*server
	ended     chan error // the errors of services that end by themselves
}

// A lookup is a function such as net.Resolver.LookupNetIP.
type lookup = func(ctx context.Context, network, host string) ([]netip.Addr, error)

// A server is a service that runs.
type server struct {
	*proxy.Server
	closers []io.Closer // open sockets that were not passed to Serve yet
	serve   func() error
	cert    atomic.Pointer[tls.Certificate] // of an [http] with CertFile
}

// drainTime is how long existing connections may continue after SIGTERM.
const drainTime = 10 * time.Second

// run serves until a signal other than SIGHUP arrives, ctx ends, or a service ends by itself. It returns an error only if
// something has failed.
func (p *program) run(ctx context.Context, signals <-chan os.Signal) (err error) {
	p.family = p.settings.family
	switch {
	case len(p.settings.file.Interface.DNS) > 0:
		p.lookup = nil
	case p.lookup == nil:
		p.lookup = net.DefaultResolver.LookupNetIP
	}
	p.running, p.ended = make(map[service]*server), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.inherited == nil {
		if p.inherited, err = inherit(); err != nil {
			return err
		}
	}
	defer p.close()
	if err := p.open(ctx, signals); err != nil || p.tunnel == nil {
		return err
	}
	p.metrics = newMetrics(p.tunnel.Device())
	if p.gateway != nil {
		p.metrics.registry.MustRegister(newExitCollector(p.gateway))
	}
	defer p.stopAll()
	status, err := p.serveStatus(ctx)
	if err != nil {
		return err
	}
	defer status.Close()
	if err := p.startServices(p.services); err != nil {
		return err
	}
	if err := p.inherited.unused(); err != nil {
		return err
	}
	if p.lookup != nil {
		p.say("this host resolves the names of targets, because [Interface] has no DNS")
	}
	if p.gateway != nil {
		p.say("serving [Gateway]: peers reach other hosts through this one")
	}
	if p.terminal {
		go p.showSession(ctx)
	}
	go idlemem.Watch(ctx, func() uint64 { return idlemem.Moved(p.tunnel.Device()) })
	systemd.Notify("READY=1")
	for {
		select {
		case sig := <-signals:
			if !isReload(sig) {
				systemd.Notify("STOPPING=1")
				return p.drain(signals)
			}
			if err := p.reload(ctx); err != nil {
				p.say("not reloaded: %v", err)
			}
		case err := <-p.ended:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// say prints a message for the user, with the program's name in front of each line.
func (p *program) say(format string, args ...any) {
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		fmt.Fprintf(p.out, "wgproxy: %s\n", line)
	}
}

// open opens the tunnel. If a signal other than SIGHUP arrives while open resolves names, open gives up, and p.tunnel stays nil.
func (p *program) open(ctx context.Context, signals <-chan os.Signal) error {
	for _, w := range p.file.Warnings() {
		p.say("warning: %v", w)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		tunnel *wgnet.Tunnel
		err    error
	}
	config := wgnet.Config{Resolution: p.resolution()}
	if p.exit != nil {
		var err error
		if p.gateway, err = newExit(p.exit, p.file); err != nil {
			return err
		}
		config.Net.Forward = p.gateway.Forward
	}
	opened := make(chan result, 1)
	go func() {
		tunnel, err := wgnet.OpenFile(ctx, p.file, config)
		opened <- result{tunnel, err}
	}()
	for stopped := false; ; {
		select {
		case sig := <-signals:
			if !isReload(sig) {
				stopped = true
				cancel()
			}
		case r := <-opened:
			switch {
			case stopped && r.err == nil:
				return r.tunnel.Close()
			case stopped:
				return nil
			case r.err != nil:
				return fmt.Errorf("%s: %w", p.path, r.err)
			}
			p.tunnel = r.tunnel
			return nil
		}
	}
}

// close closes the gateway and the tunnel, if they exist.
func (p *program) close() {
	if p.gateway != nil {
		p.gateway.Close()
	}
	if p.tunnel != nil {
		p.tunnel.Close()
	}
}

// resolution says how to resolve the host names of endpoints. On a terminal, it prints the names that are about to be looked up.
// After each failed lookup, the program prints the error and when it tries again.
func (p *program) resolution() conf.Resolution {
	if p.terminal {
		for i := range p.file.Peers {
			for _, e := range p.file.Peers[i].Endpoints() {
				if _, ok := e.AddrPort(); !ok {
					p.say("looking up %s", e.Host)
				}
			}
		}
	}
	return conf.Resolution{Waiting: func(host string, err error, wait time.Duration) {
		p.say("%v; trying again in %.1f seconds", err, wait.Seconds())
	}}
}

// showSession prints that wgproxy waits for the handshake, and then whether the handshake succeeded.
func (p *program) showSession(ctx context.Context) {
	start := time.Now()
	for peer := range p.tunnel.Device().Peers() {
		if peer.Endpoint.IsValid() {
			p.say("waiting for a handshake with %v at %v", peer.PublicKey, peer.Endpoint.Addr)
		}
	}
	switch err := p.tunnel.Wait(ctx); {
	case ctx.Err() != nil:
	case err != nil:
		p.say("%v", err)
	default:
		p.say("the tunnel is ready after %v; waiting for the first byte", time.Since(start).Round(time.Millisecond))
	}
}

// startServices starts services. If a service fails to start, startServices stops those that it has started.
func (p *program) startServices(services []service) error {
	var started []service
	for _, s := range services {
		srv, err := p.listen(s)
		if err != nil {
			for _, s := range started {
				p.stop(s)
			}
			return fmt.Errorf("%v: %w", s, err)
		}
		p.running[s] = srv
		started = append(started, s)
	}
	for _, s := range started {
		srv := p.running[s]
		srv.closers = nil
		go func() {
			err := srv.serve()
			switch {
			case errors.Is(err, net.ErrClosed), err == nil && s.kind != kindStdio:
				return // a reload or the end of wgproxy has stopped the service
			case err != nil:
				err = fmt.Errorf("%v: %w", s, err)
			}
			select {
			case p.ended <- err:
			default:
			}
		}()
		p.say("serving %v", s)
	}
	return nil
}

// listen opens the sockets of a service.
func (p *program) listen(s service) (*server, error) {
	srv := &server{Server: &proxy.Server{DialContext: p.dial, Done: p.metrics.done(s, p.firstByte())}}
	switch s.kind {
	case kindSOCKS:
		srv.Protocol = proxy.SOCKS5{Username: s.username, Password: s.password}
		srv.ListenPacket = p.tunnel.ListenPacket
	case kindHTTP:
		h := proxy.HTTP{Username: s.username, Password: s.password}
		if s.certFile != "" {
			cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
			if err != nil {
				return nil, err
			}
			srv.cert.Store(&cert)
			h.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return srv.cert.Load(), nil }}
		}
		srv.Protocol = h
	case kindSNI:
		srv.Protocol = proxy.SNI{}
	case kindClient, kindUDP, kindServer:
		srv.Protocol = proxy.Forward{Target: s.target}
	case kindStdio:
		srv.Protocol = proxy.Forward{Target: s.target}
		srv.IdleTimeout = -1 // an ssh session may be silent for days, and the end of p.stdin tells that its client is gone
		srv.serve = func() error { return srv.ServeStdio(p.stdin, p.stdout) }
		return srv, nil
	}
	if s.kind == kindUDP {
		srv.IdleTimeout = s.idle
		c, err := p.inherited.packet(s.bind)
		if err != nil {
			return nil, err
		}
		srv.closers, srv.serve = []io.Closer{c}, func() error { return srv.ServePacket(c) }
		return srv, nil
	}
	l, err := p.listener(s)
	if err != nil {
		return nil, err
	}
	if s.kind == kindServer {
		srv.DialContext = new(net.Dialer).DialContext
	}
	srv.closers, srv.serve = []io.Closer{l}, func() error { return srv.Serve(l) }
	return srv, nil
}

func (p *program) listener(s service) (net.Listener, error) {
	if s.kind == kindServer {
		return p.tunnel.Listen("tcp", s.bind)
	}
	return p.inherited.listener(s.bind)
}

// dial opens a connection through the tunnel. ResolveStrategy says to which addresses a name is resolved. If the file has no DNS,
// the host's resolver is asked, as in wireproxy.
func (p *program) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return p.tunnel.DialContext(ctx, network, address)
	}
	if p.lookup == nil {
		return p.tunnel.DialContext(ctx, network+p.family, address)
	}
	addrs, err := p.lookup(ctx, "ip"+p.family, host)
	if err != nil {
		return nil, err
	}
	err = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	for _, a := range addrs {
		c, failed := p.tunnel.DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		if failed == nil {
			return c, nil
		}
		err = failed
	}
	return nil, err
}

// firstByte returns a function for the reports of connections. On a terminal, this function prints a message once in the life of
// wgproxy: for the first report of a connection that has received bytes.
func (p *program) firstByte() func(proxy.Report) {
	if !p.terminal {
		return func(proxy.Report) {}
	}
	return func(r proxy.Report) {
		if r.Received > 0 {
			p.metrics.first.Do(func() { p.say("the first bytes have arrived, from %s", r.Target) })
		}
	}
}

// stop ends a service and its connections.
func (p *program) stop(s service) {
	srv := p.running[s]
	delete(p.running, s)
	srv.Close()
	for _, c := range srv.closers {
		c.Close()
	}
}

func (p *program) stopAll() {
	for s := range p.running {
		p.stop(s)
	}
}

// drain waits for the connections of services and of [Gateway] to end, for drainTime or until a second signal.
func (p *program) drain(signals <-chan os.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	var all sync.WaitGroup
	for _, srv := range p.running {
		all.Go(func() { srv.Shutdown(ctx) })
	}
	if p.gateway != nil {
		all.Go(func() { p.gateway.Shutdown(ctx) })
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			return nil
		case sig := <-signals:
			if !isReload(sig) {
				cancel()
			}
		}
	}
}
