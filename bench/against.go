package main

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A contest compares this checkout with another one. It takes samples in pairs: the bench of each checkout executes the same
// order with its own library. The checkout that goes first alternates from pair to pair.
type contest struct{ ours, theirs *runner }

// otherProgram builds the bench of the checkout at dir into folder. It returns the program's path, and the revision of the
// checkout.
func otherProgram(dir, folder string) (path, revision string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", "", err
	}
	path = filepath.Join(folder, "bench")
	if err := goBuild(dir, path, "./bench"); err != nil {
		return "", "", fmt.Errorf("-against %s: want the root of a checkout of this module: %w", dir, err)
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	revision = info.GoVersion
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value + " " + revision
		case s.Key == "vcs.modified" && s.Value == "true":
			revision += ", with local changes"
		}
	}
	return path, revision, nil
}

// runAgainst does what the flag -against dir asks for. A ratio, however bad, is not an error.
func (r *runner) runAgainst(ctx context.Context, dir string, ms []measure, asJSON bool, table, out io.Writer) error {
	folder, err := os.MkdirTemp("", "bench-against")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	path, revision, err := otherProgram(dir, folder)
	if err != nil {
		return err
	}
	theirs := &runner{rounds: r.rounds, effort: r.effort, profile: r.profile, workshop: workshop{module: dir}}
	theirs.start = func(ctx context.Context, o order) (*taking, error) { return startProgram(ctx, path, o) }
	defer theirs.close()
	c := contest{r, theirs}
	printMachine(table)
	fmt.Fprintf(table, "theirs    %s %s\nrounds    %d pairs, the first of a pair in turn; ratio = ours / theirs, the median of the pairs'\n\n", dir, revision, r.rounds)
	fmt.Fprintf(table, matchFormat, "name", "unit", "ours", "(spread)", "theirs", "(spread)", "ratio", "(spread)", "better  pairs")
	var errs []error
	for i := range ms {
		m := &ms[i]
		why := m.missing()
		var got []match
		if why == "" {
			got, err = c.run(ctx, m)
			if err != nil && strings.Contains(err.Error(), noSuchName) {
				why = "the other bench does not have this name"
			}
		}
		switch {
		case why != "":
			fmt.Fprintf(table, "%-18s left out: %s\n", m.name, why)
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			fmt.Fprintf(table, "%-18s failed\n", m.name)
			errs = append(errs, err)
			continue
		}
		printMatches(table, got)
		if !asJSON {
			continue
		}
		for _, m := range got {
			if err := json.NewEncoder(out).Encode(m.record()); err != nil {
				return err
			}
		}
	}
	return errors.Join(errs...)
}

// run takes one pair of samples of the measure m per round. It returns one match for the measure's figure, and another one for
// the processor time if the samples contain that.
func (c *contest) run(ctx context.Context, m *measure) ([]match, error) {
	rounds := c.ours.rounds
	ctx, cancel := context.WithTimeout(ctx, c.ours.timeLimit(m))
	defer cancel()
	labels := [2]string{sideOurs, "theirs"}
	var takings [2][]*taking
	failure := func(i int, t *taking) error {
		if <-t.done; t.err != nil {
			return fmt.Errorf("%s: %s: %w", m.name, labels[i], t.err)
		}
		if k := slices.IndexFunc(t.sample.Aside, func(a aside) bool { return a.Wrong }); k >= 0 {
			return fmt.Errorf("%s: %s: %v", m.name, labels[i], t.sample.Aside[k])
		}
		return nil
	}
	for round := range rounds {
		for turn := range 2 {
			i := (round + turn) % 2
			r := []*runner{c.ours, c.theirs}[i]
			t, err := r.begin(ctx, m, sideOurs, labels[i], round)
			if err != nil {
				return nil, err
			}
			select {
			case <-t.done: // if this sample failed, take no more samples
				if err := failure(i, t); err != nil {
					return nil, err
				}
			default: // the sample has not ended, but needs no more processor time
			}
			takings[i] = append(takings[i], t)
		}
	}
	var samples [2][]sample
	for i := range takings {
		for _, t := range takings[i] {
			if err := failure(i, t); err != nil {
				return nil, err
			}
			samples[i] = append(samples[i], t.sample)
		}
	}
	value := func(s sample) aside { return aside{Name: m.name, Unit: m.unit, Value: s.Value} }
	got := []match{newMatch(m.name, m.better(), samples, value)}
	if samples[0][0].cost().Value > 0 && samples[1][0].cost().Value > 0 {
		got = append(got, newMatch(m.name, "lower", samples, sample.cost))
	}
	return got, nil
}

// cost returns the processor time of a sample, per packet or per another unit that the aside names. It returns the zero aside if
// the sample has no processor time.
func (s sample) cost() aside {
	for _, a := range s.Aside {
		if a.Name == "cpu" || strings.HasPrefix(a.Name, "processor") {
			return aside{Name: "cpu", Unit: "cpu " + a.Unit, Value: a.Value}
		}
	}
	return aside{}
}

// A match compares one figure between the two checkouts.
type match struct {
	name, unit, better string
	ours, theirs       summary // median, low and high are those of the compared figure; the asides are those of the samples
	pairs              []float64
}

// newMatch compares the figures that figureOf returns for the samples of this checkout (samples[0]) and of the other one
// (samples[1]).
func newMatch(name, better string, samples [2][]sample, figureOf func(sample) aside) match {
	m := match{name: name, better: better, unit: figureOf(samples[0][0]).Unit}
	var values [2][]float64
	for i, sum := range []*summary{&m.ours, &m.theirs} {
		*sum = summarize(samples[i])
		for _, s := range samples[i] {
			values[i] = append(values[i], figureOf(s).Value)
		}
		sum.median, sum.low, sum.high = median(values[i]), slices.Min(values[i]), slices.Max(values[i])
	}
	for i := range values[0] {
		m.pairs = append(m.pairs, quotient(values[0][i], values[1][i]))
	}
	return m
}

const matchFormat = "%-18s %-14s %11s %-21s %11s %-21s %7s %-13s %s\n"

// printMatches writes one line per match of a measure, and the asides below these lines.
func printMatches(w io.Writer, ms []match) {
	paren := func(low, high float64) string { return "(" + spread(low, high) + ")" }
	for i, m := range ms {
		var pairs []string
		for _, p := range m.pairs {
			pairs = append(pairs, figure(p))
		}
		name := m.name
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(w, matchFormat, name, m.unit, figure(m.ours.median), paren(m.ours.low, m.ours.high), figure(m.theirs.median), paren(m.theirs.low, m.theirs.high),
			figure(median(m.pairs)), paren(slices.Min(m.pairs), slices.Max(m.pairs)), fmt.Sprintf("%-7s %s", m.better, strings.Join(pairs, " ")))
	}
	printAsides(w, "ours", ms[0].ours.aside)
	printAsides(w, "theirs", ms[0].theirs.aside)
}

// A matchRecord is a match in the form that -json prints.
type matchRecord struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Ours   float64   `json:"ours"`
	Theirs float64   `json:"theirs"`
	Ratio  float64   `json:"ratio"` // the median of the pairs' ratios
	Pairs  []float64 `json:"pairs"` // ours / theirs, in the order of the rounds
	Better string    `json:"better"`
}

// record returns m in the form that -json prints. An infinite ratio becomes the largest number, because JSON has no infinity.
func (m match) record() matchRecord {
	r := matchRecord{m.name, m.unit, m.ours.median, m.theirs.median, finite(median(m.pairs)), nil, m.better}
	for _, p := range m.pairs {
		r.Pairs = append(r.Pairs, finite(p))
	}
	return r
}
