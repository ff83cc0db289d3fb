// Wg0 is a daemon that stands in for the kernel's WireGuard: ip, ifconfig, wg and wg-quick work on its interface as
// they do on the kernel's.
//
//	wg0 [-f] IFACE          make an interface, to be configured with ip and wg
//	wg0 up [-f] FILE|IFACE  make an interface as a wg-quick(8) file says
//	wg0 down FILE|IFACE     undo that
//
// Both go to the background when the interface and its control socket stand, and only then exit with 0; with -f they
// stay in front. They end when the interface is deleted, when the socket is removed, and on SIGTERM and SIGINT.
//
// With wg-quick(8):
//
//	WG_QUICK_USERSPACE_IMPLEMENTATION=wg0 wg-quick up office
//
// Without it, on a Linux host that has no more than ip(8), `wg0 up office` reads /etc/wireguard/office.conf and does the same: addresses,
// MTU, DNS (by resolvconf or resolvectl), routes, for default routes marks and policy rules and a filter (by nft or iptables where
// there is one), the four hooks, SaveConfig. When a step fails, all is undone; PostDown then runs where a hook of going up did.
// The daemon asks for the address of a named endpoint again whenever a handshake with that peer fails. On
// SIGHUP it reads the file again and makes the interface's peers and keys what it says; sessions of peers that stay go
// on. Routes to what new peers are allowed are added; those of peers that have left stay until the interface goes, and what
// is sent there is dropped. Addresses, MTU and DNS stay as they were. On SIGTERM it does what `wg0 down` does.
//
// # Environment
//
//	LOG_LEVEL              verbose, debug, info, error or silent; without it: info. wireguard-go knows all but info, and
//	                       is at error without it and for other values, where this is at info and says so
//	WG_TUN_FD              the number of an inherited descriptor of a TUN interface, in place of making one
//	WG_UAPI_FD             that of a listening control socket
//	WG_TUN_NAME_FILE       a file to write the interface's name to
//	WG_PROCESS_FOREGROUND  1: as -f
//	WG0_OFFLOAD            0: let each packet cross the system call by itself, to find out whether the system's segmentation
//	                       offload, of the interface or of UDP, is to blame for something; without it: 1
//	WG0_QUEUES             the number of the interface's queues, each with a reader of its own, 1 to 256; more than 1
//	                       on Linux alone, and not for an inherited one; without it: 1
//	WG_ENDPOINT_RESOLUTION_RETRIES  as wg(8) has it: a number, or infinity; without it: 15
//
// The log goes to stderr. In the background it does so where LOG_LEVEL is set, and goes to syslog where it is not.
//
// For systemd there is wg0@.service beside this file: the daemon says when it is ready and when it stops, and takes a
// TUN and a control socket from the descriptors that it is passed (LISTEN_FDS) too.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/seed-86b749af/wireguard/conf"
)

const usage = `usage: wg0 [-f|--foreground] IFACE          make an interface, to be configured with ip and wg
       wg0 up [-f|--foreground] FILE|IFACE  make an interface as a wg-quick(8) file says
       wg0 down FILE|IFACE                  undo that
       wg0 --help | --version

FILE is named after the interface, as in wg0.conf; IFACE stands for /etc/wireguard/IFACE.conf.
Environment: LOG_LEVEL (verbose, debug, info, error, silent), WG_TUN_FD, WG_UAPI_FD, WG_TUN_NAME_FILE,
WG_PROCESS_FOREGROUND=1, WG0_OFFLOAD=0, WG0_QUEUES, WG_ENDPOINT_RESOLUTION_RETRIES.
`

// A command is what the command line says.
type command struct {
	action     action
	target     string // IFACE or FILE
	foreground bool
}

type action int

const (
	actionServe action = iota
	actionUp
	actionDown
	actionHelp
	actionVersion
)

const (
	exitFailed = 1
	exitUsage  = 2
)

var errUsage = errors.New("what is to be done is not clear from the command line")

// parseArgs parses what follows the program's name.
func parseArgs(args []string) (c command, err error) {
	if len(args) == 1 {
		switch args[0] {
		case "-h", "--help", "help":
			return command{action: actionHelp}, nil
		case "--version":
			return command{action: actionVersion}, nil
		}
	}
	if len(args) > 0 && (args[0] == "up" || args[0] == "down") {
		if c.action = actionUp; args[0] == "down" {
			c.action = actionDown
		}
		args = args[1:]
	}
	if len(args) > 0 && c.action != actionDown && (args[0] == "-f" || args[0] == "--foreground") {
		c.foreground, args = true, args[1:]
	}
	if len(args) != 1 || args[0] == "" || args[0][0] == '-' {
		return command{}, errUsage
	}
	c.target = args[0]
	return c, nil
}

func main() {
	c, err := parseArgs(os.Args[1:])
	switch {
	case err != nil:
		fmt.Fprintf(os.Stderr, "wg0: %v\n%s", err, usage)
		os.Exit(exitUsage)
	case c.action == actionHelp:
		fmt.Print(usage)
	case c.action == actionVersion:
		fmt.Println(version())
	default:
		if err := run(c); err != nil {
			printError(os.Stderr, err)
			os.Exit(exitFailed)
		}
	}
}

func version() string {
	v := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		v = info.Main.Version
	}
	return fmt.Sprintf("wg0 %s %s/%s %s", v, runtime.GOOS, runtime.GOARCH, runtime.Version())
}

// A fileError is what is wrong with a configuration file.
type fileError struct {
	path string
	err  error
}

func (e *fileError) Error() string {
	var b strings.Builder
	for i, err := range conf.Errors(e.err) {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.path)
		if err.Line != 0 {
			fmt.Fprintf(&b, ":%d", err.Line)
		}
		if err.Key != "" {
			b.WriteString(": " + err.Key)
		}
		fmt.Fprintf(&b, ": %v", err.Err)
	}
	return b.String()
}

func (e *fileError) Unwrap() error { return e.err }

// errReported is an error that somebody told the user of already.
var errReported = errors.New("reported")

// printError prints each line of err behind the program's name.
func printError(w io.Writer, err error) {
	if errors.Is(err, errReported) {
		return
	}
	for line := range strings.SplitSeq(words(err), "\n") {
		fmt.Fprintf(w, "wg0: %s\n", line)
	}
}

var library = regexp.MustCompile(`(?m)(^|: )wireguard: `)

// words returns what err says without the name of the library, which would stand behind the name of the daemon.
func words(err error) string { return library.ReplaceAllString(err.Error(), "$1") }
