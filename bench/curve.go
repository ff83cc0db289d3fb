package main

import (
	"fmt"
	"strconv"
	"strings"
)

// curveFamily are the points of the throughput over the size of packets. They take minutes, so they are measured only
// on demand or for a picture.
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

// runCurve measures the bits of packets of one size that a pipeline delivers a second, with 1,024 packets in flight.
// The tunnel's MTU is the packet's size where that is larger than the usual one.
func runCurve(st *stage, size int) (sample, error) {
	ab, ba := newFlow(size, addrA, addrB), newFlow(size, addrB, addrA)
	if err := tunnel(st, newWire(st, st.lib.landings()), ab, ba); err != nil {
		return sample{}, err
	}
	s, err := ab.measure(window, st.Warm/2, st.Span/2)
	s.Value *= float64(8*size) / 1e9
	return s, err
}

// sizeOf is the size that a row of the curve is about, or 0.
func (r *row) sizeOf() float64 {
	text, ok := strings.CutPrefix(r.name, curveFamily+"/")
	if !ok {
		return 0
	}
	n, _ := strconv.Atoi(text)
	return float64(n)
}
