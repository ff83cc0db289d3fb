package main

import (
	"math"
	"slices"
)

// A summary condenses the samples of one side.
type summary struct {
	median, low, high float64
	aside             []aside // medians, in the order of the samples' asides; an aside is Wrong if it is Wrong in any sample
	n                 int
	values            []float64 // in the order of the rounds
}

// worst returns the worst sample.
func (s *summary) worst(lower bool) float64 {
	if lower {
		return s.high
	}
	return s.low
}

// median returns the middle of vs, or the mean of the two middle values. It returns NaN if vs is empty. It does not change vs.
func median(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(vs))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// summarize condenses samples, of which it needs at least one.
func summarize(samples []sample) summary {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = s.Value
	}
	sum := summary{median: median(values), low: slices.Min(values), high: slices.Max(values), n: len(samples), values: slices.Clone(values)}
	for i, a := range samples[0].Aside {
		values, worst := values[:0], 0.0
		for _, s := range samples {
			b := s.Aside[i]
			values = append(values, b.Value)
			if b.Wrong {
				a.Wrong, worst = true, max(worst, math.Abs(b.Value))
			}
		}
		if a.Value = median(values); a.Wrong {
			a.Value = worst
		}
		sum.aside = append(sum.aside, a)
	}
	return sum
}

// A row is the result of one measure.
type row struct {
	*measure
	ours, theirs summary
	bound        *summary
	withoutBound string // why the field bound is nil although the measure has a bound

	// ratio is the median of ours divided by the median of theirs. low and high are the lowest and the highest ratio of a single
	// round.
	ratio, low, high float64
}

// newRow compares the samples of both sides. Samples with the same index belong to the same round.
func newRow(m *measure, ours, theirs, bound []sample) row {
	r := row{measure: m, ours: summarize(ours), theirs: summarize(theirs)}
	r.ratio = quotient(r.ours.median, r.theirs.median)
	r.low, r.high = math.Inf(1), math.Inf(-1)
	for i := range ours {
		q := quotient(ours[i].Value, theirs[i].Value)
		r.low, r.high = min(r.low, q), max(r.high, q)
	}
	if len(bound) > 0 {
		s := summarize(bound)
		r.bound = &s
	}
	return r
}

// quotient returns a / b, or 1 if both are zero.
func quotient(a, b float64) float64 {
	if a == b {
		return 1
	}
	return a / b
}

// wrong reports whether a figure that must be zero is not zero.
func (r *row) wrong() bool {
	bad := func(a aside) bool { return a.Wrong }
	return slices.ContainsFunc(r.ours.aside, bad) || slices.ContainsFunc(r.theirs.aside, bad)
}
