// Forward makes services behind a WireGuard peer reachable on local TCP ports, as ssh -L does, without privileges and
// without a network interface:
//
//	wg genkey > key
//	go run ./examples/forward -key key -address 10.7.0.2 -peer 4qSm…= -endpoint vpn.example.com:51820 \
//		127.0.0.1:8080=10.7.0.1:80 127.0.0.1:5432=db.internal:5432 -dns 10.7.0.1
//
// The peer's side of it is a peer with the public key of -key ("wg pubkey < key") and the allowed IP of -address.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/seed-86b749af/wireguard"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const usage = `forward [flags] LISTEN=TARGET... carries TCP connections to LISTEN through a WireGuard tunnel to TARGET.

  -key FILE         private key, as wg genkey prints it
  -psk FILE         preshared key, as wg genpsk prints it; none if not given
  -address ADDRESS  this end's address inside the tunnel; may be repeated
  -peer KEY         public key of the other end
  -endpoint H:P     address or name and UDP port of the other end
  -allowed PREFIX   what is reached through the tunnel; may be repeated (default everything)
  -dns ADDRESS      name server inside the tunnel, which TARGETs with a name need; may be repeated
  -keepalive TIME   interval of empty packets that keep a NAT's mapping, as in 25s (default none)
  -mtu N            largest packet inside the tunnel (default 1420)
  -v                tell of handshakes and connections`

// run is the program. It returns the exit code: 0 after an interrupt, which is how it is meant to end.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(out, usage)
		return 0
	case err != nil:
		fmt.Fprintf(errOut, "forward: %v; -h tells more.\n", err)
		return 2
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	o.log = slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level}))
	if err := o.forward(ctx, out); err != nil && ctx.Err() == nil {
		fmt.Fprintf(errOut, "forward: %v\n", err)
		return 1
	}
	return 0
}

// options are what the flags say.
type options struct {
	key       wireguard.PrivateKey
	addresses []netip.Addr
	dns       []netip.Addr
	mtu       int
	peer      wireguard.PeerConfig
	endpoint  string // a name must be resolved first
	forwards  []forward
	verbose   bool
	log       *slog.Logger
}

// A forward is a local address and where its connections go.
type forward struct{ listen, target string }

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("forward", flag.ContinueOnError)
	f.SetOutput(io.Discard) // run prints what is wrong
	f.Func("key", "", readKey(o.key.UnmarshalText))
	f.Func("psk", "", readKey(o.peer.PresharedKey.UnmarshalText))
	f.TextVar(&o.peer.PublicKey, "peer", wireguard.PublicKey{}, "")
	f.Func("address", "", each(&o.addresses, netip.ParseAddr))
	f.Func("dns", "", each(&o.dns, netip.ParseAddr))
	f.Func("allowed", "", each(&o.peer.AllowedIPs, netip.ParsePrefix))
	f.StringVar(&o.endpoint, "endpoint", "", "")
	f.DurationVar(&o.peer.PersistentKeepalive, "keepalive", 0, "")
	f.IntVar(&o.mtu, "mtu", 0, "")
	f.BoolVar(&o.verbose, "v", false, "")
	for ; err == nil && len(args) > 0; args = f.Args()[min(1, f.NArg()):] { // flags may follow arguments
		if err = f.Parse(args); err == nil && f.NArg() > 0 {
			err = each(&o.forwards, parseForward)(f.Arg(0))
		}
	}
	switch {
	case err != nil:
	case o.key.IsZero():
		err = errors.New("-key is missing")
	case o.peer.PublicKey.IsZero():
		err = errors.New("-peer is missing")
	case o.endpoint == "":
		err = errors.New("-endpoint is missing")
	case len(o.addresses) == 0:
		err = errors.New("-address is missing")
	case len(o.forwards) == 0:
		err = errors.New("there is nothing to forward: want LISTEN=TARGET, as in 127.0.0.1:8080=10.7.0.1:80")
	}
	if len(o.peer.AllowedIPs) == 0 {
		o.peer.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	}
	return o, err
}

// readKey makes of a parser of keys one of the names of files with a key. Secrets do not belong into arguments, which
// every user of a machine can see.
func readKey(unmarshal func([]byte) error) func(string) error {
	return func(name string) error {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return unmarshal([]byte(strings.TrimSpace(string(text))))
	}
}

// each makes of a parser one that adds what it parses to a list.
func each[T any](list *[]T, parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		v, err := parse(s)
		*list = append(*list, v)
		return err
	}
}

func parseForward(s string) (forward, error) {
	listen, target, ok := strings.Cut(s, "=")
	_, _, err := net.SplitHostPort(listen)
	_, _, err2 := net.SplitHostPort(target)
	if !ok || err != nil || err2 != nil {
		return forward{}, fmt.Errorf("%q: want LISTEN=TARGET, as in 127.0.0.1:8080=10.7.0.1:80", s)
	}
	return forward{listen, target}, nil
}

// resolve is the endpoint's address.
func resolve(ctx context.Context, endpoint string) (e wireguard.Endpoint, err error) {
	host, service, err := net.SplitHostPort(endpoint)
	if err != nil {
		return e, fmt.Errorf("-endpoint: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return e, fmt.Errorf("-endpoint: %w", err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return e, fmt.Errorf("-endpoint: %w", err)
	}
	return wireguard.EndpointOf(netip.AddrPortFrom(addrs[0], uint16(port))), nil
}
