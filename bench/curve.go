package main

import (
	"fmt"
	"strconv"
	"strings"
)

// curveFamily is the name of the family of measures that form the curve of throughput over packet size. They take minutes, so
// bench takes them only with -only or -plot.
const curveFamily = "curve"

var curveSizes = []int{64, 128, 256, 512, 1024, 1420, 2048, 4096, 9000, 16000, 32000, 65000}

func curveMeasures() (ms []measure) {
	for _, size := range curveSizes {
		ms = append(ms, measure{
			name:   fmt.Sprintf("%s/%d", curveFamily, size),
			unit:   "Gbit/s",
			rounds: 3,
			run:    func(st *stage) (sample, error) { return runCurve(st, size) },
		})
	}
	return ms
}

// runCurve measures the throughput of packets of one size over a wire in memory, in Gbit/s, with 1,024 packets in flight. If the
// size is larger than the usual MTU, it becomes the tunnel's MTU.
func runCurve(st *stage, size int) (sample, error) {
	ab, ba := newFlow(size, addrA, addrB), newFlow(size, addrB, addrA)
	if err := tunnel(st, newWire(st, st.lib.landings()), ab, ba); err != nil {
		return sample{}, err
	}
	s, err := ab.measure(window, st.Warm/2, st.Span/2)
	s.Value *= float64(8*size) / 1e9
	return s, err
}

// sizeOf returns the packet size in bytes if r belongs to the curve, and otherwise 0.
func (r *row) sizeOf() float64 {
	text, ok := strings.CutPrefix(r.name, curveFamily+"/")
	if !ok {
		return 0
	}
	n, _ := strconv.Atoi(text)
	return float64(n)
}
