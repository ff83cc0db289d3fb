package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// checkGoals tries each measure of ms up to three times, for this library only. One try is one round of samples. A try succeeds if
// its figure is at least half as good as the goal, and every figure that must be 0 is 0. checkGoals fails if all three tries of a
// measure fail.
func (r *runner) checkGoals(ctx context.Context, ms []measure, out io.Writer) error {
	r.rounds = 1
	var errs []error
	for i := range ms {
		m := &ms[i]
		m.bound, m.alone = nil, true // a goal concerns this library alone
		if why := m.missing(); why != "" {
			errs = append(errs, fmt.Errorf("%s cannot be measured: %s", m.name, why))
			continue
		}
		if err := r.checkGoal(ctx, m, out); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (r *runner) checkGoal(ctx context.Context, m *measure, out io.Writer) (err error) {
	for range claimTries {
		var w row
		if w, err = r.run(ctx, m); err != nil {
			fmt.Fprintf(out, "%-18s %v\n", m.name, err)
			continue
		}
		got := w.ours.median
		fmt.Fprintf(out, "%-18s %s %s, goal %s; %s is better\n", m.name, figure(got), m.unit, figure(m.goal), w.better())
		printAsides(out, "ours", w.ours.aside)
		switch {
		case w.wrong():
			err = fmt.Errorf("%s: a figure that must be 0 is not 0", m.name)
		case m.goal != 0 && (m.lower && got > 2*m.goal || !m.lower && got < m.goal/2):
			err = fmt.Errorf("%s: %s %s is not half as good as the goal, %s", m.name, figure(got), m.unit, figure(m.goal))
		default:
			return nil
		}
	}
	return err
}
