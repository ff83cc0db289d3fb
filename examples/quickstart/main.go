// Quickstart is a complete WireGuard tunnel inside one program: two devices, each with a network stack of its own, talk over real
// UDP sockets on loopback. Behind one of them is an HTTP server, behind the other an HTTP client, which downloads a
// page and then a large file through the tunnel and checks its SHA-256 digest.
//
// It needs no privileges and no arguments:
//
//	go run ./examples/quickstart
//
// Flags choose the size of the file (-size), the MTU inside the tunnel (-mtu), a preshared key (-psk), IPv6 inside and
// outside (-6), and wireguard-go's network stack instead of this library's (-wgo).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // what a shell shows for a program that an interrupt ended
)

func run(ctx context.Context, args []string, out, errOut io.Writer) (code int) {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(out, usage)
		return 0
	case err != nil:
		fmt.Fprintf(errOut, "quickstart: %v.\n", err)
		return exitUsage
	}
	err = o.run(ctx, out)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(errOut, "\nquickstart: interrupted")
		return exitInterrupted
	case err != nil:
		fmt.Fprintf(errOut, "quickstart: %v\n", err)
		return exitFailed
	}
	return 0
}

const usage = `quickstart downloads a file through a WireGuard tunnel between two devices in this one program.

  -size SIZE  of the file, in bytes or as in 64KiB, 256MiB, 1GiB (default 256MiB)
  -mtu N      largest packet inside the tunnel, 576 to 65472, with -6 at least 1280 (default 1420)
  -psk        use a preshared key too
  -6          IPv6 inside and outside, instead of IPv4
  -wgo        wireguard-go's network stack (tun/netstack), instead of this library's`

// options are what the flags say.
type options struct {
	size int64
	mtu  int
	psk  bool
	ipv6 bool
	wgo  bool
}

func parse(args []string) (options, error) {
	o := options{size: 256 << 20}
	f := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	f.SetOutput(io.Discard) // run prints what is wrong
	f.Func("size", "", func(s string) (err error) {
		o.size, err = parseSize(s)
		return err
	})
	f.IntVar(&o.mtu, "mtu", 1420, "")
	f.BoolVar(&o.psk, "psk", false, "")
	f.BoolVar(&o.ipv6, "6", false, "")
	f.BoolVar(&o.wgo, "wgo", false, "")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%v; -h lists the flags", err)
	}
	least := 576
	if o.ipv6 {
		least = 1280
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is no flag; there are no other arguments, -h lists the flags", f.Arg(0))
	case o.mtu < least || o.mtu > 65472:
		return o, fmt.Errorf("-mtu %d does not work here: it takes %d to 65472", o.mtu, least)
	}
	return o, nil
}

// parseSize parses a positive number of bytes, with a unit or without.
func parseSize(s string) (int64, error) {
	digits, unit := s, int64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB"} {
		if d, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = d, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/unit {
		return 0, errors.New("want a number of bytes above 0, as in 1000000 or 256MiB")
	}
	return n * unit, nil
}
