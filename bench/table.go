package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// figure formats v with about four digits and with commas between thousands.
func figure(v float64) string {
	a := math.Abs(v)
	switch {
	case math.IsInf(v, 0) || math.IsNaN(v):
		return "-"
	case a >= 1000:
		s := strconv.FormatFloat(a, 'f', 0, 64)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		if v < 0 {
			s = "-" + s
		}
		return s
	case a >= 100 || a == math.Trunc(a):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

func spread(low, high float64) string { return figure(low) + "–" + figure(high) }

const rowFormat = "%-18s %-14s %11s %-21s %12s %-21s %7s  %s\n"

func printHead(w io.Writer) {
	fmt.Fprintf(w, rowFormat, "name", "unit", "ours", "(spread)", "wireguard-go", "(spread)", "ratio", "(spread)  better")
}

// printRow writes the row and, below it, lines with the figures that explain the row.
func printRow(w io.Writer, r row) {
	paren := func(low, high float64) string { return "(" + spread(low, high) + ")" }
	if r.single() {
		other := "the same"
		if r.alone {
			other = "-"
		}
		fmt.Fprintf(w, rowFormat, r.name, r.unit, figure(r.ours.median), paren(r.ours.low, r.ours.high), other, "", "", "")
	} else {
		fmt.Fprintf(w, rowFormat, r.name, r.unit,
			figure(r.ours.median), paren(r.ours.low, r.ours.high), figure(r.theirs.median), paren(r.theirs.low, r.theirs.high),
			figure(r.ratio), paren(r.low, r.high)+"  "+r.better())
	}
	printAsides(w, "ours", r.ours.aside)
	if !r.single() {
		printAsides(w, "wireguard-go", r.theirs.aside)
	}
	if r.ours.n == r.rounds {
		fmt.Fprintf(w, "  medians of %d rounds, because more would take longer than a minute\n", r.rounds)
	}
	for i, a := range r.ours.aside {
		if a.Apart {
			b := r.theirs.aside[i]
			fmt.Fprintf(w, "  %s: ours %s, wireguard-go %s %s, ratio %s\n", a.Name,
				figure(a.Value), figure(b.Value), a.Unit, figure(quotient(a.Value, b.Value)))
		}
	}
	if r.spans > 0 {
		printWorst(w, &r)
	}
	if r.withoutBound != "" {
		fmt.Fprintf(w, "  %s: left out: %s\n", r.boundName, r.withoutBound)
	}
	if b := r.bound; b != nil {
		printAsides(w, r.boundName, b.aside)
		fmt.Fprintf(w, "  %s: %s %s (%s); ours is %.2f of it, wireguard-go %.2f\n", r.boundName,
			figure(b.median), r.unit, spread(b.low, b.high), r.ours.median/b.median, r.theirs.median/b.median)
	}
}

// printWorst writes the worst sample of each side, and all samples in the order of the rounds.
func printWorst(w io.Writer, r *row) {
	sides := []struct {
		name string
		*summary
	}{{"ours", &r.ours}, {"wireguard-go", &r.theirs}, {r.boundName, r.bound}}
	for _, s := range sides {
		if s.summary == nil {
			continue
		}
		var all []string
		for _, v := range s.values {
			all = append(all, figure(v))
		}
		fmt.Fprintf(w, "  %s: median %s, worst %s %s; all %s\n", s.name, figure(s.median), figure(s.worst(r.lower)), r.unit, strings.Join(all, " "))
	}
}

// printAsides writes the asides of one side as one line below a row. It writes nothing if there are none.
func printAsides(w io.Writer, who string, as []aside) {
	if len(as) == 0 {
		return
	}
	var parts []string
	for _, a := range as {
		if !a.Apart {
			parts = append(parts, a.String())
		}
	}
	fmt.Fprintf(w, "  %-13s %s\n", who, strings.Join(parts, ", "))
}

// String returns the aside's name, value and unit, and a warning if the value must be 0 and is not.
func (a aside) String() string {
	s := strings.TrimSpace(a.Name + " " + figure(a.Value) + " " + a.Unit)
	if a.Wrong {
		s += " (MUST BE 0)"
	}
	return s
}

// A record is a row in the form that -json prints.
type record struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Ours   float64 `json:"ours"`
	Theirs float64 `json:"wireguard-go"`
	Ratio  float64 `json:"ratio"` // ours / wireguard-go
	Better string  `json:"better"`
}

// finite returns v, or the largest number if v is infinite, because JSON cannot express infinity.
func finite(v float64) float64 { return min(v, math.MaxFloat64) }

// printJSON writes the row as one line.
func printJSON(w io.Writer, r row) error {
	return json.NewEncoder(w).Encode(record{r.name, r.unit, r.ours.median, r.theirs.median, finite(r.ratio), r.better()})
}
