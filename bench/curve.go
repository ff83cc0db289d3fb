package main

import (
	"fmt"
	"strconv"
	"strings"
)

// curveFamily returns the points of the curve of throughput over packet size. They take minutes, so bench measures them only on
// demand or for a picture.
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

// runCurve measures the bits per second that a pipeline delivers in packets of one size, with 1,024 packets in flight. If the
// packet is larger than the usual MTU, its size becomes the tunnel's MTU.
func runCurve(st *stage, size int) (sample, error) {
	ab, ba := newFlow(size, addrA, addrB), newFlow(size, addrB, addrA)
	if err := tunnel(st, newWire(st, st.lib.landings()), ab, ba); err != nil {
		return sample{}, err
	}
	s, err := ab.measure(window, st.Warm/2, st.Span/2)
	s.Value *= float64(8*size) / 1e9
	return s, err
}

// sizeOf returns the packet size of a row of the curve, or 0 for another row.
func (r *row) sizeOf() float64 {
	text, ok := strings.CutPrefix(r.name, curveFamily+"/")
	if !ok {
		return 0
	}
	n, _ := strconv.Atoi(text)
	return float64(n)
}
