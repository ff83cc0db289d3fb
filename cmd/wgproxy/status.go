package main

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe/page"
	"github.com/seed-86b749af/wireguard/observe/prom"
	"github.com/seed-86b749af/wireguard/proxy"
)

// metrics are what /metrics serves.
type metrics struct {
	registry                    *prometheus.Registry
	connections, sent, received *prometheus.CounterVec
	first                       sync.Once // limits the message about the first bytes to one
}

func newMetrics(d *wireguard.Device) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		connections: counter("wgproxy_connections_total", "Connections that have ended, by service and whether they failed.", "service", "failed"),
		sent:        counter("wgproxy_sent_bytes_total", "Bytes from clients to targets, of connections that have ended.", "service"),
		received:    counter("wgproxy_received_bytes_total", "Bytes from targets to clients, of connections that have ended.", "service"),
	}
	m.registry.MustRegister(prom.New(d, prom.Config{Interface: "wgproxy"}), m.connections, m.sent, m.received)
	return m
}

// done returns the function that a service calls with each connection that has ended.
func (m *metrics) done(s service, also func(proxy.Report)) func(proxy.Report) {
	name := s.String()
	failed := map[bool]prometheus.Counter{true: m.connections.WithLabelValues(name, "true"), false: m.connections.WithLabelValues(name, "false")}
	sent, received := m.sent.WithLabelValues(name), m.received.WithLabelValues(name)
	return func(r proxy.Report) {
		failed[r.Err != nil].Inc()
		sent.Add(float64(r.Sent))
		received.Add(float64(r.Received))
		also(r)
	}
}

// A health knows when each address of CheckAlive last answered a ping.
type health struct {
	every time.Duration
	mu    sync.Mutex           // guards last
	last  map[netip.Addr]int64 // in Unix seconds; 0 means never
}

// lateness is how far the age of the last answer to a ping may exceed CheckAliveInterval.
const lateness = 2 * time.Second

// ping pings an address once per interval until ctx ends.
func (h *health) ping(ctx context.Context, to netip.Addr, ping func(context.Context, netip.Addr) (time.Duration, error)) {
	ticker := time.NewTicker(h.every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		once, cancel := context.WithTimeout(ctx, h.every)
		if _, err := ping(once, to); err == nil {
			h.mu.Lock()
			h.last[to] = time.Now().Unix()
			h.mu.Unlock()
		}
		cancel()
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// ServeHTTP answers /readyz.
func (h *health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	last := maps.Clone(h.last)
	h.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	for _, at := range last {
		if time.Since(time.Unix(at, 0)) > h.every+lateness {
			w.WriteHeader(http.StatusServiceUnavailable)
			break
		}
	}
	json.NewEncoder(w).Encode(last)
}

// statusTimeout is how long a client of the status page may take to send a request, and to accept the answer.
const statusTimeout = 10 * time.Second

// statusServer returns a server for h. Its Close also ends /events, which sets deadlines for its writes itself. No deadline for
// reading applies once a request is complete.
func statusServer(h http.Handler, timeout time.Duration) *http.Server {
	return &http.Server{Handler: h, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

// serveStatus serves the page of package observe/page, /metrics and /readyz if the command line asks for them, and starts the pings
// of CheckAlive. All of them refuse host names that -status-host does not name: a page of another site, whose name resolves to this
// host, could otherwise read public keys, addresses and traffic.
func (p *program) serveStatus(ctx context.Context) (io.Closer, error) {
	if p.options.status == "" {
		return closeFunc(func() error { return nil }), nil
	}
	l, err := p.inherited.listener(p.options.status)
	if err != nil {
		return nil, err
	}
	h := &health{every: p.every, last: make(map[netip.Addr]int64)}
	for _, a := range p.alive {
		h.last[a] = 0
		go h.ping(ctx, a, p.tunnel.Net().Ping)
	}
	shown := page.Device{Name: "wgproxy", Device: p.tunnel.Device()}
	if p.gateway != nil {
		shown.Gateway = p.gateway.shown
	}
	status := page.New(page.Config{Devices: []page.Device{shown}, Hosts: p.options.statusHosts})
	mux := http.NewServeMux()
	mux.Handle("GET /readyz", h)
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{}))
	mux.Handle("GET /", status)
	srv := statusServer(status.Guard(mux), statusTimeout)
	go srv.Serve(l)
	p.say("serving a status page, /metrics and /readyz on http://%v/", l.Addr())
	return srv, nil
}
