package main

import (
	"fmt"
	"math"
	"strings"
)

// The dimensions of the panel that shows the curve, in pixels. The panel is below the bars.
const (
	curveTitle  = 30
	curveTop    = 66
	curveHeight = 260
	curveFoot   = 52
	curveLeft   = 70
	curveRight  = 30
)

// plotCurve draws the throughput of both libraries over the packet size. The drawing begins top pixels below the picture's upper
// edge, and is curvePanel pixels high. plotCurve returns an empty string if fewer than two points were measured.
func plotCurve(rows []row, top int) string {
	var points []row
	most := 0.0
	for _, r := range rows {
		if r.sizeOf() > 0 {
			points = append(points, r)
			most = max(most, r.ours.median, r.theirs.median)
		}
	}
	if len(points) < 2 {
		return ""
	}
	step := roundStep(most / 5)
	highest := math.Ceil(most/step) * step
	from, to := math.Log2(points[0].sizeOf()), math.Log2(points[len(points)-1].sizeOf())
	x := func(size float64) float64 {
		return curveLeft + (math.Log2(size)-from)/(to-from)*(plotWidth-curveLeft-curveRight)
	}
	y := func(rate float64) float64 { return float64(top+curveTop) + (1-rate/highest)*curveHeight }

	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<text class="title" x="20" y="%d">Gbit/s over the size of packets, 1,024 in flight over a wire in memory</text>`, top+curveTitle)
	for rate := 0.0; rate <= highest+step/2; rate += step {
		p(`<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, curveLeft, plotWidth-curveRight, y(rate), y(rate))
		p(`<text class="faint" x="%d" y="%.1f" text-anchor="end">%g</text>`, curveLeft-10, y(rate)+4, rate)
	}
	for _, r := range points {
		p(`<text class="faint" x="%.1f" y="%.1f" text-anchor="middle">%g</text>`, x(r.sizeOf()), y(0)+20, r.sizeOf())
	}
	p(`<text class="faint" x="%d" y="%.1f" text-anchor="end">bytes</text>`, plotWidth-curveRight, y(0)+40)
	line := func(class, name string, of func(r *row) float64) {
		var at []string
		for i := range points {
			at = append(at, fmt.Sprintf("%.1f,%.1f", x(points[i].sizeOf()), y(of(&points[i]))))
		}
		p(`<polyline class="%s" points="%s"/>`, class, strings.Join(at, " "))
		last := &points[len(points)-1]
		p(`<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`, x(last.sizeOf()), y(of(last))-8, name)
	}
	line("ours", "this library", func(r *row) float64 { return r.ours.median })
	line("theirs", "wireguard-go", func(r *row) float64 { return r.theirs.median })
	return b.String()
}

const curvePanel = curveTop + curveHeight + curveFoot

// roundStep returns the smallest number that is at least v and is 1, 2 or 5 times a power of ten.
func roundStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, s := range []float64{1, 2, 5} {
		if s*power >= v {
			return s * power
		}
	}
	return 10 * power
}
