package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
)

// wanRows returns two rows of the family wan: one with all three sides, and one without the kernel's TCP.
func wanRows(t *testing.T) []row {
	t.Helper()
	ms, err := pick(wanMeasures(), "wan/500m-50ms-1,wan/upload-ping")
	if err != nil {
		t.Fatal(err)
	}
	of := func(upload float64, values ...float64) (ss []sample) {
		for _, v := range values {
			ss = append(ss, sample{v, []aside{{Name: "upload", Unit: "Mbit/s", Value: upload}}})
		}
		return ss
	}
	return []row{
		newRow(&ms[0], of(0, 3, 4, 2), of(0, 400, 300, 500), of(0, 2.5, 2.6, 2.4)),
		newRow(&ms[1], of(45, 60, 70, 50), of(20, 228, 230, 220), nil),
	}
}

func TestWanTable(t *testing.T) {
	table := wanTable(wanRows(t))
	for _, want := range []string{
		"| `wan/500m-50ms-1`: 500 Mbit/s, 50 ms, queue 50 ms, loss 1 % | 3 (2) Mbit/s | 400 (300) Mbit/s | 2.50 (2.40) Mbit/s |\n",
		"| `wan/upload-ping`: 50 Mbit/s, 30 ms, queue 250 ms | 60 (70) ms | 228 (230) ms | not measured |\n",
		"| … upload meanwhile | 45 Mbit/s | 20 Mbit/s | not measured |\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
}

// TestPlotWan checks that the picture is well-formed XML, has a bar for each side that was measured, and has no element outside
// its frame.
func TestPlotWan(t *testing.T) {
	rs := wanRows(t)
	if !onlyWan(rs) || onlyWan(append(rows(), rs...)) || onlyWan(nil) {
		t.Error("onlyWan does not tell rows of the family wan from others")
	}
	bars := map[string]int{}
	d := xml.NewDecoder(strings.NewReader(plotWan(rs)))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		at, class := map[string]float64{}, ""
		for _, a := range e.Attr {
			at[a.Name.Local], _ = strconv.ParseFloat(a.Value, 64)
			if a.Name.Local == "class" {
				class = a.Value
			}
		}
		if at["x"] < 0 || at["x"]+at["width"] > plotWidth || at["x1"] < 0 || at["x2"] > plotWidth {
			t.Errorf("an element is outside the frame: %v", e)
		}
		if e.Name.Local == "rect" && at["height"] == wanBar-1 {
			bars[class]++
		}
	}
	if bars["good"] != 2 || bars["rival"] != 2 || bars["kernel"] != 1 {
		t.Errorf("the bars are %v, want 2 of each library and 1 of the kernel", bars)
	}
}
