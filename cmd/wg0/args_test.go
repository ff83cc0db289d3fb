package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/conf"
)

func TestParseArgs(t *testing.T) {
	for _, c := range []struct {
		args string
		want command
		ok   bool
	}{
		{"wg0", command{actionServe, "wg0", false}, true},
		{"-f wg0", command{actionServe, "wg0", true}, true},
		{"--foreground wg0", command{actionServe, "wg0", true}, true},
		{"-f up", command{actionServe, "up", true}, true},
		{"up a.conf", command{actionUp, "a.conf", false}, true},
		{"up -f a.conf", command{actionUp, "a.conf", true}, true},
		{"up --foreground a", command{actionUp, "a", true}, true},
		{"down a", command{actionDown, "a", false}, true},
		{"-h", command{action: actionHelp}, true},
		{"--help", command{action: actionHelp}, true},
		{"--version", command{action: actionVersion}, true},
		{"", command{}, false},
		{"up", command{}, false},
		{"down", command{}, false},
		{"-f", command{}, false},
		{"down -f a", command{}, false},
		{"wg0 wg1", command{}, false},
		{"-x", command{}, false},
		{"-f -f wg0", command{}, false},
		{"up a b", command{}, false},
	} {
		got, err := parseArgs(strings.Fields(c.args))
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("parseArgs of %q returns %+v, %v; want the command and the error of the table", c.args, got, err)
		}
	}
}

// TestPrintError checks that each error is one line with the program's name, and that errReported prints nothing.
func TestPrintError(t *testing.T) {
	_, err := conf.Parse([]byte("[Interface]\nMTU = x\nTable = a b\nhello"))
	var b strings.Builder
	printError(&b, errors.Join(&fileError{"/x/a.conf", err}, errors.New("wireguard: the tunnel: tun: it does not exist")))
	printError(&b, errReported)
	want := "wg0: /x/a.conf:2: MTU: \"x\": want bytes from 68 to 65535; 1420 is usual, and IPv6 needs at least 1280\n" +
		"wg0: /x/a.conf:3: Table: \"a b\": want auto, off, or a routing table's number or name\n" +
		"wg0: /x/a.conf:4: neither a [section] nor a key = value; write # before a comment\n" +
		"wg0: the tunnel: tun: it does not exist\n"
	if b.String() != want {
		t.Errorf("printError prints other lines than wanted:\n%s", b.String())
	}
}
