package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
)

// claimTries is how often the bench tries a name that misses half of its claim, because the machine may be busy.
const claimTries = 3

// A claim is a row of a Markdown table: the name, ours, wireguard-go's, their ratio, its spread, and the claimed ratio.
var claim = regexp.MustCompile("(?m)^\\| `([a-z0-9]+/[a-z0-9]+)`[^|]*\\|[^|]*\\|[^|]*\\|[^|]*\\|[^|]*\\| *([0-9.]+) *\\|$")

// claims returns the ratios that text claims, keyed by name.
func claims(text string) (map[string]float64, error) {
	found := map[string]float64{}
	for _, m := range claim.FindAllStringSubmatch(text, -1) {
		ratio, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, fmt.Errorf("parse the ratio claimed for %s: %w", m[1], err)
		}
		found[m[1]] = ratio
	}
	if len(found) == 0 {
		return nil, errors.New("no claims: want rows with a name in backquotes in the first column and the claimed ratio in the sixth, the last one")
	}
	return found, nil
}

// checkClaims measures each name for which file claims a ratio, one round at a time. It fails if none of three tries is half as
// good as the claim.
func (r *runner) checkClaims(ctx context.Context, file string, ms []measure, out io.Writer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	claimed, err := claims(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r.rounds = 1
	var errs []error
	for i := range ms {
		m := &ms[i]
		m.bound = nil // it takes time, and no claim concerns it
		ratio, ok := claimed[m.name]
		if !ok {
			continue
		}
		delete(claimed, m.name)
		if why := m.missing(); why != "" {
			errs = append(errs, fmt.Errorf("%s cannot be measured: %s", m.name, why))
			continue
		}
		if err := r.checkClaim(ctx, m, ratio, out); err != nil {
			errs = append(errs, err)
		}
	}
	for name := range claimed {
		errs = append(errs, fmt.Errorf("%s claims a ratio for %s, but bench has no such name; correct the file", file, name))
	}
	return errors.Join(errs...)
}

func (r *runner) checkClaim(ctx context.Context, m *measure, claimed float64, out io.Writer) (err error) {
	for range claimTries {
		var w row
		if w, err = r.run(ctx, m); err != nil {
			fmt.Fprintf(out, "%-18s %v\n", m.name, err)
			continue
		}
		fmt.Fprintf(out, "%-18s ratio %s, claimed %s; %s %s is better\n", m.name, figure(w.ratio), figure(claimed), figure(w.ours.median), w.better())
		switch {
		case w.wrong():
			err = fmt.Errorf("%s: a figure that must be 0 is not 0", m.name)
			printRow(out, w)
		case m.lower && w.ratio > 2*claimed, !m.lower && w.ratio < claimed/2:
			err = fmt.Errorf("%s: the ratio %s is not half as good as %s", m.name, figure(w.ratio), figure(claimed))
		default:
			return nil
		}
	}
	return err
}
