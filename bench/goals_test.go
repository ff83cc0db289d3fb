package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

func TestCheckGoals(t *testing.T) {
	for _, c := range []struct {
		name             string
		more, less, lost float64 // measured figures
		bad              int     // number of tries that fail before a try succeeds
		want             string  // part of the error; empty means no error
	}{
		{"as wanted", 40, 5, 0, 0, ""},
		{"just half as good", 20, 10, 0, 0, ""},
		{"too few", 19.9, 5, 0, 0, "a/more: 19.9 x is not half as good as the goal, 40"},
		{"too much", 40, 10.1, 0, 0, "a/less: 10.1 ms is not half as good as the goal, 5"},
		{"one is lost", 40, 5, 1, 0, "a/lost: a figure that must be 0 is not 0"},
		{"the third try counts", 40, 5, 0, 2, ""},
		{"three failures", 40, 5, 0, 3, "no luck"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := map[string]int{}
			r := runner{start: func(_ context.Context, o order) (*taking, error) {
				if o.Side == sideTheirs {
					t.Error("a sample of the other library is taken, want none")
				}
				if bad[o.Name]++; bad[o.Name] <= c.bad {
					return ended(sample{}, errors.New("no luck")), nil
				}
				s := sample{Value: map[string]float64{"a/more": c.more, "a/less": c.less, "a/lost": c.lost}[o.Name]}
				if o.Name == "a/lost" {
					s.Aside = []aside{mustBeZero("lost", int64(c.lost))}
				}
				return ended(s, nil), nil
			}}
			err := r.checkGoals(t.Context(), []measure{
				{name: "a/more", unit: "x", goal: 40}, {name: "a/less", unit: "ms", goal: 5, lower: true}, {name: "a/lost", lower: true},
			}, new(bytes.Buffer))
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("checkGoals returns the error %v, want %q", err, c.want)
			}
		})
	}
}

// TestQuickNames checks that each quick measure belongs to the family load, and has a goal or a figure that should be low.
func TestQuickNames(t *testing.T) {
	n := 0
	for _, m := range onDemand() {
		if !m.quick {
			continue
		}
		if n++; m.goal == 0 && !m.lower || !strings.HasPrefix(m.name, "load/") {
			t.Errorf("%s is quick and has the goal %v; want the family load, and a goal or a figure that should be low", m.name, m.goal)
		}
	}
	if n < 6 {
		t.Errorf("%d measures are quick, want at least 6", n)
	}
}
