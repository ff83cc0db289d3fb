package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The dimensions of the picture, in pixels.
const (
	plotWidth = 960
	plotLeft  = 175 // start of the axis
	plotRight = 345 // space for the values: the ratio and, plotValue pixels to the right, the two medians
	plotValue = 80
	plotTop   = 84
	plotRow   = 26
	plotBar   = 14
	plotFoot  = 40
)

// plotStyle sets a background, so that the picture looks the same on every page.
const plotStyle = `
.ground { fill: #ffffff; stroke: #d0d7de }
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.faint { fill: #59636e }
.grid { stroke: #d0d7de }
.one { stroke: #1f2328; stroke-width: 1.5 }
polyline { fill: none; stroke-width: 2.5; stroke-linejoin: round }
.ours { stroke: #1a7f4b }
.theirs { stroke: #8c959f }
.good { fill: #1a7f4b }
.bad { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117; stroke: #3d444d }
  text { fill: #f0f6fc }
  .faint { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .one { stroke: #f0f6fc }
  .good { fill: #2ea36a }
  .bad { fill: #db6d28 }
}
`

// plotFloor is the smallest ratio that the axis can show, because zero has no logarithm.
const plotFloor = 0.001

// plot returns an SVG. It draws each ratio as a bar that begins at 1 on a logarithmic axis. Below the bars, it draws the curve if
// that was measured. It omits rows that do not have two sides.
func plot(rows []row) string {
	var shown []row
	least, most := 0.5, 2.0
	for _, r := range rows {
		if !r.single() && r.sizeOf() == 0 {
			shown = append(shown, r)
			least, most = min(least, max(r.ratio, plotFloor)), max(most, min(r.ratio, 1/plotFloor))
		}
	}
	from, to := math.Floor(math.Log10(least)*2)/2, math.Ceil(math.Log10(most)*2)/2
	x := func(ratio float64) float64 {
		at := (math.Log10(min(max(ratio, plotFloor), 1/plotFloor)) - from) / (to - from)
		return plotLeft + at*(plotWidth-plotLeft-plotRight)
	}
	bottom := plotTop + plotRow*len(shown)
	height := bottom + plotFoot
	curve := plotCurve(rows, height)
	if curve != "" {
		height += curvePanel
	}

	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">`, plotWidth, height, plotWidth, height)
	p(`<title>This library / wireguard-go</title>`)
	p(`<style>%s</style>`, plotStyle)
	p(`<rect class="ground" x="0.5" y="0.5" width="%d" height="%d" rx="6"/>`, plotWidth-1, height-1)
	p(`<text class="title" x="20" y="30">This library / wireguard-go</text>`)
	p(`<rect class="good" x="20" y="42" width="12" height="12"/><text class="faint" x="38" y="53">this library is better</text>`)
	p(`<rect class="bad" x="190" y="42" width="12" height="12"/><text class="faint" x="208" y="53">wireguard-go is better</text>`)
	p(`<text class="faint" x="370" y="53">↑ higher is better, ↓ lower is better</text>`)
	for _, tick := range ticks(from, to) {
		p(`<line class="grid" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(tick), x(tick), plotTop-6, bottom)
		p(`<text class="faint" x="%.1f" y="%d" text-anchor="middle">%g</text>`, x(tick), bottom+20, tick)
	}
	for i, r := range shown {
		y := plotTop + plotRow*i
		p(`%s`, r.bar(x, y))
	}
	p(`<line class="one" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(1), x(1), plotTop-6, bottom)
	b.WriteString(curve)
	p(`</svg>`)
	return b.String()
}

// bar draws one row: its name on the left, its bar, and its values on the right.
func (r *row) bar(x func(float64) float64, y int) string {
	left, right := min(x(r.ratio), x(1)), max(x(r.ratio), x(1))
	class, arrow := "good", "↑"
	if r.lower {
		arrow = "↓"
	}
	if r.lower == (r.ratio > 1) && r.ratio != 1 {
		class = "bad"
	}
	return fmt.Sprintf(`<text x="20" y="%d">%s <tspan class="faint">%s</tspan></text>`, y+plotBar-2, html.EscapeString(r.name), arrow) +
		fmt.Sprintf(`<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"/>`, class, left, y, max(right-left, 1), plotBar) +
		fmt.Sprintf(`<text x="%d" y="%d">%s×</text>`, plotWidth-plotRight+16, y+plotBar-2, figure(r.ratio)) +
		fmt.Sprintf(`<text class="faint" x="%d" y="%d">%s / %s %s</text>`, plotWidth-plotRight+16+plotValue, y+plotBar-2,
			figure(r.ours.median), figure(r.theirs.median), html.EscapeString(r.unit))
}

// ticks returns a few round ratios for the axis. from and to are the decimal logarithms of the axis's ends.
func ticks(from, to float64) (ts []float64) {
	steps := []float64{1, 2, 5}
	if to-from > 2 {
		steps = steps[:1]
	}
	for power := math.Floor(from); power <= to; power++ {
		for _, s := range steps {
			t := s * math.Pow(10, power)
			if at := math.Log10(t); from-1e-9 <= at && at <= to+1e-9 {
				ts = append(ts, t)
			}
		}
	}
	return ts
}
