// Package prom is a Prometheus collector for a [wireguard.Device].
//
//	registry.MustRegister(prom.New(device, prom.Config{Interface: "wg0"}))
//	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
//
// Names and labels are those of the exporters for the kernel's WireGuard module, so that their dashboards work:
// wireguard_sent_bytes_total, wireguard_received_bytes_total and wireguard_latest_handshake_seconds, labelled by interface
// and public_key.
package prom

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-86b749af/wireguard"
)

// A Config says what a Collector shows. The zero value shows peers by public key alone.
type Config struct {
	// Interface is the value of the label "interface". It tells the devices of one registry apart. Empty leaves the label out.
	Interface string
	// Endpoint says whether a peer's series also have a label with its endpoint. If they do, new series begin and the old ones
	// end whenever the peer roams. False leaves the label out.
	Endpoint bool
	// DeviceOnly says whether to leave out the series of single peers. It is for devices with more peers than the Prometheus
	// server can store. False includes the series.
	DeviceOnly bool
}

// A Collector is a prometheus.Collector of one device. New makes it. It starts no goroutine: each scrape reads the device's
// status. Any goroutine may call its methods.
type Collector struct {
	device *wireguard.Device
	config Config

	// The series that each peer has.
	sentBytes, receivedBytes, sentPackets, receivedPackets *prometheus.Desc
	handshake, heard, session, attempts, peerDrops         *prometheus.Desc
	// The series of the device as a whole.
	up, peers, drops, cookies, load, ecn *prometheus.Desc
}

// New returns a collector of d.
func New(d *wireguard.Device, c Config) *Collector {
	labels := prometheus.Labels{}
	if c.Interface != "" {
		labels["interface"] = strings.ToValidUTF8(c.Interface, "?")
	}
	peer := []string{"public_key"}
	if c.Endpoint {
		peer = append(peer, "endpoint")
	}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("wireguard_"+name, help, variable, labels)
	}
	return &Collector{
		device: d, config: c,

		sentBytes:       desc("sent_bytes_total", "Bytes of messages sent to the peer, without UDP and IP headers.", peer...),
		receivedBytes:   desc("received_bytes_total", "Bytes of authentic messages received from the peer, without UDP and IP headers.", peer...),
		sentPackets:     desc("sent_packets_total", "Packets of the tunnel sent to the peer, without keepalives.", peer...),
		receivedPackets: desc("received_packets_total", "Packets of the tunnel received from the peer, without keepalives.", peer...),
		handshake:       desc("latest_handshake_seconds", "Unix time at which the newest session was confirmed. 0 means never.", peer...),
		heard:           desc("latest_received_seconds", "Unix time at which the last authentic message arrived. 0 means never.", peer...),
		session:         desc("session", "Whether packets can be sent to the peer without a handshake.", peer...),
		attempts:        desc("unanswered_initiations", "Initiations sent since the peer was last heard.", peer...),
		peerDrops:       desc("peer_drops_total", "Packets and messages of the peer that were dropped, by reason.", append(peer[:len(peer):len(peer)], "reason")...),

		up:      desc("up", "Whether the device is up."),
		peers:   desc("peers", "Peers that the device has."),
		drops:   desc("drops_total", "Packets and messages that the device dropped, by reason, those of peers included.", "reason"),
		cookies: desc("cookie_replies_total", "Cookie replies that the device sent."),
		load:    desc("under_load", "Whether the device asks for cookies now."),
		ecn:     desc("ecn_mismatches_total", "Packets delivered whose congestion mark had no place in the inner packet."),
	}
}

// Describe sends the descriptors of all series.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.peers, c.drops, c.cookies, c.load, c.ecn} {
		out <- d
	}
	if c.config.DeviceOnly {
		return
	}
	for _, d := range []*prometheus.Desc{
		c.sentBytes, c.receivedBytes, c.sentPackets, c.receivedPackets, c.handshake, c.heard, c.session, c.attempts, c.peerDrops,
	} {
		out <- d
	}
}

// Collect reads the device's status and sends all series. It leaves out a peer's drop counter while the counter is 0, and
// always sends those of the device.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := c.device.Status()
	gauge(c.up, number(s.Up))
	gauge(c.peers, float64(s.Peers))
	gauge(c.load, number(s.UnderLoad))
	counter(c.cookies, s.CookieReplies)
	counter(c.ecn, s.ECNMismatches)
	for reason, n := range s.Drops.All() {
		counter(c.drops, n, reason.String())
	}
	if c.config.DeviceOnly {
		return
	}
	for p := range c.device.Peers() {
		labels := []string{p.PublicKey.String()}
		if c.config.Endpoint {
			labels = append(labels, endpoint(p.Endpoint))
		}
		counter(c.sentBytes, p.Sent.Bytes, labels...)
		counter(c.receivedBytes, p.Received.Bytes, labels...)
		counter(c.sentPackets, p.Sent.Packets, labels...)
		counter(c.receivedPackets, p.Received.Packets, labels...)
		handshake, heard := 0.0, 0.0
		if !p.LastHandshake.IsZero() {
			handshake = float64(p.LastHandshake.Unix())
		}
		if !p.LastReceived.IsZero() {
			heard = float64(p.LastReceived.Unix())
		}
		gauge(c.handshake, handshake, labels...)
		gauge(c.heard, heard, labels...)
		gauge(c.session, number(p.Session), labels...)
		gauge(c.attempts, float64(p.Attempts), labels...)
		for reason, n := range p.Drops.All() {
			if n != 0 {
				counter(c.peerDrops, n, append(labels[:len(labels):len(labels)], reason.String())...)
			}
		}
	}
}

// endpoint returns the text of e, or "" if it is unknown.
func endpoint(e wireguard.Endpoint) string {
	if !e.IsValid() {
		return ""
	}
	return strings.ToValidUTF8(e.String(), "?") // a program names its Links, and a label must be UTF-8
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
