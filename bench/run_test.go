package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// small is an effort with which most samples take a few hundredths of a second.
var small = effort{
	Warm:   10 * time.Millisecond,
	Span:   30 * time.Millisecond,
	Settle: 10 * time.Millisecond,
	Echoes: 50,
	Peers:  40,
}

// ended returns a taking in the state after its process has ended with the given sample and error.
func ended(s sample, err error) *taking {
	t := &taking{free: make(chan struct{}), done: make(chan struct{}), sample: s, err: err}
	close(t.free)
	close(t.done)
	return t
}

func TestSidesTakeTurns(t *testing.T) {
	var log []string
	value := 0.0
	r := runner{rounds: 3, start: func(_ context.Context, o order) (*taking, error) {
		log = append(log, o.Side)
		value++
		return ended(sample{Value: value}, nil), nil
	}}
	got, err := r.run(t.Context(), &measure{name: "x/y"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "ours wireguard-go ours wireguard-go ours wireguard-go"; strings.Join(log, " ") != want {
		t.Errorf("the samples were taken in the order %v, want %s", log, want)
	}
	if got.ours.median != 3 || got.theirs.median != 4 || got.ratio != 0.75 {
		t.Errorf("the medians are %v and %v, and the ratio is %v; want 3, 4, 0.75", got.ours.median, got.theirs.median, got.ratio)
	}
	if got.low != 0.5 || got.high != 5.0/6 {
		t.Errorf("the ratios of single rounds are %v to %v, want 1/2 to 5/6", got.low, got.high)
	}
}

func TestBoundAndAlike(t *testing.T) {
	var log []string
	r := runner{rounds: 9, start: func(_ context.Context, o order) (*taking, error) {
		log = append(log, o.Side)
		return ended(sample{Value: 2}, nil), nil
	}}
	m := measure{name: "x/y", rounds: 2, alike: true, bound: func(*stage) (sample, error) { return sample{}, nil }}
	got, err := r.run(t.Context(), &m)
	if err != nil {
		t.Fatal(err)
	}
	if want := "ours bound ours bound"; strings.Join(log, " ") != want {
		t.Errorf("the samples were taken in the order %v, want %s, because the measure allows only 2 rounds", log, want)
	}
	if got.ratio != 1 || got.bound == nil || got.bound.n != 2 {
		t.Errorf("the row is %+v, want the same samples on both sides, and a bound", got)
	}
}

// TestRestingSamplesOverlap checks that the next sample begins as soon as the process of the previous one reports that it needs no
// more processor time, even if that process has not ended.
func TestRestingSamplesOverlap(t *testing.T) {
	var waiting []*taking
	r := runner{rounds: 2, start: func(context.Context, order) (*taking, error) {
		k := &taking{free: make(chan struct{}), done: make(chan struct{})}
		close(k.free)
		if waiting = append(waiting, k); len(waiting) == 4 {
			for _, k := range waiting {
				close(k.done)
			}
		}
		return k, nil
	}}
	if _, err := r.run(t.Context(), &measure{name: "x/y"}); err != nil {
		t.Fatal(err)
	}
}

func TestFailedSample(t *testing.T) {
	broken := errors.New("broken")
	r := runner{rounds: 1, start: func(_ context.Context, o order) (*taking, error) {
		if o.Side == sideTheirs {
			return ended(sample{}, broken), nil
		}
		return ended(sample{}, nil), nil
	}}
	_, err := r.run(t.Context(), &measure{name: "x/y"})
	if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "x/y: wireguard-go: ") {
		t.Errorf("the error %v does not name the measure and the side that failed", err)
	}
}

// took executes an order in a new process, and returns the sample when the process has ended.
func took(t *testing.T, o order) (sample, error) {
	t.Helper()
	k, err := start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	<-k.free
	<-k.done
	return k.sample, k.err
}

func TestProcessOfItsOwn(t *testing.T) {
	s, err := took(t, order{Name: "goroutines/device", Side: sideTheirs, Effort: small})
	if err != nil || s.Value < 1 {
		t.Errorf("the sample is %v, %v; want a number of goroutines", s, err)
	}
	if _, err := took(t, order{Name: "nonsense", Side: sideTheirs}); err == nil || !strings.Contains(err.Error(), "no such name") {
		t.Errorf("the error %v lacks the message that the process printed", err)
	}
}

// TestMeasures checks that each measure returns a plausible sample for each side.
func TestMeasures(t *testing.T) {
	var shop workshop
	defer shop.close()
	minutes := []string{"load/storm-lookup", "load/strangers"} // these measures take seconds even with a small effort
	for _, m := range slices.Concat(measures(), sendersMeasures(), receiversMeasures(), loadMeasures()) {
		if slices.Contains(minutes, m.name) {
			continue
		}
		sides := []string{sideOurs, sideTheirs}
		if m.single() {
			sides = sides[:1]
		}
		if m.bound != nil && strings.HasPrefix(m.name, "netstack/") {
			sides = append(sides, sideBound)
		}
		for _, side := range sides {
			t.Run(m.name+"/"+side, func(t *testing.T) {
				s, err := takeSmall(t, &m, side, &shop)
				if err != nil {
					t.Fatal(err)
				}
				if s.Value < 0 || (s.Value == 0 && !m.lower) {
					t.Errorf("the figure is %v %s, want more than 0, or at least 0 if a lower figure is better", s.Value, m.unit)
				}
				if i := slices.IndexFunc(s.Aside, func(a aside) bool { return a.Wrong }); i >= 0 {
					t.Errorf("a figure that must be 0 is not: %v", s.Aside[i])
				}
			})
		}
	}
}

// takeSmall takes a sample with the effort small. It uses a new process in three cases: if the measure starts daemons; if the
// figure is a difference of heap sizes, because the heap of this process shrinks when goroutines of earlier samples end; and if the
// sample has a proxy on wireguard-go's stack, because that stack panics if it is closed while connections still send. Otherwise it
// uses this process.
func takeSmall(t *testing.T, m *measure, side string, shop *workshop) (sample, error) {
	if m.unit == "bytes" || side == sideTheirs && strings.HasPrefix(m.name, "proxy/") {
		return took(t, order{Name: m.name, Side: side, Effort: small})
	}
	if !m.daemons {
		st := &stage{effort: small, rest: func() {}}
		defer st.close()
		return st.take(m, side)
	}
	if why := m.missing(); why != "" {
		t.Skip(why)
	}
	program, err := shop.daemon(side)
	if err != nil {
		return sample{}, err
	}
	return took(t, order{Name: m.name, Side: side, Effort: small, Program: program})
}

// TestLeftOut checks that bench prints a reason and does not fail if this machine cannot run a measure.
func TestLeftOut(t *testing.T) {
	m := measure{name: "x/y"}
	if why := m.missing(); why != "" {
		t.Errorf("a measure without daemons is left out: %s", why)
	}
	if runtime.GOOS == "linux" && os.Getuid() == 0 {
		t.Setenv("PATH", t.TempDir())
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-only", "tun"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, m := range tunMeasures() {
		if !regexp.MustCompile(`(?m)^` + m.name + ` +left out: needs [^\n]+$`).MatchString(out.String()) {
			t.Errorf("no line of the table says why %s is left out:\n%s", m.name, out.String())
		}
	}
}

// TestHighest checks that highest returns a rate at or slightly below the limit, and that this is the rate that the sender really
// reached.
func TestHighest(t *testing.T) {
	for _, limit := range []float64{0.3, 0.9, 1, 1.7, 5, 100} {
		got, err := highest(1, 8, func(rate float64) (float64, bool, error) { return rate, rate <= limit, nil })
		if err != nil || got > limit || got < 0.9*limit {
			t.Errorf("with a limit of %v, highest returns %v, %v; want a rate at or slightly below the limit", limit, got, err)
		}
	}
	got, err := highest(1, 8, func(rate float64) (float64, bool, error) { return min(rate, 3), true, nil })
	if err != nil || got != 3 {
		t.Errorf("for a sender that reaches at most 3, highest returns %v, %v; want 3", got, err)
	}
	if _, err := highest(1, 8, func(float64) (float64, bool, error) { return 1, false, nil }); err == nil {
		t.Error("highest returns no error although each rate loses too many packets")
	}
	broken := errors.New("broken")
	if _, err := highest(1, 8, func(float64) (float64, bool, error) { return 0, false, broken }); err != broken {
		t.Errorf("highest returns the error %v, want that of try", err)
	}
}

func TestRoundTrips(t *testing.T) {
	const out = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.214 ms\n" +
		"64 bytes from 10.0.0.2: icmp_seq=5 ttl=64 time=12 ms\n\n--- 10.0.0.2 ping statistics ---\n" +
		"20 packets transmitted, 2 received, 90% packet loss, time 71ms\nrtt min/avg/max/mdev = 0.058/0.087/0.214/0.036 ms\n"
	if got := roundTrips(out); !slices.Equal(got, []float64{214, 12000}) {
		t.Errorf("round trips are %v µs, want 214 and 12000", got)
	}
}
