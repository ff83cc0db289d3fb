package main

import (
	"fmt"
	"math"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/netlab"
)

func missingForDaemons() string { return netlab.Missing("go", "ip", "wg", "ping", "iperf3") }

// isolate and enterIsolated give the process of a sample its own mount, process and network namespaces. The parent calls isolate
// before it starts the process. The process itself calls enterIsolated.
func isolate(cmd *exec.Cmd) { netlab.Isolate(cmd) }
func enterIsolated() error  { return netlab.Enter() }

var tunB = netip.MustParseAddr("10.77.0.2")

// A site is one end of the tunnel: a host and the daemon on it.
type site struct {
	*netlab.Host
	*netlab.Daemon
}

// sites sets up both ends of the tunnel, and waits until a ping through the tunnel is answered.
func sites(st *stage) (a, b site, err error) {
	keys := [2]wireguard.PrivateKey{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	ends := [2]*site{&a, &b}
	for i, end := range ends {
		if end.Host, err = netlab.NewHost([]string{"a", "b"}[i]); err != nil {
			return a, b, err
		}
		st.atClose(func() { end.Close() })
	}
	if err := netlab.Join(a.Host, "v0", b.Host, "v0"); err != nil {
		return a, b, err
	}
	for i, end := range ends {
		if end.Daemon, err = end.StartDaemon(st.program, []string{"wg1", "wg2"}[i]); err != nil {
			return a, b, err
		}
		st.atClose(end.Kill)
		other := 2 - i
		for _, line := range []string{
			fmt.Sprintf("ip address add 192.0.2.%d/24 dev v0", 1+i),
			fmt.Sprintf("ip address add 10.77.0.%d/24 dev %s", 1+i, end.Interface),
			fmt.Sprintf("wg set %s listen-port 51820 private-key /dev/stdin peer %v allowed-ips 10.77.0.%d/32 endpoint 192.0.2.%d:51820",
				end.Interface, keys[1-i].Public(), other, other),
			fmt.Sprintf("ip link set up dev %s mtu %d", end.Interface, mtu),
		} {
			if _, err := end.RunWith(keys[i].Text(), line); err != nil {
				return a, b, err
			}
		}
	}
	for start := time.Now(); ; {
		_, err := a.Run("ping -n -c 1 -W 0.2 " + tunB.String())
		if err == nil || time.Since(start) > 10*time.Second {
			return a, b, err
		}
	}
}

// seconds formats a duration for iperf3 as whole seconds, at least one.
func seconds(d time.Duration) int { return max(1, int(math.Round(d.Seconds()))) }

// cpu returns the processor time of both daemons.
func cpu(a, b site) (time.Duration, error) {
	x, err := a.CPU()
	if err != nil {
		return 0, err
	}
	y, err := b.CPU()
	return x + y, err
}

// runTunTCP measures the throughput that the receiving iperf3 reports for a number of TCP connections together.
func runTunTCP(connections int) func(*stage) (sample, error) {
	return func(st *stage) (sample, error) {
		a, b, err := sites(st)
		if err != nil {
			return sample{}, err
		}
		before, err := cpu(a, b)
		if err != nil {
			return sample{}, err
		}
		during := seconds(st.Span * 3 / 2)
		r, err := a.Iperf(b.Host, tunB, fmt.Sprintf("-t %d -P %d", during, connections))
		if err != nil {
			return sample{}, err
		}
		after, err := cpu(a, b)
		return sample{r.Received.Rate / 1e9, []aside{
			{Name: "processor, both daemons", Unit: "ms/Gbit", Value: float64((after - before).Milliseconds()) / (r.Received.Bytes * 8 / 1e9)},
			{Name: "retransmissions", Value: r.Sent.Retransmits},
		}}, err
	}
}

// runTunUDP measures the highest rate at which iperf3 sends packets of 1,400 bytes with at most 1 % loss.
func runTunUDP(st *stage) (sample, error) {
	a, b, err := sites(st)
	if err != nil {
		return sample{}, err
	}
	during, tries, lost := seconds(st.Span/2), 0, 0.0
	best, err := highest(1e9, 6, func(rate float64) (float64, bool, error) {
		tries++
		r, err := a.Iperf(b.Host, tunB, fmt.Sprintf("-u -l 1372 -t %d -b %.0f", during, rate))
		if err != nil || r.Packets == 0 {
			return 0, false, err
		}
		held := r.Lost <= r.Packets/100
		if held {
			lost = 100 * r.Lost / r.Packets
		}
		return r.Sent.Rate, held, nil
	})
	return sample{best / 1e9, []aside{
		{Name: "runs of iperf3", Value: float64(tries)},
		{Name: "lost in the last accepted run", Unit: "%", Value: lost},
	}}, err
}

// runTunRTT measures the median round trip that ping reports, at 500 pings a second.
func runTunRTT(st *stage) (sample, error) {
	a, _, err := sites(st)
	if err != nil {
		return sample{}, err
	}
	out, err := a.Run(fmt.Sprintf("ping -n -c %d -i 0.002 -W 1 %v", min(st.Echoes, 1500), tunB))
	times := roundTrips(out)
	if err != nil || len(times) == 0 {
		return sample{}, fmt.Errorf("only %d pings were answered: %w", len(times), err)
	}
	slices.Sort(times)
	return sample{Value: median(times), Aside: []aside{{Name: "99th percentile", Unit: "µs", Value: times[len(times)*99/100]}}}, nil
}

// runTunMemory measures the resident memory of the larger of the two daemons half a minute after bulk runs over TCP and UDP. The
// bench requests no garbage collection.
func runTunMemory(st *stage) (sample, error) {
	a, b, err := sites(st)
	if err != nil {
		return sample{}, err
	}
	for _, options := range []string{"-P 1", "-P 4", "-R", "-u -b 1G -l 1372"} {
		if _, err := a.Iperf(b.Host, tunB, fmt.Sprintf("-t %d %s", seconds(st.Span/2), options)); err != nil {
			return sample{}, err
		}
	}
	larger := func() (float64, error) {
		x, err := a.Resident()
		if err != nil {
			return 0, err
		}
		y, err := b.Resident()
		return max(x, y) / (1 << 20), err
	}
	at, err := larger()
	if err != nil {
		return sample{}, err
	}
	st.rest()
	time.Sleep(st.Settle)
	after, err := larger()
	return sample{after, []aside{{Name: "right after the runs", Unit: "MiB", Value: at}}}, err
}
