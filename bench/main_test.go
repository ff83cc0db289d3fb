package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test binary also act as the generator or as the process that takes one sample, as bench does.
func TestMain(m *testing.M) {
	if os.Getenv(generatorEnv) != "" {
		exit(generate(os.Stdin, os.Stdout))
	}
	if o := os.Getenv(orderEnv); o != "" {
		exit(answer(o, os.Stdout))
	}
	goleak.VerifyTestMain(m)
}

func TestNames(t *testing.T) {
	want := strings.Fields(`netstack/tcp1 netstack/tcp4 netstack/rtt netstack/connect stack/2000 stack/2000-memory stack/idle pipeline/1420 pipeline/64 udp/1420 many/200 hub/100 hub/10000
		crypto/1420 crypto/64 seal/scaling memory/device memory/after memory/netstack memory/peer goroutines/device goroutines/peer peers/add proxy/socks proxy/socks-memory proxy/connect proxy/idle
		tun/tcp1 tun/tcp4 tun/udp tun/rtt tun/memory`)
	var got []string
	for _, m := range measures() {
		got = append(got, m.name)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the names of the measures are %v, want %v", got, want)
	}
}

func TestPick(t *testing.T) {
	for _, c := range []struct{ only, want string }{
		{"memory/peer", "memory/peer"},
		{"udp/1420, crypto/64", "udp/1420 crypto/64"},
		{"goroutines", "goroutines/device goroutines/peer"},
	} {
		ms, err := pick(measures(), c.only)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range ms {
			got = append(got, m.name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("-only %q picks %v, want %s", c.only, got, c.want)
		}
	}
	if ms, err := pick(measures(), ""); err != nil || len(ms) != len(measures()) {
		t.Errorf("without -only, pick returns %d measures, %v; want all", len(ms), err)
	}
}

func TestWrongUse(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-only netstack/tcp2", `-only "netstack/tcp2": there is no such name; the names are netstack/tcp1, netstack/tcp4,`},
		{"-only netstack/tcp1,", `-only "": there is no such name`},
		{"-rounds 0", "-rounds 0: want at least 1"},
		{"-transfer 0s", "-transfer 0s: want more than 0, as in 8s"},
		{"netstack/tcp1", `unexpected argument "netstack/tcp1"; write names after -only`},
		{"-bogus", "flag provided but not defined: -bogus"},
	} {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(c.args), &out, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
		if out.Len() > 0 {
			t.Errorf("%s printed %q before it failed", c.args, &out)
		}
	}
}
