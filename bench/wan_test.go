package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// TestWan checks that each side transfers data over two of the paths. It checks the kernel's TCP only if this machine can run it.
func TestWan(t *testing.T) {
	effort := small
	effort.Transfer = time.Second
	for _, m := range wanMeasures() {
		if m.name != "wan/500m-20ms" && m.name != "wan/upload-ping" {
			continue
		}
		for _, side := range []string{sideOurs, sideTheirs, sideBound} {
			t.Run(m.name+"/"+side, func(t *testing.T) {
				o := order{Name: m.name, Side: side, Effort: effort, Isolated: side == sideBound}
				if why := m.withoutBound(); o.Isolated && why != "" {
					t.Skip(why)
				}
				s, err := took(t, o)
				if err != nil {
					t.Fatal(err)
				}
				if s.Value <= 0 || m.lower && (s.Aside[0].Value <= 0 || s.Value < 30) {
					t.Errorf("the sample is %+v, want throughput, and pings of at least 30 ms", s)
				}
			})
		}
	}
}

// TestDownloadCountsFromTheDial checks that the time of a transfer begins with the dial. So the goodput includes the time before
// the first byte arrives.
func TestDownloadCountsFromTheDial(t *testing.T) {
	const late, transfer = 200 * time.Millisecond, 400 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	st := &stage{effort: effort{Transfer: transfer}}
	defer st.close()
	begin := time.Now()
	s, err := runDownload(st, &wanPath{stacks: &stacks{listener: l, dial: func(ctx context.Context) (net.Conn, error) {
		time.Sleep(late)
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}}})
	if err != nil || s.Value <= 0 {
		t.Fatalf("runDownload returns %+v, %v; want a goodput", s, err)
	}
	if took := time.Since(begin); took < transfer {
		t.Errorf("the transfer ended after %v, want %v from the dial", took, transfer)
	}
	if first := s.Aside[0].Value / 2; s.Value > 1.01*first {
		t.Errorf("%v Mbit/s in all, %v in the second half: the whole must include the first half, in which nothing arrived because of the dial", s.Value, s.Aside[0].Value)
	}
}

// TestLostPingsCount checks that a ping without an answer counts as five seconds, so that lost pings cannot improve the figure.
func TestLostPingsCount(t *testing.T) {
	n := 0
	p := &wanPath{ping: func(context.Context) (time.Duration, error) {
		n++
		if n == 1 {
			return 0, errors.New("lost")
		}
		return 30 * time.Millisecond, nil
	}}
	trips, lost := pings(p, time.Now().Add(pingEvery*3/2))
	if lost != 1 || len(trips) == 0 || trips[0] != 5000 {
		t.Errorf("the round trips are %v ms, and %d pings are lost; want a first round trip of 5,000 ms, and 1 lost", trips, lost)
	}
}

// TestWorst checks that a row of the family wan shows the worst sample of each side. If the kernel's TCP was not measured, the
// row must say why.
func TestWorst(t *testing.T) {
	of := func(vs ...float64) (ss []sample) {
		for _, v := range vs {
			ss = append(ss, sample{Value: v})
		}
		return ss
	}
	m := &measure{name: "wan/x", unit: "Mbit/s", spans: 1, boundName: "the kernel"}
	for _, c := range []struct {
		bound   []sample
		without string
		want    []string
	}{
		{of(50, 40), "", []string{"ours: median 10, worst 9 Mbit/s; all 10 9 11", "wireguard-go: median 5, worst 4 ", "the kernel: median 45, worst 40 "}},
		{nil, "needs root", []string{"the kernel: left out: needs root"}},
	} {
		r := newRow(m, of(10, 9, 11), of(4, 5, 6), c.bound)
		r.withoutBound = c.without
		var out bytes.Buffer
		printRow(&out, r)
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the row lacks %q:\n%s", want, &out)
			}
		}
	}
	if s := summarize(of(10, 9, 11)); s.worst(true) != 11 {
		t.Errorf("the worst of three pings is %v, want the longest, 11", s.worst(true))
	}
}
