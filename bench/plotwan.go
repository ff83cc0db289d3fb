package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The dimensions of the picture of the family wan, in pixels. Each row shows one path, with a bar per side.
const (
	wanLeft  = 320 // start of the axis
	wanRight = 140 // space for the values
	wanBar   = 12
	wanRow   = 3*wanBar + 14
)

// onlyWan reports whether there are rows, and all of them are of the family wan. For such rows, the picture and the table show the
// kernel's TCP beside both libraries.
func onlyWan(rows []row) bool {
	for _, r := range rows {
		if !strings.HasPrefix(r.name, wanFamily+"/") {
			return false
		}
	}
	return len(rows) > 0
}

// A wanSide is what one row of the family wan shows for one side: this library, wireguard-go or the kernel's TCP.
type wanSide struct {
	name, class string
	*summary    // nil if it was not measured
}

func (r *row) wanSides() []wanSide {
	return []wanSide{{"this library", "good", &r.ours}, {"wireguard-go", "rival", &r.theirs}, {"the kernel's TCP", "kernel", r.bound}}
}

// wanPath describes in words the path that the row measures.
func (r *row) wanPath() string {
	for _, c := range append(wanCells, wanUpload) {
		if wanFamily+"/"+c.name == r.name {
			s := fmt.Sprintf("%g Mbit/s, %d ms, queue %d ms", c.rate, c.trip.Milliseconds(), c.queue.Milliseconds())
			if c.loss > 0 {
				s += fmt.Sprintf(", loss %g %%", c.loss*100)
			}
			return s
		}
	}
	return ""
}

// plotWan returns an SVG with the medians of the family wan on a logarithmic axis. Each row is a group of bars.
func plotWan(rows []row) string {
	least, most := 1.0, 10.0
	for i := range rows {
		for _, s := range rows[i].wanSides() {
			if s.summary != nil && s.median > 0 {
				least, most = min(least, s.median), max(most, s.median)
			}
		}
	}
	from, to := math.Floor(math.Log10(max(least, plotFloor))), math.Ceil(math.Log10(most))
	x := func(v float64) float64 {
		return wanLeft + (math.Log10(max(v, plotFloor))-from)/(to-from)*(plotWidth-wanLeft-wanRight)
	}
	bottom := plotTop + wanRow*len(rows)
	height := bottom + plotFoot

	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">`, plotWidth, height, plotWidth, height)
	p(`<title>One TCP connection over long paths</title>`)
	p(`<style>%s.rival { fill: #8c959f }
.kernel { fill: #0969da }
</style>`, plotStyle)
	p(`<rect class="ground" x="0.5" y="0.5" width="%d" height="%d" rx="6"/>`, plotWidth-1, height-1)
	p(`<text class="title" x="20" y="30">One TCP connection over long paths</text>`)
	for i, s := range rows[0].wanSides() {
		p(`<rect class="%s" x="%d" y="42" width="12" height="12"/><text class="faint" x="%d" y="53">%s</text>`, s.class, 20+150*i, 38+150*i, s.name)
	}
	p(`<text class="faint" x="480" y="53">↑ Mbit/s, higher is better; ↓ ms, lower is better</text>`)
	for power := from; power <= to; power++ {
		v := math.Pow(10, power)
		p(`<line class="grid" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(v), x(v), plotTop-6, bottom)
		p(`<text class="faint" x="%.1f" y="%d" text-anchor="middle">%g</text>`, x(v), bottom+20, v)
	}
	for i := range rows {
		r, y := &rows[i], plotTop+wanRow*i
		arrow := "↑"
		if r.lower {
			arrow = "↓"
		}
		name := strings.TrimPrefix(r.name, wanFamily+"/")
		p(`<text x="20" y="%d">%s <tspan class="faint">%s</tspan></text>`, y+wanBar, html.EscapeString(name), arrow)
		p(`<text class="faint" x="20" y="%d">%s</text>`, y+2*wanBar+6, html.EscapeString(r.wanPath()))
		for k, s := range r.wanSides() {
			if s.summary == nil {
				continue
			}
			at := y + k*wanBar
			p(`<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/>`, s.class, wanLeft, at, max(x(s.median)-wanLeft, 1), wanBar-1)
			p(`<text class="faint" x="%.1f" y="%d">%s %s</text>`, max(x(s.median), wanLeft+1)+6, at+wanBar-2, figure(s.median), html.EscapeString(r.unit))
		}
	}
	p(`</svg>`)
	return b.String()
}

// wanTable returns the rows of the family wan as a table in Markdown: medians, and the worst samples in brackets.
func wanTable(rows []row) string {
	var b strings.Builder
	b.WriteString("| path | ours (worst) | wireguard-go (worst) | the kernel's TCP, CUBIC (worst) |\n|---|---|---|---|\n")
	for i := range rows {
		r := &rows[i]
		fmt.Fprintf(&b, "| `%s`: %s |", r.name, r.wanPath())
		for _, s := range r.wanSides() {
			if s.summary == nil {
				b.WriteString(" not measured |")
				continue
			}
			fmt.Fprintf(&b, " %s (%s) %s |", figure(s.median), figure(s.worst(r.lower)), r.unit)
		}
		b.WriteString("\n")
		for _, a := range r.ours.aside {
			if r.lower && a.Unit == "Mbit/s" {
				fmt.Fprintf(&b, "| … %s meanwhile | %s %s |", a.Name, figure(a.Value), a.Unit)
				for _, s := range r.wanSides()[1:] {
					other := " not measured |"
					if s.summary != nil {
						for _, o := range s.aside {
							if o.Name == a.Name {
								other = fmt.Sprintf(" %s %s |", figure(o.Value), o.Unit)
							}
						}
					}
					b.WriteString(other)
				}
				b.WriteString("\n")
			}
		}
	}
	return b.String()
}
