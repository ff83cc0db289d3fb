package netlab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"
)

// A Report is iperf3's report of a run.
type Report struct {
	Sent, Received Transfer
	// Packets and Lost count UDP packets. They are zero for TCP.
	Packets, Lost float64
}

// A Transfer holds the counts of one side.
type Transfer struct {
	Bytes       float64
	Rate        float64 `json:"bits_per_second"`
	Retransmits float64
}

// Iperf runs iperf3 from h, with options separated by spaces, to a server that it starts on g, and returns when the client and the
// server have ended.
func (h *Host) Iperf(g *Host, to netip.Addr, options string) (Report, error) {
	log := &tail{}
	server, err := g.Start(log, nil, "iperf3", "-s", "-1", "-B", to.String(), "--forceflush")
	if err != nil {
		return Report{}, err
	}
	defer server.Kill()
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		listens, err := g.Bound("tcp", 5201)
		if err != nil {
			return Report{}, err
		}
		if listens {
			break
		}
		if time.Since(start) > patience {
			return Report{}, fmt.Errorf("%s: iperf3 does not listen: %s", g.Name, log)
		}
	}
	return h.IperfClient(to, options)
}

// IperfClient runs iperf3 from h to a server that already runs.
func (h *Host) IperfClient(to netip.Addr, options string) (Report, error) {
	out, err := h.Run(fmt.Sprintf("iperf3 -J -c %v %s", to, options))
	var r struct {
		End struct {
			Sent     Transfer `json:"sum_sent"`
			Received Transfer `json:"sum_received"`
			Sum      struct {
				Packets float64
				Lost    float64 `json:"lost_packets"`
			}
		}
		Error string
	}
	begin := max(0, bytes.IndexByte([]byte(out), '{')) // a warning may precede the JSON text
	if e := json.Unmarshal([]byte(out[begin:]), &r); err == nil && e != nil {
		err = e
	}
	if r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return Report{}, fmt.Errorf("iperf3 to %v: %w", to, err)
	}
	return Report{r.End.Sent, r.End.Received, r.End.Sum.Packets, r.End.Sum.Lost}, nil
}

// Bound reports whether a "udp" socket is bound to the port or a "tcp" socket listens on it, in either address family.
func (h *Host) Bound(network string, port int) (bool, error) {
	var tables strings.Builder
	err := h.Do(func() error {
		for _, name := range []string{network, network + "6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			tables.Write(text)
		}
		return nil
	})
	// A line is "sl: address:port remote:port state". The state of an unconnected UDP socket is 07, of a listening socket 0A.
	line := fmt.Sprintf(`(?m)^ *\d+: [0-9A-F]+:%04X [0-9A-F]+:0000 0[7A] `, port)
	return regexp.MustCompile(line).MatchString(tables.String()), err
}
