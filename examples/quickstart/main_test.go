package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The whole program, with each flag and with all of them.
func TestRun(t *testing.T) {
	for _, args := range []string{"", "-psk", "-mtu 1280", "-mtu 9000", "-6", "-wgo", "-psk -mtu 1300 -6 -wgo"} {
		t.Run(args, func(t *testing.T) {
			if strings.Contains(args, "-6") {
				needIPv6(t)
			}
			var out, errOut bytes.Buffer
			if code := run(t.Context(), append(strings.Fields(args), "-size", "3MiB"), &out, &errOut); code != 0 || errOut.Len() > 0 {
				t.Fatalf("exit %d, %s\n%s", code, &errOut, &out)
			}
			for _, want := range []string{
				`(?m)^server +\S{44}  \S+, UDP port \d+$`, `(?m)^handshake +\d`, `(?m)^page +\d+ bytes`, `(?m)^download +100 %  3.0 MiB of 3.0 MiB`,
				`(?m)^digest +SHA-256 [0-9a-f]{64}`, `(?m)^throughput  [0-9.]+ Gbit/s`, `(?m)^server .* old .*3\.\d MiB`, `(?m)^client .* old .*3\.\d MiB`,
			} {
				if !regexp.MustCompile(want).Match(out.Bytes()) {
					t.Errorf("the output has no match of %s:\n%s", want, &out)
				}
			}
			if ipv6 := strings.Contains(args, "-6"); strings.Contains(out.String(), "[::1]") != ipv6 || strings.Contains(out.String(), "127.0.0.1") == ipv6 {
				t.Errorf("wrong family outside:\n%s", &out)
			}
		})
	}
}

// needIPv6 skips the test on a host without IPv6 on loopback.
func needIPv6(t *testing.T) {
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skipf("needs IPv6 on loopback: %v", err)
	}
	c.Close()
}

func TestBadFlags(t *testing.T) {
	for args, says := range map[string]string{
		"-size 0":              "above 0",
		"-size 1PB":            "256MiB",
		"-size 99999999999GiB": "want a number of bytes",
		"-mtu 100":             "576 to 65472",
		"-mtu 65473":           "576 to 65472",
		"-6 -mtu 1279":         "1280 to 65472",
		"-mtu big":             "-mtu",
		"-what":                "-what",
		"file":                 `"file" is no flag`,
	} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), strings.Fields(args), &out, &errOut)
		if s := errOut.String(); code != 2 || !strings.Contains(s, says) || strings.Count(s, "\n") != 1 || out.Len() > 0 {
			t.Errorf("%s: exit %d, %q, want 2 and one sentence with %q", args, code, s, says)
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"-h"}, &out, io.Discard); code != 0 || !strings.Contains(out.String(), "-wgo") {
		t.Errorf("-h: exit %d, %q", code, &out)
	}
}

// A stopper is an output that interrupts the program at the first line with a word in it.
type stopper struct {
	bytes.Buffer
	word string
	stop context.CancelFunc
}

func (s *stopper) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(s.word)) {
		s.stop()
	}
	return s.Buffer.Write(b)
}

// An interrupt at any time ends it, and nothing of it is left; the latter is for TestMain to see.
func TestInterrupt(t *testing.T) {
	for _, flags := range []string{"", "-wgo"} {
		for _, at := range []string{"server", "client", "handshake", "page", "download"} {
			size := "64MiB"
			if at == "handshake" {
				size = "10000GiB" // hashing it would take an hour
			}
			ctx, stop := context.WithCancel(t.Context())
			out := &stopper{word: at, stop: stop}
			var errOut bytes.Buffer
			if code := run(ctx, append(strings.Fields(flags), "-size", size), out, &errOut); code != 130 || !strings.Contains(errOut.String(), "interrupted") {
				t.Errorf("%s at %s: exit %d, %q\n%s", flags, at, code, &errOut, out)
			}
			stop()
		}
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out}
	p.begin(1000)
	for range 1000 {
		p.Write(make([]byte, 1))
	}
	p.end()
	if lines := strings.Count(out.String(), "\n"); lines != 4 || strings.Contains(out.String(), "\r") {
		t.Errorf("%d lines on what is no terminal, want 4:\n%s", lines, &out)
	}
	out.Reset()
	p = &progress{out: &out, terminal: true}
	p.begin(1000)
	for range 10 {
		p.shown = time.Now().Add(-time.Second)
		p.Write(make([]byte, 100))
	}
	p.end()
	if s := out.String(); strings.Count(s, "\n") != 1 || strings.Count(s, "\r") != 11 || !strings.Contains(s, " 50 %") {
		t.Errorf("on a terminal: %q, want one line, written 11 times", s)
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 10: "1.0 KiB", 5 << 19: "2.5 MiB", 1 << 30: "1.00 GiB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("bytesOf(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{1500: "1 µs", 2500 * time.Microsecond: "2.5 ms", 90 * time.Second: "90.0 s"} {
		if got := durationOf(d); got != want {
			t.Errorf("durationOf(%v) = %s, want %s", d, got, want)
		}
	}
	if got := rateOf(1e9, time.Second); got != "8.00 Gbit/s" {
		t.Errorf("rateOf 1 GB in 1 s = %s", got)
	}
	for s, want := range map[string]int64{"1": 1, "64KiB": 64 << 10, "256MiB": 256 << 20, "2GiB": 2 << 30} {
		if got, err := parseSize(s); got != want || err != nil {
			t.Errorf("parseSize(%s) = %d, %v", s, got, err)
		}
	}
}
