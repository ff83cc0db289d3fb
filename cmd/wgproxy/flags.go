package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

const usage = `usage: wgproxy FILE [flags]

wgproxy connects programs with the network behind a WireGuard tunnel, without root. FILE is a
wg-quick(8) file, which may have the sections of wireproxy: [Socks5], [http], [SNI],
[TCPClientTunnel], [TCPServerTunnel], [UDPProxyTunnel], [STDIOTunnel] and [Resolve]. A section
[Gateway] makes wgproxy an exit for its peers.

`

// options are the values of the command line.
type options struct {
	path        string
	services    []service
	status      string   // address of the status page, /metrics and /readyz, or empty
	statusHosts []string // host names under which status may be reached
	test        bool     // only check the file
	silent      bool
	background  bool
	keepRights  bool     // do not call confine
	confined    []string // the folders that confine returned, or nil
}

// parseArgs reads the command line. Flags may precede and follow FILE.
func parseArgs(args []string, out io.Writer) (*options, error) {
	o := new(options)
	fs := flag.NewFlagSet("wgproxy", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprint(out, usage)
		fs.PrintDefaults()
	}
	for _, name := range []string{"c", "config"} {
		fs.Func(name, "the configuration `FILE`, instead of the argument", o.setPath)
	}
	listen := func(kind, name, what string) {
		fs.Func(name, what, func(v string) error {
			o.services = append(o.services, service{kind: kind, bind: v, idle: -1})
			return address(v)
		})
	}
	listen(kindSOCKS, "socks", "serve SOCKS5 on `ADDRESS`, such as 127.0.0.1:1080")
	listen(kindHTTP, "http", "serve an HTTP proxy on `ADDRESS`, such as 127.0.0.1:8080")
	fs.Func("L", "forward `[HOST:]PORT=TARGET` of this host to TARGET in the tunnel, such as 8080=10.7.0.1:80", func(v string) error {
		return o.forward(kindClient, "127.0.0.1:", v)
	})
	fs.Func("R", "forward `PORT=TARGET` in the tunnel to TARGET of this host, such as 2222=127.0.0.1:22", func(v string) error {
		return o.forward(kindServer, ":", v)
	})
	for _, name := range []string{"status", "i", "info"} {
		fs.Func(name, "serve a live status page, /metrics and /readyz on `ADDRESS`, such as 127.0.0.1:9090", func(v string) error {
			o.status = v
			return address(v)
		})
	}
	fs.Func("status-host", "also answer for the host `NAME` on the address of -status; IP addresses and localhost need no such flag", func(v string) error {
		o.statusHosts = append(o.statusHosts, v)
		return hostName(v)
	})
	for _, name := range []string{"n", "configtest"} {
		fs.BoolVar(&o.test, name, false, "check the file, and exit")
	}
	for _, name := range []string{"s", "silent"} {
		fs.BoolVar(&o.silent, name, false, "print nothing but errors that end the program")
	}
	for _, name := range []string{"d", "daemon"} {
		fs.BoolVar(&o.background, name, false, "run in the background")
	}
	fs.BoolVar(&o.keepRights, "no-landlock", false, "keep the right to open files, which wgproxy otherwise gives up on Linux")
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if args = fs.Args(); len(args) == 0 {
			break
		}
		if err := o.setPath(args[0]); err != nil {
			return nil, err
		}
		args = args[1:]
	}
	if len(o.statusHosts) > 0 && o.status == "" {
		return nil, errors.New("-status-host has no effect without -status; add it, as in -status 0.0.0.0:9090")
	}
	if o.path == "" {
		return nil, errors.New("no file: give a wg-quick(8) file, as in: wgproxy office.conf -socks 127.0.0.1:1080")
	}
	return o, nil
}

// setPath takes the one FILE.
func (o *options) setPath(path string) error {
	if o.path != "" {
		return fmt.Errorf("unexpected argument %q: want one FILE", path)
	}
	o.path = path
	return nil
}

// hostName checks a name without a port.
func hostName(v string) error {
	if v == "" || strings.ContainsAny(v, ":/ ") {
		return fmt.Errorf("want a host name without a port, such as proxy.example.com")
	}
	return nil
}

// forward adds the service of a flag -L or -R. If v has only a port before the =, forward puts prefix in front of it.
func (o *options) forward(kind, prefix, v string) error {
	bind, target, ok := strings.Cut(v, "=")
	if !ok {
		return fmt.Errorf("want PORT=TARGET, such as 8080=10.7.0.1:80")
	}
	if !strings.Contains(bind, ":") {
		bind = prefix + bind
	}
	o.services = append(o.services, service{kind: kind, bind: bind, target: target, idle: -1})
	return errors.Join(address(bind), address(target))
}
