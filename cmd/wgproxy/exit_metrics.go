package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/observe/page"
)

// shown returns the counters for the status page.
func (x *exit) shown() map[wireguard.PublicKey]page.GatewayPeer {
	all := make(map[wireguard.PublicKey]page.GatewayPeer)
	for peer, stats := range x.Stats() {
		all[peer] = page.GatewayPeer(stats)
	}
	return all
}

// An exitCollector shows the counters of a [Gateway], by peer.
type exitCollector struct {
	gateway *exit
	series  []exitSeries
}

type exitSeries struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(gateway.PeerStats) uint64
}

func newExitCollector(x *exit) *exitCollector {
	c := &exitCollector{gateway: x}
	add := func(name, help string, kind prometheus.ValueType, value func(gateway.PeerStats) uint64) {
		desc := prometheus.NewDesc("wgproxy_gateway_"+name, help, []string{"public_key"}, nil)
		c.series = append(c.series, exitSeries{desc, kind, value})
	}
	const counter = prometheus.CounterValue
	add("flows", "TCP connections and UDP sockets that the peer has now.", prometheus.GaugeValue, func(s gateway.PeerStats) uint64 { return uint64(s.Flows) })
	add("opened_total", "Flows of the peer that were let through.", counter, func(s gateway.PeerStats) uint64 { return s.Opened })
	add("refused_total", "Flows and pings of the peer that the policy or a limit refused.", counter, func(s gateway.PeerStats) uint64 { return s.Refused })
	add("failed_total", "Flows and pings of the peer that failed to leave this host.", counter, func(s gateway.PeerStats) uint64 { return s.Failed })
	add("dropped_total", "UDP datagrams from and to the peer that were dropped.", counter, func(s gateway.PeerStats) uint64 { return s.Dropped })
	add("pings_total", "Pings of the peer that were answered.", counter, func(s gateway.PeerStats) uint64 { return s.Pings })
	add("from_peer_bytes_total", "Bytes of TCP and UDP that left for other hosts, without headers.", counter, func(s gateway.PeerStats) uint64 { return s.FromPeer })
	add("to_peer_bytes_total", "Bytes of TCP and UDP that went to the peer, without headers.", counter, func(s gateway.PeerStats) uint64 { return s.ToPeer })
	return c
}

// Describe sends the descriptors of all series.
func (c *exitCollector) Describe(out chan<- *prometheus.Desc) {
	for _, s := range c.series {
		out <- s.desc
	}
}

// Collect reads the counters.
func (c *exitCollector) Collect(out chan<- prometheus.Metric) {
	for peer, stats := range c.gateway.Stats() {
		key := peer.String()
		for _, s := range c.series {
			out <- prometheus.MustNewConstMetric(s.desc, s.kind, float64(s.value(stats)), key)
		}
	}
}
