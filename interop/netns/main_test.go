//go:build linux

package netns

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/netlab"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

const (
	wg0         = "wg0"
	wireguardGo = "wireguard-go"
)

var (
	daemonFlag = flag.String("daemon", wg0, "the daemon to test: wg0, wireguard-go, or the `path` of a daemon")
	allFlag    = flag.Bool("all", false, "also run the tests that are known to fail with wireguard-go")
)

// programEnv is the name of an environment variable with the path of the daemon to test. It is set only in the isolated process.
const programEnv = "WIREGUARD_NETNS_PROGRAM"

// missing is the reason why this machine cannot run the tests. It is empty if the machine can. TestMain sets it before the tests
// run.
var missing string

// TestMain builds the daemon and runs the tests in a child process with its own namespaces.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(programEnv) != "" {
		if err := netlab.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if missing = netlab.Missing("ip", "wg", "ping", "iperf3", "nft"); missing != "" {
		os.Exit(m.Run())
	}
	code, err := runIsolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// runIsolated runs this test program again in a child process with its own namespaces, and returns the exit code.
func runIsolated() (code int, err error) {
	runtime.LockOSThread() // the child process ends with the thread that started it
	dir, err := os.MkdirTemp("", "netns")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	program, err := build(dir)
	if err != nil {
		return 1, err
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), programEnv+"="+program)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	netlab.Isolate(cmd)
	err = cmd.Run()
	if _, ended := err.(*exec.ExitError); ended {
		return 1, nil
	}
	return 0, err
}

// build builds, in the folder dir, the daemon that the flag -daemon selects, and returns the program's path. If the flag is a path,
// build returns this path.
func build(dir string) (program string, err error) {
	var source string
	switch *daemonFlag {
	case wg0:
		source = "github.com/seed-86b749af/wireguard/cmd/wg0"
	case wireguardGo:
		source = "golang.zx2c4.com/wireguard"
	default:
		return filepath.Abs(*daemonFlag)
	}
	program = filepath.Join(dir, *daemonFlag)
	var flags []string
	if testkit.Race {
		flags = []string{"-race"} // if the tests run with the race detector, the daemon does too
	}
	return program, netlab.Build("../..", source, program, flags...)
}

// program returns the path of the daemon under test. If this host cannot run the tests, program skips the calling test.
func program(t *testing.T) string {
	t.Helper()
	if missing != "" {
		t.Skip(missing)
	}
	return os.Getenv(programEnv)
}

// notKernelLike skips the test if the daemon is wireguard-go, unless the flag -all is set. reason says how wireguard-go differs
// from the kernel in this test.
func notKernelLike(t *testing.T, reason string) {
	t.Helper()
	if *daemonFlag == wireguardGo && !*allFlag {
		t.Skip("wireguard-go fails: " + reason)
	}
}
