// Bench measures this library and wireguard-go side by side. README.md describes how each figure is measured and what limits it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
)

const defaultRounds = 7

// measures returns the measures that run by default, in the order of the table.
func measures() []measure {
	return slices.Concat(netstackMeasures(), stackMeasures(), pipelineMeasures(), manyMeasures(), hubMeasures(), cryptoMeasures(), scalingMeasures(), memoryMeasures(), peersMeasures(),
		proxyMeasures(), tunMeasures())
}

// onDemand returns the measures that run only with -only or -goals. The family curve also runs with -plot.
func onDemand() []measure {
	return slices.Concat(curveMeasures(), sendersMeasures(), receiversMeasures(), wanMeasures(), loadMeasures(), tableMeasures(), gatewayMeasures())
}

func main() {
	if os.Getenv(generatorEnv) != "" {
		exit(generate(os.Stdin, os.Stdout))
	}
	if o := os.Getenv(orderEnv); o != "" {
		exit(answer(o, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		err = nil
	}
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run does what the command line args asks for.
func run(ctx context.Context, args []string, out, messages io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(messages)
	only := flags.String("only", "", "measure only these `names`, separated by commas; a family's name, as in memory, selects all of the family")
	rounds := flags.Int("rounds", defaultRounds, "samples per side")
	transfer := flags.Duration("transfer", fullEffort.Transfer, "the `time` that a transfer of the family wan takes; wan/upload-ping takes three times as long")
	asJSON := flags.Bool("json", false, "print one JSON object per line, and everything else to standard error")
	plotFile := flags.String("plot", "", "draw the ratios, and the throughput over the packet size, as SVG to this `file`; with -only wan, draw the medians, and print them as a table in Markdown")
	profiles := flags.String("profile", "", "write a CPU profile of each sample to this `folder`")
	claimed := flags.String("claims", "", "measure the names for which this `file`, a README, claims ratios, and fail if one is not half as good in three tries")
	goals := flags.Bool("goals", false, "measure the quick names of the family load, or those of -only, and fail if one is not half as good as its goal in three tries")
	against := flags.String("against", "", "compare with the bench of the checkout in this `folder`, in pairs, instead of with wireguard-go")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case *against != "" && (*plotFile != "" || *claimed != ""):
		return errors.New("-against compares two checkouts; leave out -plot and -claims, which compare with wireguard-go")
	case *goals && (*against != "" || *claimed != "" || *plotFile != ""):
		return errors.New("-goals measures this library alone; leave out -against, -claims and -plot")
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q; write names after -only, as in -only netstack/tcp1", flags.Arg(0))
	case *rounds < 1:
		return fmt.Errorf("-rounds %d: want at least 1", *rounds)
	case *transfer <= 0:
		return fmt.Errorf("-transfer %v: want more than 0, as in 8s", *transfer)
	}
	all := measures()
	switch {
	case *only != "" || *goals:
		all = append(all, onDemand()...)
	case *plotFile != "":
		all = append(all, curveMeasures()...)
	}
	ms, err := pick(all, *only)
	if err != nil {
		return err
	}
	if *goals && *only == "" {
		ms = slices.DeleteFunc(ms, func(m measure) bool { return !m.quick })
	}
	if *profiles != "" {
		if err := os.MkdirAll(*profiles, 0o777); err != nil {
			return err
		}
	}
	effort := fullEffort
	effort.Transfer = *transfer
	r := runner{rounds: *rounds, effort: effort, profile: *profiles, start: alone(messages, start)}
	defer r.close()
	if *goals {
		return r.checkGoals(ctx, ms, out)
	}
	if *claimed != "" {
		return r.checkClaims(ctx, *claimed, ms, out)
	}
	table := out
	if *asJSON {
		table = messages
	}
	if *against != "" {
		return r.runAgainst(ctx, *against, ms, *asJSON, table, out)
	}
	printMachine(table)
	fmt.Fprintf(table, "rounds    %d, in turn, medians; ratio = ours / wireguard-go\n\n", *rounds)
	printHead(table)
	var rows []row
	var errs []error
	for i := range ms {
		if why := ms[i].missing(); why != "" {
			fmt.Fprintf(table, "%-18s left out: %s\n", ms[i].name, why)
			continue
		}
		row, err := r.run(ctx, &ms[i])
		if err != nil {
			fmt.Fprintf(table, "%-18s failed\n", ms[i].name)
			errs = append(errs, err)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue
		}
		rows = append(rows, row)
		printRow(table, row)
		if *asJSON {
			if err := printJSON(out, row); err != nil {
				return err
			}
		}
		if row.wrong() {
			errs = append(errs, fmt.Errorf("%s: a figure that must be 0 is not 0", row.name))
		}
	}
	if *plotFile != "" {
		picture := plot
		if onlyWan(rows) {
			picture = plotWan
			fmt.Fprintf(table, "\n%s", wanTable(rows))
		}
		errs = append(errs, os.WriteFile(*plotFile, []byte(picture(rows)), 0o666))
	}
	return errors.Join(errs...)
}

// noSuchName is the error text for an unknown name. The bench of another checkout recognizes this text, so never change it.
const noSuchName = "there is no such name"

// pick selects measures as the flag -only does. The argument lists names of measures or of families, separated by commas. An
// empty argument selects all measures.
func pick(all []measure, only string) ([]measure, error) {
	if only == "" {
		return all, nil
	}
	var picked []measure
	for name := range strings.SplitSeq(only, ",") {
		name = strings.TrimSpace(name)
		n := len(picked)
		for _, m := range all {
			if m.name == name || strings.HasPrefix(m.name, name+"/") {
				picked = append(picked, m)
			}
		}
		if len(picked) == n {
			var names []string
			for _, m := range all {
				names = append(names, m.name)
			}
			return nil, fmt.Errorf("-only %q: %s; the names are %s", name, noSuchName, strings.Join(names, ", "))
		}
	}
	return picked, nil
}
