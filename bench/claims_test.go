package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const claimsText = "text\n| | ours | wireguard-go | ratio | spread | claimed |\n|---|---|---|---|---|---|\n" +
	"| `a/more`, packets | 4 | 2 | 2.0 | 1 to 3 | 2 |\n" +
	"| `a/less` | 1 µs | 4 µs | 0.25 | | 0.25 |\n" +
	"| `a/unclaimed` | 1 | 1 | 1 | | |\n" +
	"| goroutines, `x/y` | 3, 0 | 13, 2 | | | |\n"

func TestClaims(t *testing.T) {
	got, err := claims(claimsText)
	if err != nil || len(got) != 2 || got["a/more"] != 2 || got["a/less"] != 0.25 {
		t.Errorf("claims are %v, %v; want 2 of a/more and 0.25 of a/less", got, err)
	}
	if _, err := claims("nothing"); err == nil {
		t.Error("claims returns no error for a text without claims")
	}
}

// TestClaimsInDoubt checks that claims returns an error for a row that it cannot read, so that no claim remains unchecked.
func TestClaimsInDoubt(t *testing.T) {
	const head = "| | ours | wireguard-go | ratio | spread | claimed |\n|---|---|---|---|---|---|\n"
	for _, c := range []struct{ row, want string }{
		{"| `a/2000-memory`, MiB | 1 | 2 | 0.5 | | 0.5 |", ""},
		{"| `a/500m-50ms-0.1` | 1 | 2 | 0.5 | | 0.5 |", ""},
		{"| a/more | 1 | 2 | 0.5 | | 0.5 |", "must begin with a name in backquotes"},
		{"| like `a/more` | 1 | 2 | 0.5 | | 0.5 |", "must begin with a name in backquotes"},
		{"| `a/more` like `a/less` | 1 | 2 | 0.5 | | 0.5 |", ""},
		{"| `a` | 1 | 2 | 0.5 | | 0.5 |", "must begin with a name"},
		{"| `a/more` | 1 | 2 | 0.5 | | 2 x |", `the claimed ratio "2 x" is not a number above 0`},
		{"| `a/more` | 1 | 2 | 0.5 | | 0 |", `the claimed ratio "0" is not a number above 0`},
		{"| `a/more` | 1 | 2 | 0.5 | 0.5 |", "want six columns"},
		{"| `a/more` | 1 | 2 | 0.5 | | 0.5 | |", "want six columns"},
		{"| `a/sure` | 1 | 2 | 0.5 | | 3 |", "a/sure has two claims"},
	} {
		_, err := claims("# A text\n\n" + head + "| `a/sure` | 1 | 2 | 0.5 | | 0.5 |\n" + c.row + "\n")
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v, want no error", c.row, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: the error is %v, want %q", c.row, err, c.want)
		}
	}
}

// TestReadmeClaims checks that claims finds the rows of the README, and that bench has a measure for each of their names.
func TestReadmeClaims(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	got, err := claims(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"netstack/tcp1", "pipeline/1420", "many/200", "memory/netstack", "peers/add", "tun/tcp4", "tun/udp", "tun/rtt"} {
		if got[want] == 0 {
			t.Errorf("the README claims no ratio for %s", want)
		}
	}
	for name := range got {
		if ms, err := pick(measures(), name); err != nil || len(ms) != 1 {
			t.Errorf("the README claims a ratio for %s, which is not the name of a measure: %v", name, err)
		}
	}
}

func TestCheckClaims(t *testing.T) {
	file := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte(claimsText), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		more, less float64 // measured ratios
		bad        int     // number of tries that fail before a try succeeds
		want       string  // part of the error; empty means no error
	}{
		{"as claimed", 2, 0.25, 0, ""},
		{"just half as good", 1, 0.5, 0, ""},
		{"too few", 0.99, 0.25, 0, "a/more: the ratio 0.99 is not half as good as 2"},
		{"too much", 2, 0.51, 0, "a/less: the ratio 0.51 is not half as good as 0.25"},
		{"the third try counts", 2, 0.25, 2, ""},
		{"three failures", 2, 0.25, 3, "no luck"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := map[string]int{}
			r := runner{start: func(_ context.Context, o order) (*taking, error) {
				if o.Side == sideTheirs {
					return ended(sample{Value: 1}, nil), nil
				}
				if bad[o.Name]++; bad[o.Name] <= c.bad {
					return ended(sample{}, errors.New("no luck")), nil
				}
				return ended(sample{Value: map[string]float64{"a/more": c.more, "a/less": c.less}[o.Name]}, nil), nil
			}}
			err := r.checkClaims(t.Context(), file, []measure{{name: "a/more"}, {name: "a/less", lower: true}, {name: "a/unclaimed"}}, new(bytes.Buffer))
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("checkClaims returns the error %v, want %q", err, c.want)
			}
		})
	}
	r := runner{}
	if err := r.checkClaims(t.Context(), file, nil, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "a/more") {
		t.Errorf("a claim for a name that is not measured: %v, want an error with that name", err)
	}
}
