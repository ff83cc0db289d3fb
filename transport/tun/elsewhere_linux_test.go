//go:build linux && !android

package tun

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestStatesElsewhere checks what a program learns about an interface that was moved to a namespace that the program may not
// enter: the interface's name, and that it was deleted. The test runs itself again as a child process, which has capabilities
// only in its own network namespace.
//
//	child: wg0 ──moved by the parent──▶ a namespace that only the parent may enter
func TestStatesElsewhere(t *testing.T) {
	const child = "TUN_TEST_ELSEWHERE"
	if os.Getenv(child) != "" {
		d, err := Open(Config{Name: "wg0"})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for s := range d.States() {
			fmt.Println("state", s.Name, s.MTU)
		}
		if !errors.Is(d.Err(), ErrDeleted) {
			t.Error("the interface did not end with ErrDeleted:", d.Err())
		}
		return
	}
	there := newNamespace(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestStatesElsewhere$")
	cmd.Env = append(os.Environ(), child+"=1")
	testkit.OwnNetwork(cmd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("this host does not let programs make user namespaces: %v", err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	want := func(line string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != line {
			t.Fatalf("the child process printed %q, want %q", lines.Text(), line)
		}
	}
	want("state wg0 1420")
	f, err := os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	(&namespace{f}).ip(t, "link set wg0 netns /proc/self/fd/3", there)
	there.ip(t, "link set wg0 mtu 1300")
	there.ip(t, "link set wg0 name renamed")
	want("state renamed 1420")
	there.ip(t, "link delete renamed")
	want("PASS")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
