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

// tunMeasures compare daemons: ours, cmd/wg0, and wireguard-go's own. Each sample is taken on two hosts, which are
// network namespaces joined by a veth pair, with a daemon each:
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

// missing says why the measure cannot be taken on this host, or is empty.
func (m *measure) missing() string {
	if !m.daemons {
		return ""
	}
	return missingForDaemons()
}

// A workshop builds the daemons, each when it is first needed.
type workshop struct {
	module string // the folder of the module to build them from; empty: the one that this program is run in
	dir    string
	built  map[string]string // path by side
}

// sources are the main packages of the daemons: the first one that the module has is built.
var sources = map[string][]string{
	sideOurs:   {"github.com/seed-86b749af/wireguard/cmd/wg0", "github.com/seed-86b749af/wireguard/examples/wg0"},
	sideTheirs: {"golang.zx2c4.com/wireguard"},
}

// daemon is the path of a side's daemon.
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
	return "", fmt.Errorf("%w (run bench inside its module)", errors.Join(errs...))
}

// goBuild builds a main package, as seen from a folder, which may be empty for the current one.
func goBuild(folder, path, source string) error {
	cmd := exec.Command("go", "build", "-o", path, source)
	cmd.Dir = folder
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", source, err, out)
	}
	return nil
}

// close removes what was built.
func (w *workshop) close() {
	if w.dir != "" {
		os.RemoveAll(w.dir)
	}
}

// highest looks for the highest rate that holds: it doubles from low until one does not, and then halves the distance steps times.
// try returns the rate that was really reached, and whether it held. No rate that holds is an error.
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
		case bad == 0 && reached < 0.8*rate: // the sender can do no more
			return best, nil
		case bad == 0:
			rate *= 2
		case steps == 0 && best > 0:
			return best, nil
		case bad < low/64:
			return 0, fmt.Errorf("not even a rate of %g holds", bad)
		default:
			steps = max(0, steps-1)
			rate = (good + bad) / 2
		}
	}
}

// roundTrips is the times in the output of ping, in µs.
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
