package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 100}, 3.5},
		{[]float64{2, 2, 1, 2, 7}, 2},
	} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("the median of no values is a number, want NaN")
	}
	if in := []float64{3, 1, 2}; median(in) != 2 || in[0] != 3 {
		t.Error("median changed its argument")
	}
}

func TestSummarize(t *testing.T) {
	of := func(v, cpu float64, lost int64) sample {
		return sample{v, []aside{{Name: "cpu", Value: cpu}, mustBeZero("lost", lost)}}
	}
	s := summarize([]sample{of(10, 1, 0), of(30, 3, 7), of(20, 2, 0)})
	if s.median != 20 || s.low != 10 || s.high != 30 || s.n != 3 {
		t.Errorf("the summary is %+v, want median 20, low 10, high 30 and n 3", s)
	}
	if s.aside[0].Value != 2 {
		t.Errorf("the aside cpu is %v, want the median, 2", s.aside[0].Value)
	}
	if lost := s.aside[1]; !lost.Wrong || lost.Value != 7 {
		t.Errorf("the aside lost is %+v, want Wrong and 7, although only one sample has losses", lost)
	}
	r := newRow(&measure{}, []sample{of(1, 0, 0)}, []sample{of(1, 0, 1)}, nil)
	if !r.wrong() {
		t.Error("wrong returns false for a row with a loss")
	}
}

func TestQuotient(t *testing.T) {
	for _, c := range [][3]float64{{6, 3, 2}, {0, 2, 0}, {0, 0, 1}, {1, 0, math.Inf(1)}} {
		if got := quotient(c[0], c[1]); got != c[2] {
			t.Errorf("%v / %v is %v, want %v", c[0], c[1], got, c[2])
		}
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", 13: "13", 0.9584: "0.96", 3.14159: "3.14", 42.42: "42.4", 0.0123: "0.012", 128.5: "128",
		1292992.66: "1,292,993", 1000: "1,000", 999.4: "999", -1234: "-1,234", math.Inf(1): "-",
	} {
		if got := figure(v); got != want {
			t.Errorf("figure formats %v as %s, want %s", v, got, want)
		}
	}
}

// rows returns rows of every kind: one with a bound, one for which a lower figure is better, one with a figure of zero, and one
// whose samples count for both sides.
func rows() []row {
	of := func(v float64) []sample {
		return []sample{{v, []aside{{Name: "cpu", Unit: "µs", Value: 1}, {Name: "apart", Unit: "u", Value: v, Apart: true}}}}
	}
	return []row{
		newRow(&measure{name: "a/fast", unit: "packets/s", boundName: "the crypto alone"}, of(4000), of(1000), of(5000)),
		newRow(&measure{name: "a/slow", unit: "µs", lower: true}, of(3), of(2), nil),
		newRow(&measure{name: "a/none", unit: "goroutines <&>", lower: true}, of(0), of(2), nil),
		newRow(&measure{name: "a/alike", unit: "packets/s", alike: true}, of(7), of(7), nil),
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	for _, r := range rows() {
		printRow(&b, r)
	}
	for _, want := range []string{
		"a/fast", "4,000 (4,000–4,000)", "1,000 (1,000–1,000)", "4  (4–4)  higher",
		"the crypto alone: 5,000 packets/s (5,000–5,000); ours is 0.80 of it, wireguard-go 0.20",
		"apart: ours 4,000, wireguard-go 1,000 u, ratio 4", "1.50  (1.50–1.50)  lower", "the same",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &b)
		}
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	for _, r := range rows() {
		if err := printJSON(&b, r); err != nil {
			t.Fatal(err)
		}
	}
	first, _, _ := strings.Cut(b.String(), "\n")
	if want := `{"name":"a/fast","unit":"packets/s","ours":4000,"wireguard-go":1000,"ratio":4,"better":"higher"}`; first != want {
		t.Errorf("got  %s\nwant %s", first, want)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != len(rows()) {
		t.Fatalf("the output has %d lines, want one per row", len(lines))
	}
	for i, line := range lines {
		var got record
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Error(err)
		}
		if r := rows()[i]; got.Name != r.name || got.Better != r.better() || got.Ratio != r.ratio {
			t.Errorf("line %d is %+v, want the name, the direction and the ratio of its row", i, got)
		}
	}
	b.Reset()
	infinite := newRow(&measure{}, []sample{{Value: 1}}, []sample{{Value: 0}}, nil)
	if err := printJSON(&b, infinite); err != nil || !json.Valid(b.Bytes()) {
		t.Errorf("encode a row with a ratio to zero: %v, %s", err, &b)
	}
}

// TestPlot checks that the picture is well-formed XML, has a bar for each row with two sides, and has no element outside its
// frame.
func TestPlot(t *testing.T) {
	for _, rs := range [][]row{rows(), nil} {
		bars, text := 0, ""
		d := xml.NewDecoder(strings.NewReader(plot(rs)))
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			switch e := token.(type) {
			case xml.CharData:
				text += string(e)
			case xml.StartElement:
				at := map[string]float64{}
				for _, a := range e.Attr {
					at[a.Name.Local], _ = strconv.ParseFloat(a.Value, 64)
				}
				if at["x"] < 0 || at["x"]+at["width"] > plotWidth || at["x1"] < 0 || at["x2"] > plotWidth {
					t.Errorf("an element is outside the frame: %v", e)
				}
				if e.Name.Local == "rect" && at["height"] == plotBar {
					bars++
				}
			}
		}
		if want := max(len(rs)-1, 0); bars != want {
			t.Errorf("the picture has %d bars, want %d", bars, want)
		}
		if len(rs) > 0 && (!strings.Contains(text, "goroutines <&>") || !strings.Contains(text, "4×") || strings.Contains(text, "a/alike")) {
			t.Errorf("the text of the picture is %q, want a unit and a ratio of the rows with two sides, and no other row", text)
		}
	}
}

// TestPlotCurve checks that the picture of the curve has one line per library, with a point for each packet size, and no bars. If
// only one point was measured, the picture has no line.
func TestPlotCurve(t *testing.T) {
	var rs []row
	for i, m := range curveMeasures() {
		rs = append(rs, newRow(&m, []sample{{Value: float64(i + 1)}}, []sample{{Value: 1}}, nil))
	}
	svg := plot(rs)
	if strings.Contains(svg, `class="good" x="175`) || strings.Count(svg, "<polyline") != 2 {
		t.Errorf("the picture must have two lines and no bars: %s", svg)
	}
	for line := range strings.Lines(svg) {
		if _, rest, ok := strings.Cut(line, `points="`); ok {
			if n := len(strings.Fields(strings.TrimSuffix(strings.TrimSpace(rest), `"/>`))); n != len(curveSizes) {
				t.Errorf("a line of the curve has %d points, want %d", n, len(curveSizes))
			}
		}
	}
	if strings.Contains(plot(rs[:1]), "<polyline") {
		t.Error("the picture has a line although only one point was measured")
	}
}
