package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// claimTries is the largest number of tries of a measure. The bench stops at the first try that is at least half as good as the
// claim or the goal. There is more than one try because the machine may be busy.
const claimTries = 3

// These expressions match the parts of a table of claims in Markdown. The table's columns are the name, the figure of this
// library, that of wireguard-go, the ratio of the two, the ratio's spread, and the claimed ratio.
var (
	claimsHead = regexp.MustCompile(`^\|.*\| *claimed *\|$`)
	claimedBy  = regexp.MustCompile(`^\|([^|]*)\|[^|]*\|[^|]*\|[^|]*\|[^|]*\| *([^|]*?) *\|$`)
	claimName  = regexp.MustCompile("^ *`([^`/ ]+/[^`/ ]+)`")
)

// claims returns the ratios that text claims. The keys of the map are names of measures. claims fails on a row that it cannot
// read. A row whose last column is empty claims nothing.
func claims(text string) (map[string]float64, error) {
	found := map[string]float64{}
	inTable := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case claimsHead.MatchString(line):
			inTable = true
			continue
		case !strings.HasPrefix(line, "|"):
			inTable = false
		}
		if !inTable || strings.Trim(line, "|-: ") == "" {
			continue
		}
		if err := readClaim(line, found); err != nil {
			return nil, fmt.Errorf("row %q: %w", line, err)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no claims: want a table whose last column is headed claimed, with a name in backquotes at the beginning of the first column and the ratio in the sixth")
	}
	return found, nil
}

// readClaim adds the claim in line, which is one row of the table, to found.
func readClaim(line string, found map[string]float64) error {
	row := claimedBy.FindStringSubmatch(line)
	if row == nil {
		return errors.New("want six columns, the last of them for the claimed ratio")
	}
	if row[2] == "" {
		return nil
	}
	m := claimName.FindStringSubmatch(row[1])
	if m == nil {
		return errors.New("a row with a claimed ratio must begin with a name in backquotes, as in `netstack/tcp1`")
	}
	name := m[1]
	ratio, err := strconv.ParseFloat(row[2], 64)
	if err != nil || !(ratio > 0) {
		return fmt.Errorf("the claimed ratio %q is not a number above 0", row[2])
	}
	if found[name] != 0 {
		return fmt.Errorf("%s has two claims; remove one", name)
	}
	found[name] = ratio
	return nil
}

// checkClaims tries, up to three times, each measure for which file claims a ratio. One try is one round of samples. checkClaims
// fails if no try of a measure is at least half as good as the claim.
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
		m.bound = nil // measuring the bound takes time, and no claim concerns it
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
