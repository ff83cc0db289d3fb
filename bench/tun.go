package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tunMeasures returns the measures that compare daemons: cmd/wg0 of this library, and the daemon of wireguard-go. Each sample
// uses two hosts, which are network namespaces that a veth pair connects. Each host runs one daemon:
//
//	iperf3, ping ─▶ wg1 10.77.0.1 ─▶ daemon ─▶ v0 ══════ v0 ─▶ daemon ─▶ wg2 10.77.0.2 ─▶ iperf3
func tunMeasures() []measure {
	return []measure{
		{name: "tun/tcp1", unit: "Gbit/s", run: runTunTCP(1), daemons: true},
		{name: "tun/tcp4", unit: "Gbit/s", run: runTunTCP(4), daemons: true},
		{name: "tun/udp", unit: "Gbit/s", run: runTunUDP, daemons: true, rounds: 3},
		{name: "tun/rtt", unit: "µs", lower: true, run: runTunRTT, daemons: true},
		{name: "tun/memory", unit: "MiB resident", lower: true, run: runTunMemory, daemons: true},
	}
}

// missing returns why this machine cannot run the measure, or an empty string if it can.
func (m *measure) missing() string {
	if !m.daemons {
		return ""
	}
	return missingForDaemons()
}

// A workshop builds each daemon when it is first needed.
type workshop struct {
	module string // the folder in which the workshop runs go build; empty means the current folder
	dir    string
	built  map[string]string // maps a side to the path of its daemon
}

// sources are the main packages of the daemons. The workshop builds the first one that exists in the module.
var sources = map[string][]string{
	sideOurs:   {"github.com/seed-86b749af/wireguard/cmd/wg0", "github.com/seed-86b749af/wireguard/examples/wg0"},
	sideTheirs: {"golang.zx2c4.com/wireguard"},
}

// daemon returns the path of a side's daemon.
func (w *workshop) daemon(side string) (string, error) {
	if path, ok := w.built[side]; ok {
		return path, nil
	}
	if w.dir == "" {
		dir, err := os.MkdirTemp("", "bench-daemons")
		if err != nil {
			return "", err
		}
		w.dir, w.built = dir, map[string]string{}
	}
	path := filepath.Join(w.dir, side)
	var errs []error
	for _, source := range sources[side] {
		err := goBuild(w.module, path, source)
		if err == nil {
			w.built[side] = path
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("%w; run bench inside its module", errors.Join(errs...))
}

// goBuild runs go build in folder. It builds the main package source into the file path. An empty folder means the current one.
func goBuild(folder, path, source string) error {
	cmd := exec.Command("go", "build", "-o", path, source)
	cmd.Dir = folder
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", source, err, out)
	}
	return nil
}

// close removes the built daemons.
func (w *workshop) close() {
	if w.dir != "" {
		os.RemoveAll(w.dir)
	}
}

// highest searches for the highest rate at which few packets are lost. The function try sends at a rate. It returns the rate that
// the sender really reached (reached), and whether few packets were lost (held). highest doubles the rate, beginning with low,
// until held is false. Then it bisects steps times. It returns an error if held is false at every rate.
func highest(low float64, steps int, try func(rate float64) (reached float64, held bool, err error)) (float64, error) {
	best, good, bad := 0.0, 0.0, 0.0
	for rate := low; ; {
		reached, held, err := try(rate)
		switch {
		case err != nil:
			return 0, err
		case held:
			best, good = max(best, reached), rate
		default:
			bad = rate
		}
		switch {
		case bad == 0 && reached < 0.8*rate: // the sender cannot send faster
			return best, nil
		case bad == 0:
			rate *= 2
		case steps == 0 && best > 0:
			return best, nil
		case bad < low/64:
			return 0, fmt.Errorf("too many packets are lost at each rate that was tried; the lowest one is %g", bad)
		default:
			steps = max(0, steps-1)
			rate = (good + bad) / 2
		}
	}
}

// roundTrips returns the round trips in the output of ping(8), in µs.
func roundTrips(out string) (times []float64) {
	for line := range strings.Lines(out) {
		_, text, ok := strings.Cut(line, " time=")
		var ms float64
		if _, err := fmt.Sscanf(text, "%f ms", &ms); ok && err == nil {
			times = append(times, ms*1000)
		}
	}
	return slices.Clip(times)
}
