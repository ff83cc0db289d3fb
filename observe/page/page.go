// Package page is an http.Handler that shows devices and their peers in a browser: state and reason of each peer, throughput,
// handshakes and events, live.
//
//	status := page.New(page.Config{Devices: []page.Device{{Name: "wg0", Device: device}}})
//	go http.ListenAndServe("127.0.0.1:9090", status)
//
// The handler changes nothing and shows no secret. Whoever reaches it can read public keys, endpoints and allowed IPs, so let it
// listen on a loopback address, or put authentication in front of it. It refuses requests for host names other than localhost and
// those in Config.Hosts, so that a page of another site cannot read it by DNS rebinding.
//
// While a page is open, the handler reads the status of the peers once per second and writes the changes as JSON. With 1,000
// peers, this takes about 0.3 % of a core, or 0.5 % if all peers have traffic and a gateway (BenchmarkLook). The larger figure
// includes sending the JSON to one page. Neither figure includes events.
//
// The handler works under any path: http.Handle("/status/", http.StripPrefix("/status", status)). Beside the page it serves
// status.json, which holds what the page shows, and events, a stream of server-sent events.
package page

import (
	"bytes"
	"embed"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A Device is a wireguard.Device with the name that the page shows.
type Device struct {
	Name   string            // as in "wg0"; empty shows the device without a name
	Device *wireguard.Device // must not be nil

	// Gateway returns the counters of a gateway that serves the peers of the device. It must not block. Nil means that there is
	// no gateway, and the page shows none. With package gateway, convert what Stats returns, peer by peer:
	//
	//	all := make(map[wireguard.PublicKey]page.GatewayPeer)
	//	for peer, stats := range g.Stats() {
	//		all[peer] = page.GatewayPeer(stats)
	//	}
	Gateway func() map[wireguard.PublicKey]GatewayPeer
}

// A GatewayPeer has the counters of one peer at a gateway. It has the fields of gateway.PeerStats, so that a
// gateway.PeerStats can be converted to a GatewayPeer. The zero value is a peer that has sent nothing to the gateway.
type GatewayPeer struct {
	Flows    int    `json:"flows"`     // TCP connections and UDP sockets that the peer has now
	Opened   uint64 `json:"opened"`    // flows that were let through
	Refused  uint64 `json:"refused"`   // flows and pings that the policy or a limit refused
	Failed   uint64 `json:"failed"`    // flows and pings that failed
	Dropped  uint64 `json:"dropped"`   // UDP datagrams that were dropped
	Pings    uint64 `json:"pings"`     // pings that were answered
	FromPeer uint64 `json:"from_peer"` // bytes that the peer sent to other hosts
	ToPeer   uint64 `json:"to_peer"`   // bytes that other hosts sent to the peer
}

// A Config says what a Handler shows. Only Devices must be set.
type Config struct {
	Devices []Device // in the order in which they are shown

	// Hosts are the host names, without port, under which a browser may reach the handler. The name localhost and IP
	// addresses are always allowed, since no other site can have them.
	Hosts []string
	// Name returns a name for a peer, or "" if it has none. Nil means that peers have no names. It must not block.
	Name func(wireguard.PublicKey) string
	// Addresses has the meaning of observe.Explainer.Addresses. It is called for the peers of all devices. Nil means that no
	// names of endpoints are known.
	Addresses func(wireguard.PublicKey) []netip.AddrPort
	// Interval is the time between two readings of the devices' status while a page is open. Zero means 1 s. All pages share a
	// reading.
	Interval time.Duration
	// Viewers is how many pages may be open at once. Further pages are refused with status 503. Zero means 32.
	Viewers int
}

// A Handler is an http.Handler. New makes it. While no page is open it has no goroutine, no subscription and no timer. Any
// goroutine may call its methods.
type Handler struct {
	config Config
	hub    hub
}

// New returns a handler for c. It copies c's slices.
func New(c Config) *Handler {
	c.Devices, c.Hosts = slices.Clone(c.Devices), slices.Clone(c.Hosts)
	if c.Interval <= 0 {
		c.Interval = time.Second
	}
	if c.Viewers <= 0 {
		c.Viewers = defaultViewers
	}
	h := &Handler{config: c}
	h.hub.init(&h.config)
	return h
}

// Close ends the streams of all open pages, and refuses further streams. http.Server.Shutdown waits for open requests, so pass
// Close to http.Server.RegisterOnShutdown.
func (h *Handler) Close() { h.hub.close() }

//go:embed page.html page.css page.js icon.svg
var assets embed.FS

// policy lets the page load its own files and connect to its own streams, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ServeHTTP serves the page, its files, status.json and the stream of events.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	for _, line := range [][2]string{
		{"Content-Security-Policy", policy}, {"X-Content-Type-Options", "nosniff"}, {"X-Frame-Options", "DENY"}, {"Referrer-Policy", "no-referrer"},
		{"Cross-Origin-Resource-Policy", "same-origin"}, {"Cross-Origin-Opener-Policy", "same-origin"}, {"Cache-Control", "no-store"},
	} {
		head.Set(line[0], line[1])
	}
	if !h.allowedHost(r.Host) {
		refuseHost(w)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		head.Set("Allow", "GET, HEAD")
		http.Error(w, "this page only reads; use GET", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	// A link on another site may open the page, but scripts of that site may read nothing. Browsers say in Sec-Fetch-Site
	// whether another site makes a request.
	if site := r.Header.Get("Sec-Fetch-Site"); name != "" && (site == "cross-site" || site == "same-site") {
		http.Error(w, "another site's page may not read this", http.StatusForbidden)
		return
	}
	switch name {
	case "":
		h.asset(w, r, "page.html", "text/html; charset=utf-8")
	case "page.css":
		h.asset(w, r, name, "text/css; charset=utf-8")
	case "page.js":
		h.asset(w, r, name, "text/javascript; charset=utf-8")
	case "icon.svg":
		h.asset(w, r, name, "image/svg+xml")
	case "status.json":
		h.status(w, r)
	case "events":
		h.events(w, r)
	default:
		http.NotFound(w, r)
	}
}

// Guard returns a handler that refuses the host names that h refuses, and passes other requests on to next. Use it for handlers
// beside the page that need the same protection from DNS rebinding, such as /metrics. Guard also passes on requests without a
// host name, which some health checkers send, because browsers always send one.
func (h *Handler) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "" && !h.allowedHost(r.Host) {
			refuseHost(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func refuseHost(w http.ResponseWriter) {
	http.Error(w, "this host name is not allowed; use the IP address, or add the name to Config.Hosts of package page (wgproxy: -status-host NAME)", http.StatusMisdirectedRequest)
}

// allowedHost reports whether host is safe from DNS rebinding. Attackers can make the names that they own resolve to this
// server's address. They cannot do that with an IP address, or with a name that somebody else owns.
func (h *Handler) allowedHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	return slices.ContainsFunc(h.config.Hosts, func(allowed string) bool { return host != "" && strings.EqualFold(host, allowed) })
}

func (h *Handler) asset(w http.ResponseWriter, r *http.Request, name, kind string) {
	b, err := assets.ReadFile(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", kind)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (h *Handler) status(w http.ResponseWriter, r *http.Request) {
	b, err := json.Marshal(h.hub.status(time.Now()))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// writeTimeout is how long a write to a stream may wait for the browser. If the browser is slower, it is disconnected, and its
// page connects again.
const writeTimeout = 20 * time.Second

// events streams what the page shows: first the whole status, and then its changes.
func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	v, first, err := h.hub.join(time.Now())
	if err != nil {
		w.Header().Set("Retry-After", "10")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer h.hub.leave(v)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Connection", "close")     // otherwise the deadline of the last write would apply to the next request
	w.Header().Set("X-Accel-Buffering", "no") // tells a proxy not to buffer the stream
	out := http.NewResponseController(w)
	for b := first; ; {
		// Some ResponseWriters have no deadline. Then the server's own timeouts apply.
		_ = out.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write(b); err != nil || out.Flush() != nil {
			return
		}
		var open bool
		select {
		case b, open = <-v.news:
			if !open {
				return
			}
			v.unread.Add(-int64(len(b)))
		case <-r.Context().Done():
			return
		}
	}
}
