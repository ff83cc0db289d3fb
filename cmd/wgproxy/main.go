// Command wgproxy connects programs with the network behind a WireGuard tunnel, without root and without an interface of the
// system: SOCKS5 and HTTP proxies, TLS by server name, forwards of ports in both directions, and an exit for the peers.
//
//	wgproxy office.conf -socks 127.0.0.1:1080 -http 127.0.0.1:8080 -L 8080=10.7.0.1:80 -R 2222=127.0.0.1:22 -status 127.0.0.1:9090
//
// office.conf is a wg-quick(8) file. The services may also be sections of the file, as in wireproxy, whose files work
// unchanged: [Socks5] and [http] (BindAddress, Username, Password; with CertFile and KeyFile, [http] serves HTTPS), [SNI]
// (BindAddress), [TCPClientTunnel] (BindAddress, Target), [TCPServerTunnel] (ListenPort, Target), [UDPProxyTunnel]
// (BindAddress, Target, InactivityTimeout in seconds, where 0 means never), [STDIOTunnel] (Target) and [Resolve]
// (ResolveStrategy: ipv4, ipv6 or auto). WGConfig = FILE above all sections takes [Interface] and [Peer] from another file. A
// value $NAME stands for an environment variable. A peer without AllowedIPs gets all addresses. If [Interface] has no DNS, this
// host resolves the names of targets. Comments begin with #, or with ; at the beginning of a line. The keys of [Interface] and
// [Peer] are written without quotes, as wg-quick(8) wants them.
//
// A section [Gateway], which may be empty, makes wgproxy an exit for its peers: their TCP, UDP and pings to other hosts leave
// through the sockets of this host. wgproxy refuses flows to the tunnel, to this host, and to special addresses such as
// link-local and multicast ones. Peers can reach the other hosts of the local network. Allow = 192.168.1.2, fd00::/64 opens
// addresses that wgproxy would otherwise refuse, such as the host's own; only loopback, link-local and multicast addresses stay
// closed. MaxFlows limits the connections and UDP sockets that each peer has at once (4096 unless set). BytesPerSecond limits
// what each peer sends, and separately what it receives. The AllowedIPs of a peer must be its own addresses, because a peer
// cannot reach addresses inside any AllowedIPs. On Linux, pings work only if a group of the process is in the range of the sysctl
// net.ipv4.ping_group_range.
//
//	[Gateway]
//	Allow = 192.168.1.2
//	MaxFlows = 500
//	BytesPerSecond = 2500000
//
// -status serves three things: a page that shows the tunnel and its peers live, /metrics for Prometheus, and /readyz. /readyz
// is a JSON object with each address of CheckAlive in [Interface] and the Unix time of its last answer to a ping. Its status
// is 503 if the last answer of an address is older than CheckAliveInterval plus 2 s. All three answer requests whose host
// name is localhost or an IP address. They refuse requests with other host names with status 421, so that no page of another
// site can read them by DNS rebinding. If Prometheus or a health checker uses a host name, write -status-host NAME.
//
// On SIGHUP, wgproxy reads the file again and prints what changes. It keeps the sessions of peers, and the connections of
// services, that are still in the file. On SIGTERM and SIGINT, it accepts no new connections, and gives existing connections up
// to 10 s to end, including the peers' TCP connections through [Gateway]. A second signal ends wgproxy at once.
//
// On Linux with Landlock, wgproxy gives up the right to open files before it opens the tunnel. It can still read all files in the
// folders of its file, of WGConfig and of certificates, and in the folders that resolvers need, such as /etc. So keep its file in
// a folder without other files. A reload that needs a file elsewhere fails and says so. -no-landlock keeps the right.
//
// wgproxy tells systemd when it is ready, and takes a socket that systemd passes for the service that listens on the address
// of this socket. The unit wgproxy@.service removes every right that wgproxy does not need.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

func main() {
	o, err := parseArgs(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err == nil {
		err = start(o)
	}
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(os.Stderr, "wgproxy: %s\n", line)
		}
		os.Exit(1)
	}
}

// start checks the file, and then does what the command line asks for.
func start(o *options) error {
	s, err := o.settings()
	if err != nil {
		return err
	}
	if o.test {
		fmt.Println("the configuration is correct")
		return nil
	}
	if o.background {
		return runInBackground()
	}
	var out io.Writer = os.Stderr
	if o.silent {
		out = io.Discard
	}
	if err := o.confine(s, out); err != nil {
		return err
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, append(reloadSignals, syscall.SIGTERM, os.Interrupt)...)
	p := &program{settings: s, options: o, out: out, terminal: !o.silent && isTerminal(os.Stderr), stdin: os.Stdin, stdout: os.Stdout}
	return p.run(context.Background(), signals)
}

// confine gives up the right to open files, unless the command line forbids that.
func (o *options) confine(s *settings, out io.Writer) error {
	if o.keepRights {
		return nil
	}
	var err error
	if o.confined, err = confine(foldersOf(s.files())); err == nil && o.confined == nil && runtime.GOOS == "linux" {
		fmt.Fprintln(out, "wgproxy: this kernel has no Landlock, so wgproxy keeps the right to open files")
	}
	return err
}

// settings reads the file, and adds the services of the command line.
func (o *options) settings() (*settings, error) {
	s, err := readSettings(o.path)
	if err != nil {
		return nil, err
	}
	s.services = append(s.services, o.services...)
	if len(s.services) == 0 && s.exit == nil && o.status == "" {
		return nil, fmt.Errorf("%s: nothing to serve: add a section such as [Socks5] with BindAddress = 127.0.0.1:1080, or a flag such as -socks 127.0.0.1:1080", o.path)
	}
	for i, a := range s.services {
		for _, b := range s.services[:i] {
			if a == b || a.kind == kindStdio && b.kind == kindStdio {
				return nil, fmt.Errorf("%s: %v is there twice; remove one of the two", o.path, a)
			}
		}
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.path, err)
	}
	return s, nil
}

// isTerminal reports whether f is a character device, as a terminal is.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// runInBackground starts this program again without -d, and does not wait for it.
func runInBackground() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		return strings.HasPrefix(a, "-") && (name == "d" || name == "daemon")
	})
	cmd := exec.Command(self, args...)
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Printf("wgproxy runs in the background as process %d\n", cmd.Process.Pid)
	return nil
}
