package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// wanFamily is the name of the family of measures of TCP over long paths. A sample takes 20 seconds, so bench measures the family
// only on demand.
const wanFamily = "wan"

// A wanCell is a long path. Its properties are the same in each direction.
type wanCell struct {
	name  string
	rate  float64       // in Mbit/s; counts the whole IP packets that carry the tunnel's datagrams
	trip  time.Duration // round-trip time while the queues are empty
	queue time.Duration // the time that a full queue takes to drain; packets that find it full are dropped
	loss  float64       // probability that a packet is lost
}

var wanCells = []wanCell{
	{"500m-20ms", 500, 20 * time.Millisecond, 50 * time.Millisecond, 0},
	{"500m-100ms", 500, 100 * time.Millisecond, 50 * time.Millisecond, 0},
	{"100m-100ms", 100, 100 * time.Millisecond, 100 * time.Millisecond, 0},
	{"50m-150ms", 50, 150 * time.Millisecond, 150 * time.Millisecond, 0},
	{"1g-200ms", 1000, 200 * time.Millisecond, 200 * time.Millisecond, 0},
	{"500m-50ms-0.1", 500, 50 * time.Millisecond, 50 * time.Millisecond, 0.001},
	{"500m-50ms-1", 500, 50 * time.Millisecond, 50 * time.Millisecond, 0.01},
	{"500m-200ms-0.1", 500, 200 * time.Millisecond, 50 * time.Millisecond, 0.001},
}

// wanUpload is the path of wan/upload-ping: a home with a slow uplink and a deep queue.
var wanUpload = wanCell{"upload-ping", 50, 30 * time.Millisecond, 250 * time.Millisecond, 0}

// wanUploadSpans is the duration of a sample of wan/upload-ping as a multiple of effort.Transfer. Other samples of the family
// take one effort.Transfer.
const wanUploadSpans = 3

func wanMeasures() (ms []measure) {
	for _, c := range wanCells {
		ms = append(ms, c.measure("Mbit/s", 1, runDownload))
	}
	m := wanUpload.measure("ms", wanUploadSpans, runUploadPing)
	m.lower = true
	return append(ms, m)
}

func (c wanCell) measure(unit string, spans int, run func(*stage, *wanPath) (sample, error)) measure {
	over := func(join func(*stage, wanCell) (*wanPath, error)) func(*stage) (sample, error) {
		return func(st *stage) (sample, error) {
			p, err := join(st, c)
			if err != nil {
				return sample{}, err
			}
			return run(st, p)
		}
	}
	return measure{
		name: wanFamily + "/" + c.name, unit: unit, rounds: 5, spans: spans,
		run:          over(joinByWan),
		bound:        over(joinKernels),
		boundName:    "the kernel's TCP with CUBIC",
		boundMissing: missingForKernel,
		boundRoot:    true,
	}
}

// conditions returns the path's properties as conditions of a wire, which apply to each direction.
func (c wanCell) conditions() pipe.Conditions {
	perSecond := c.rate * 1e6 / 8
	return pipe.Conditions{
		Rate:  int(perSecond),
		Queue: int(perSecond * c.queue.Seconds()),
		Delay: c.trip / 2,
		Loss:  c.loss,
	}
}

// wire makes the path. All sides of one round use the same seed for the random losses.
func (c wanCell) wire(st *stage) *pipe.Network {
	// The sockets' queues are large, so that only the path's own queue drops datagrams.
	n := pipe.NewNetwork(pipe.Config{Seed: uint64(st.round), Queue: 64 << 20})
	n.SetConditions(c.conditions())
	return n
}

// A wanPath is two TCP/IP stacks that the path of a wanCell connects.
type wanPath struct {
	*stacks
	ping func(context.Context) (time.Duration, error) // sends a ping from the stack that dials to the other one
}

// joinByWan connects two stacks with a tunnel of the measured library over the path c.
func joinByWan(st *stage, c wanCell) (*wanPath, error) {
	n := c.wire(st)
	ea, eb := n.NewEnd(), n.NewEnd()
	ka, kb := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	a, from, err := st.lib.stack(st, ka, addrA, ea)
	if err != nil {
		return nil, err
	}
	b, to, err := st.lib.stack(st, kb, addrB, eb)
	if err != nil {
		return nil, err
	}
	at := func(e *pipe.End, n node) netip.AddrPort { return e.Endpoint(n.port()).Addr }
	if err := a.plan(peer{kb.Public(), at(eb, b), netip.PrefixFrom(addrB, 32)})(); err != nil {
		return nil, err
	}
	if err := b.plan(peer{ka.Public(), at(ea, a), netip.PrefixFrom(addrA, 32)})(); err != nil {
		return nil, err
	}
	s, err := listen(st, from, to)
	if err != nil {
		return nil, err
	}
	return &wanPath{s, func(ctx context.Context) (time.Duration, error) { return from.ping(ctx, addrB) }}, nil
}

// runDownload measures the goodput of one TCP connection, on which the side that dialed reads. The measured time begins with the
// dial, so it includes the handshakes of WireGuard and TCP, and TCP's slow start.
func runDownload(st *stage, p *wanPath) (sample, error) {
	p.serve(func(c net.Conn) { _ = fill(c) })
	c0, begin := cpuTime(), time.Now()
	c, err := p.open()
	if err != nil {
		return sample{}, err
	}
	st.atClose(func() { c.Close() })
	end := begin.Add(st.Transfer)
	if err := c.SetReadDeadline(end); err != nil {
		return sample{}, err
	}
	var total, half int
	b := make([]byte, chunk)
	for {
		n, err := c.Read(b)
		total += n
		if time.Since(begin) < st.Transfer/2 {
			half = total
		}
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			break
		}
		if err != nil {
			return sample{}, fmt.Errorf("after %v: %w", time.Since(begin), err)
		}
	}
	mbit := func(n int, d time.Duration) float64 { return float64(n) * 8 / 1e6 / d.Seconds() }
	return sample{mbit(total, st.Transfer), []aside{
		{Name: "second half", Unit: "Mbit/s", Value: mbit(total-half, st.Transfer/2)},
		{Name: "cpu", Unit: "s/s", Value: (cpuTime() - c0).Seconds() / st.Transfer.Seconds()},
	}}, nil
}

// pingEvery is the time between two pings of wan/upload-ping.
const pingEvery = 100 * time.Millisecond

// runUploadPing measures the 95th percentile of the round trips of pings during an upload. A ping without an answer within 5
// seconds counts as 5 seconds.
func runUploadPing(st *stage, p *wanPath) (sample, error) {
	var received atomic.Int64
	p.serve(func(c net.Conn) { drain(c, &received) })
	during := wanUploadSpans * st.Transfer
	begin := time.Now()
	c, err := p.open()
	if err != nil {
		return sample{}, err
	}
	st.atClose(func() { c.Close() })
	go fill(c)
	trips, lost := pings(p, begin.Add(during))
	mbit := float64(received.Load()) * 8 / 1e6 / time.Since(begin).Seconds()
	if len(trips) == 0 {
		return sample{}, errors.New("no ping was sent")
	}
	slices.Sort(trips)
	return sample{trips[len(trips)*95/100], []aside{
		{Name: "upload", Unit: "Mbit/s", Value: mbit},
		{Name: "median ping", Unit: "ms", Value: trips[len(trips)/2]},
		{Name: "pings lost", Value: float64(lost)},
	}}, nil
}

// echoRequest returns an ICMPv4 echo request as large as that of ping(8). Its identifier and its sequence number are the two
// halves of number.
func echoRequest(number uint32) ([]byte, error) {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(number >> 16), Seq: int(number & 0xffff), Data: make([]byte, 56)}}
	return m.Marshal(nil)
}

// pings sends a ping every pingEvery until end. It returns the round trip of each ping in milliseconds (trips), and how many
// pings got no answer (lost). A lost ping counts as a round trip of 5 seconds.
func pings(p *wanPath, end time.Time) (trips []float64, lost int) {
	const patience = 5 * time.Second
	var mu sync.Mutex // guards trips and lost
	var all sync.WaitGroup
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for now := range tick.C {
		if now.After(end) {
			break
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			took, err := p.ping(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				took = patience
				lost++
			}
			trips = append(trips, float64(took)/1e6)
		})
	}
	all.Wait()
	return trips, lost
}
