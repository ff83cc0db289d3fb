// Wg0 is a daemon that replaces the kernel's WireGuard. ip, ifconfig, wg and wg-quick work on its interface as they do on
// the kernel's.
//
//	wg0 [-f] IFACE          make an interface that you configure with ip and wg
//	wg0 up [-f] FILE|IFACE  make and configure an interface from a wg-quick(8) file
//	wg0 down FILE|IFACE     take the interface down and undo its configuration
//
// The first two commands create the interface and its control socket, continue in the background, and exit with 0. With -f
// they stay in the foreground. The daemon stops when the interface is deleted, when the socket is removed, and on SIGTERM
// and SIGINT. A daemon without a file also stops on SIGHUP.
//
// To use wg0 with wg-quick(8), run:
//
//	WG_QUICK_USERSPACE_IMPLEMENTATION=wg0 wg-quick up office
//
// Without wg-quick, on a Linux host that has at least ip(8), `wg0 up office` reads /etc/wireguard/office.conf and does the
// same work. It sets addresses, MTU, DNS (with resolvconf or resolvectl) and routes, runs the four hooks, and honors
// SaveConfig. For a default route it also sets a mark, policy rules and a filter (with nft or iptables, if installed). When a
// step fails, wg0 undoes the steps before it, and runs PostDown if a PreUp or PostUp hook had started.
//
// When a peer does not answer, the daemon resolves the names of that peer's endpoints again, and tries all their addresses
// and all Endpoint lines of the peer in turn. On SIGHUP the daemon reads the file again, logs what changes, and applies the
// peers and keys of the file. Peers that remain keep their sessions. The daemon adds routes for the allowed IPs of new peers.
// Routes of removed peers stay until the interface is deleted; packets that take such a route are dropped. Addresses, MTU and
// DNS do not change. On SIGTERM the daemon does what `wg0 down` does.
//
// # Environment
//
//	LOG_LEVEL              verbose, debug, info, error or silent; default info. For an unknown value wg0 logs a warning and
//	                       uses info. wireguard-go does not know info, and uses error by default and for unknown values
//	WG_TUN_FD              the descriptor number of an inherited TUN interface; wg0 uses it and makes none
//	WG_UAPI_FD             the descriptor number of an inherited, listening control socket
//	WG_TUN_NAME_FILE       a file to which wg0 writes the interface's name
//	WG_PROCESS_FOREGROUND  1: same as -f
//	WG0_OFFLOAD            0: pass each packet in its own system call, without segmentation offload of the interface or of
//	                       UDP, to find out whether offload causes a problem; default 1
//	WG0_QUEUES             the number of the interface's queues, 1 to 256, with one reader each; more than 1 works only on
//	                       Linux and not for an inherited interface; default 1
//	WG_ENDPOINT_RESOLUTION_RETRIES  as in wg(8): a number, or infinity; default 15
//
// In the foreground, the daemon logs to stderr. In the background, it logs to stderr if LOG_LEVEL is set, and to syslog
// otherwise.
//
// For systemd, use wg0@.service beside this file. The daemon tells systemd when it is ready and when it stops. It also accepts
// a TUN and a control socket among the descriptors that systemd passes (LISTEN_FDS).
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

const usage = `usage: wg0 [-f|--foreground] IFACE          make an interface that you configure with ip and wg
       wg0 up [-f|--foreground] FILE|IFACE  make and configure an interface from a wg-quick(8) file
       wg0 down FILE|IFACE                  take the interface down and undo its configuration
       wg0 --help | --version

FILE must be named after the interface, as in wg0.conf; "up IFACE" and "down IFACE" read /etc/wireguard/IFACE.conf.
Environment: LOG_LEVEL (verbose, debug, info, error, silent), WG_TUN_FD, WG_UAPI_FD, WG_TUN_NAME_FILE,
WG_PROCESS_FOREGROUND=1, WG0_OFFLOAD=0, WG0_QUEUES, WG_ENDPOINT_RESOLUTION_RETRIES.
`

// A command is a parsed command line.
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

var errUsage = errors.New("cannot parse the command line: want IFACE, up FILE|IFACE, or down FILE|IFACE")

// parseArgs parses the arguments that follow the program's name.
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

// A fileError reports all that is wrong with a configuration file.
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

// errReported is an error that the user has already seen. printError does not print it.
var errReported = errors.New("reported")

// printError prints each line of err after the program's name.
func printError(w io.Writer, err error) {
	if errors.Is(err, errReported) {
		return
	}
	for line := range strings.SplitSeq(words(err), "\n") {
		fmt.Fprintf(w, "wg0: %s\n", line)
	}
}

var library = regexp.MustCompile(`(?m)(^|: )wireguard: `)

// words returns the text of err without the library's name. printError puts the name wg0 in front instead.
func words(err error) string { return library.ReplaceAllString(err.Error(), "$1") }
