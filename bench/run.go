package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"time"
)

// The sides of a round. Their samples are taken in this order.
const (
	sideOurs   = "ours"
	sideTheirs = "wireguard-go"
	sideBound  = "bound"
)

// orderEnv is the name of an environment variable. A process of bench that finds an order there takes one sample, and does
// nothing else.
const orderEnv = "WIREGUARD_BENCH_SAMPLE"

// An order asks a new process to take one sample. Each sample has its own process, so it starts with a fresh heap and the same
// warm-up, and a crash ends only one sample.
type order struct {
	Name, Side string
	Effort     effort
	Profile    string // a file for a CPU profile; empty means no profile
	Program    string // path of the side's daemon; empty means that the sample needs no daemon
	Isolated   bool   // the sample runs in its own namespaces; a sample with a daemon always does
	Round      int    // counts from 0; the seed of the random losses in the family wan
}

func (o *order) isolated() bool { return o.Isolated || o.Program != "" }

// A reply is one line of the standard output of a process that executes an order.
type reply struct {
	Resting bool    // the process needs no more processor time; the next sample may begin
	Sample  *sample // set only in the last line
}

// answer executes an order in this process and prints the sample.
func answer(text string, out *os.File) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ms, err := pick(slices.Concat(measures(), onDemand()), o.Name)
	if err != nil {
		return err
	}
	if o.isolated() {
		if err := enterIsolated(); err != nil {
			return err
		}
	}
	replies := json.NewEncoder(out)
	st := &stage{effort: o.Effort, program: o.Program, round: o.Round, rest: func() { replies.Encode(reply{Resting: true}) }}
	if o.Profile != "" {
		f, err := os.Create(o.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	s, err := st.take(&ms[0], o.Side)
	if err != nil {
		return err
	}
	return replies.Encode(reply{Sample: &s})
}

// take takes one sample of a measure for one side: sideOurs, sideTheirs or sideBound.
func (st *stage) take(m *measure, side string) (sample, error) {
	switch side {
	case sideOurs:
		st.lib = ours{}
	case sideTheirs:
		st.lib = rival{}
	case sideBound:
		return m.bound(st)
	}
	return m.run(st)
}

// A taking is a process that executes an order.
type taking struct {
	// free is closed when another sample may begin. That is when the process says that it needs no more processor time. If it
	// never says so, free is closed after done.
	free chan struct{}
	done chan struct{} // closed when sample and err are set
	sample
	err error
}

// start starts a new process of this program that executes an order.
func start(ctx context.Context, o order) (*taking, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startProgram(ctx, self, o)
}

// startProgram starts a new process that executes an order. path is the bench program that it runs.
func startProgram(ctx context.Context, path string, o order) (*taking, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), orderEnv+"="+string(text))
	if o.isolated() {
		isolate(cmd)
	}
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t := &taking{free: make(chan struct{}), done: make(chan struct{})}
	go t.follow(cmd, bufio.NewScanner(out), &trouble)
	return t, nil
}

var errNoSample = errors.New("the process ended without a sample")

// follow reads the output of the process until the process ends.
func (t *taking) follow(cmd *exec.Cmd, lines *bufio.Scanner, trouble *bytes.Buffer) {
	t.err = errNoSample
	resting := false
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			continue // a library printed this line
		}
		if r.Resting && !resting {
			resting = true
			close(t.free)
		}
		if r.Sample != nil {
			t.sample, t.err = *r.Sample, nil
		}
	}
	if err := cmd.Wait(); err != nil {
		text, _, _ := strings.Cut(strings.TrimSpace(trouble.String()), "\ngoroutine ")
		t.err = fmt.Errorf("%w: %s", err, text)
	}
	close(t.done)
	if !resting {
		close(t.free)
	}
}

// A runner starts one process per sample and alternates between the sides.
type runner struct {
	rounds  int
	effort  effort
	profile string // a folder for profiles; empty means no profiles
	start   func(context.Context, order) (*taking, error)
	workshop
}

// begin starts one sample. It returns when another sample may begin, which may be before the process of this sample ends. label
// stands for the side in the name of the profile's file.
func (r *runner) begin(ctx context.Context, m *measure, side, label string, round int) (*taking, error) {
	o := order{Name: m.name, Side: side, Effort: r.effort, Round: round, Isolated: side == sideBound && m.boundRoot}
	if m.daemons {
		var err error
		if o.Program, err = r.daemon(side); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	if r.profile != "" {
		o.Profile = filepath.Join(r.profile, fmt.Sprintf("%s.%s.%d.pprof", strings.ReplaceAll(m.name, "/", "-"), label, round+1))
	}
	t, err := r.start(ctx, o)
	if err != nil {
		return nil, err
	}
	<-t.free
	return t, nil
}

// perSample is longer than any sample takes, apart from the time that measure.spans adds.
const perSample = time.Minute

// run takes all samples of one measure. In each round it takes one sample of this library, one of wireguard-go and one of the
// bound, as far as the measure has them.
func (r *runner) run(ctx context.Context, m *measure) (row, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeLimit(m))
	defer cancel()
	sides := []string{sideOurs, sideTheirs}
	if m.single() {
		sides = sides[:1]
	}
	withoutBound := m.withoutBound()
	if m.bound != nil && withoutBound == "" {
		sides = append(sides, sideBound)
	}
	rounds := r.rounds
	if m.rounds > 0 {
		rounds = min(rounds, m.rounds)
	}
	takings := map[string][]*taking{}
	for round := range rounds {
		for _, side := range sides {
			t, err := r.begin(ctx, m, side, side, round)
			if err != nil {
				return row{}, err
			}
			takings[side] = append(takings[side], t)
		}
	}
	samples := map[string][]sample{}
	for _, side := range sides {
		for _, t := range takings[side] {
			if <-t.done; t.err != nil {
				return row{}, fmt.Errorf("%s: %s: %w", m.name, side, t.err)
			}
			samples[side] = append(samples[side], t.sample)
		}
	}
	if m.single() {
		samples[sideTheirs] = samples[sideOurs]
	}
	w := newRow(m, samples[sideOurs], samples[sideTheirs], samples[sideBound])
	w.withoutBound = withoutBound
	return w, nil
}

// timeLimit returns the longest time that all rounds of m may take together. A round has up to three samples: of this library, of
// wireguard-go, and of the bound, a limit that holds for every library (see measure.bound).
func (r *runner) timeLimit(m *measure) time.Duration {
	return time.Duration(r.rounds) * (perSample + 3*time.Duration(m.spans)*r.effort.Transfer)
}

// withoutBound returns why this host cannot measure the bound, or an empty string if it can or if there is no bound.
func (m *measure) withoutBound() string {
	if m.bound == nil || m.boundMissing == nil {
		return ""
	}
	return m.boundMissing()
}
