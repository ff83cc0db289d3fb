package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// otherBench is the source of a bench that executes orders for only one name. It writes each order to a file.
const otherBench = `package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	var o struct{ Name, Side string }
	if err := json.Unmarshal([]byte(os.Getenv("` + orderEnv + `")), &o); err != nil {
		panic(err)
	}
	f, err := os.OpenFile(os.Getenv("OTHER_BENCH_LOG"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(f, o.Name, o.Side)
	f.Close()
	if o.Name != "goroutines/device" {
		fmt.Fprintln(os.Stderr, "bench: -only", o.Name+": ` + noSuchName + `; the names are goroutines/device")
		os.Exit(1)
	}
	fmt.Println("its own output")
	fmt.Println(` + "`" + `{"Resting":false,"Sample":{"Value":1000,"Aside":[{"Name":"cpu","Unit":"µs/packet","Value":2}]}}` + "`" + `)
}
`

// TestAgainst checks that runAgainst builds the bench of another checkout and runs it in pairs with this one. The other bench
// must always measure its own library.
func TestAgainst(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs go")
	}
	dir, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	t.Setenv("OTHER_BENCH_LOG", log)
	if err := os.Mkdir(filepath.Join(dir, "bench"), 0o777); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"go.mod": "module other\n", "bench/main.go": otherBench} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	var out, messages bytes.Buffer
	r := runner{rounds: 2, effort: small, start: start}
	ms, err := pick(measures(), "goroutines")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.runAgainst(t.Context(), dir, ms, true, &messages, &out); err != nil {
		t.Fatal(err)
	}
	orders, err := os.ReadFile(log)
	if want := "goroutines/device ours\ngoroutines/device ours\ngoroutines/peer ours\n"; err != nil || string(orders) != want {
		t.Errorf("orders to the other bench were %q, %v; want %q", orders, err, want)
	}
	var got matchRecord
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != "goroutines/device" || got.Theirs != 1000 || got.Ours < 1 || len(got.Pairs) != 2 || got.Ratio != got.Ours/1000 {
		t.Errorf("the record is %+v, want goroutines/device with 1000 on their side, 2 pairs and the ratio of both", got)
	}
	for _, want := range []string{"theirs    " + dir, "goroutines/peer    left out: the other bench does not have this name"} {
		if !strings.Contains(messages.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &messages)
		}
	}
	if err := r.runAgainst(t.Context(), t.TempDir(), ms, false, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "want the root of a checkout") {
		t.Errorf("with a folder that is not a checkout: %v, want an error", err)
	}
}

// pairOf makes a contest between two sides, A and B. The samples of A are those that ours returns for each round, and the samples
// of B are those that theirs returns. Each sample's side is appended to log.
func pairOf(rounds int, log *[]string, ours, theirs func(round int) (sample, error)) *contest {
	one := func(side string, f func(int) (sample, error)) *runner {
		round := 0
		return &runner{rounds: rounds, start: func(context.Context, order) (*taking, error) {
			*log = append(*log, side)
			round++
			return ended(f(round)), nil
		}}
	}
	return &contest{one("A", ours), one("B", theirs)}
}

func TestPairs(t *testing.T) {
	var log []string
	of := func(value, cpu float64) sample {
		return sample{value, []aside{{Name: "cpu", Unit: "µs/packet", Value: cpu}, mustBeZero("lost", 0)}}
	}
	c := pairOf(3, &log, func(n int) (sample, error) { return of(float64(n), 3), nil }, func(n int) (sample, error) { return of(2, float64(n)), nil })
	got, err := c.run(t.Context(), &measure{name: "x/y", unit: "packets/s"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "A B B A A B"; strings.Join(log, " ") != want {
		t.Errorf("the samples were taken in the order %v, want %s", log, want)
	}
	if len(got) != 2 {
		t.Fatalf("%d figures are compared, want 2: packets and processor time", len(got))
	}
	var b bytes.Buffer
	printMatches(&b, got)
	for _, want := range []string{
		"packets/s 2 (1–3) 2 (2–2) 1 (0.50–1.50) higher 0.50 1 1.50",
		"cpu µs/packet 3 (3–3) 2 (1–3) 1.50 (1–3) lower 3 1.50 1",
		"ours cpu 3 µs/packet, lost 0",
	} {
		if !strings.Contains(strings.Join(strings.Fields(b.String()), " "), want) {
			t.Errorf("the table lacks %q:\n%s", want, &b)
		}
	}
	c = pairOf(1, &log, func(int) (sample, error) { return sample{Value: 1}, nil }, func(int) (sample, error) { return sample{Value: 0}, nil })
	if got, err = c.run(t.Context(), &measure{name: "x/y"}); err != nil || len(got) != 1 {
		t.Fatalf("without processor time: %v, %v; want the figure alone", got, err)
	}
	if text, err := json.Marshal(got[0].record()); err != nil {
		t.Errorf("encode the record of a ratio to zero: %v, %s", err, text)
	}
}

// TestFailedPair checks that contest.run fails if a sample of either side fails, or if a figure that must be 0 is not 0.
func TestFailedPair(t *testing.T) {
	var log []string
	good := func(int) (sample, error) { return sample{Value: 1}, nil }
	broken := func(int) (sample, error) { return sample{}, errors.New("broken") }
	lossy := func(int) (sample, error) { return sample{1, []aside{mustBeZero("lost", 3)}}, nil }
	for _, c := range []struct {
		contest *contest
		want    string
	}{
		{pairOf(1, &log, broken, good), "x/y: ours: broken"},
		{pairOf(1, &log, good, broken), "x/y: theirs: broken"},
		{pairOf(1, &log, good, lossy), "x/y: theirs: lost 3 (MUST BE 0)"},
	} {
		if _, err := c.contest.run(t.Context(), &measure{name: "x/y"}); err == nil || err.Error() != c.want {
			t.Errorf("run returns the error %v, want %s", err, c.want)
		}
	}
}

// TestLock checks that takeLock waits while another process has locked the file, that it prints a message when it begins to wait,
// and that it stops waiting when its context ends.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if os.Getenv("BENCH_LOCK") != "" { // this is the other process
		if _, err := takeLock(t.Context(), os.Getenv("BENCH_LOCK"), io.Discard); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("locked\n")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	f, err := takeLock(t.Context(), path, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if free, err := tryLock(f); err != nil || !free {
		t.Fatalf("tryLock fails in the process that already has the lock: %v", err)
	}
	f.Close()

	cmd := exec.Command(os.Args[0], "-test.run=^TestLock$")
	cmd.Env = append(os.Environ(), "BENCH_LOCK="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := io.ReadFull(out, make([]byte, len("locked\n"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	said := interrupter{cancel: cancel}
	if f, err := takeLock(ctx, path, &said); !errors.Is(err, context.Canceled) || !strings.Contains(said.String(), path) {
		t.Errorf("takeLock returns %v, %v and prints %q; want context.Canceled, and the path of the file", f, err, &said)
	}
	in.Close()
	cmd.Wait()
	f, err = takeLock(t.Context(), path, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// An interrupter cancels a context on the first write.
type interrupter struct {
	bytes.Buffer
	cancel func()
}

func (i *interrupter) Write(b []byte) (int, error) {
	i.cancel()
	return i.Buffer.Write(b)
}
