package follow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// inNamespace calls testkit.InNamespace, and adds these interfaces to the namespace:
//
//	eth0 ── veth ── eth1    both up, and eth0 with an address and a default route
//	wg7                     the tunnel's interface, up
func inNamespace(t *testing.T) bool {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip: install iproute2")
	}
	t.Parallel()
	if !testkit.InNamespace(t) {
		return false
	}
	ip(t, "link add eth0 type veth peer name eth1", "link add wg7 type veth peer name wg8", "link set lo up",
		"link set eth1 up", "link set eth0 up", "link set wg8 up", "link set wg7 up",
		"addr add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.254 dev eth0 metric 100")
	return true
}

// ip runs ip(8) once, with these lines as its input.
func ip(t *testing.T, lines ...string) {
	t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip %q: %v: %s", lines, err, out)
	}
}

// watched runs f while Changes runs. The channel calls gets an element for each change that Changes reports. Changes knows the
// state of the network before f begins.
func watched(t *testing.T, f func(calls <-chan time.Time)) {
	t.Helper()
	defer exec.Command("ip", "addr", "flush", "dev", "eth0", "to", "203.0.113.0/24").Run()
	ctx, cancel := context.WithCancel(t.Context())
	calls, ended := make(chan time.Time, 1000), make(chan error)
	go func() { ended <- Changes(ctx, "wg7", func() { calls <- time.Now() }) }()
	for i, known := 1, false; !known; i++ { // Changes does not report what happens before it knows the network
		ip(t, fmt.Sprintf("addr add 203.0.113.%d/32 dev eth0", i))
		select {
		case <-calls:
			known = true
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Second):
		}
		if i == 30 {
			t.Fatal("Changes reported nothing after 30 changes")
		}
	}
	f(calls)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func wantCall(t *testing.T, calls <-chan time.Time, why string) {
	t.Helper()
	select {
	case <-calls:
	case <-time.After(10 * time.Second):
		t.Errorf("Changes reported nothing within 10 s: %s", why)
	}
}

func wantNone(t *testing.T, calls <-chan time.Time, why string) {
	t.Helper()
	select {
	case <-calls:
		t.Errorf("Changes reported a change, want none: %s", why)
	case <-time.After(time.Second):
	}
}

// TestChanges checks that Changes reports an address that appears. It checks that a burst of addresses causes only a few calls,
// even on a slow machine, and that kernel messages that do not count cause no call. It logs how long the first call takes.
func TestChanges(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	watched(t, func(calls <-chan time.Time) {
		start := time.Now()
		ip(t, "addr add 2001:db8::1/64 dev eth0 nodad")
		wantCall(t, calls, "an address was added")
		t.Logf("Changes reported the address after %v", time.Since(start))
		ip(t, "addr del 2001:db8::1/64 dev eth0")
		wantCall(t, calls, "an address was removed")

		var lines []string
		for i := range 20 {
			lines = append(lines, fmt.Sprintf("addr add 198.51.100.%d/32 dev eth0", i+1))
		}
		ip(t, lines...)
		wantCall(t, calls, "20 addresses were added")
		time.Sleep(600 * time.Millisecond)
		if n := len(calls); n > 2 {
			t.Errorf("Changes reported a burst of 20 addresses %d more times, want at most 2", n)
		}
		for len(calls) > 0 {
			<-calls
		}

		ip(t,
			"addr change 192.0.2.1/24 dev eth0 valid_lft 1000 preferred_lft 1000",
			"route add 198.51.100.0/24 via 192.0.2.254",
			"route replace default via 192.0.2.254 dev eth0 metric 100",
			"link set eth0 mtu 1400",
			"link add eth2 type veth peer name eth3", "link set eth2 up", "link set eth3 up", "link del eth2",
			"addr add 10.0.0.1/24 dev wg7", "route add default dev wg7 table 51820", "link set wg7 down", "link set wg7 up")
		wantNone(t, calls, "outside the tunnel, only a lifetime, an MTU, a route other than the default route and a link without addresses changed")
	})
}

// TestChangesOfRoutes checks that Changes reports a replaced default route and a link that goes down. The kernel removes the
// default route of such a link without a message.
func TestChangesOfRoutes(t *testing.T) {
	testChanges(t,
		"route replace default via 192.0.2.253 dev eth0 metric 100",
		"route replace default via 192.0.2.254 dev eth0 metric 100", // restores the first gateway
		"link set eth0 down",
		"link set eth0 up",
		"route add default via 192.0.2.254 dev eth0 metric 100")
}

// TestChangesOfLinks checks that Changes reports when the other end of the veth pair goes down and up, and when the link is
// deleted.
func TestChangesOfLinks(t *testing.T) {
	testChanges(t, "link set eth1 down", "link set eth1 up", "link del eth1")
}

// testChanges runs ip(8) once for each of the lines, and checks that Changes calls its function after each run.
func testChanges(t *testing.T, lines ...string) {
	if !inNamespace(t) {
		return
	}
	watched(t, func(calls <-chan time.Time) {
		for _, c := range lines {
			ip(t, c)
			wantCall(t, calls, c)
		}
	})
}

// TestChangesLost checks that Changes reports a change if the kernel had to drop messages, although none of these messages would
// count.
func TestChangesLost(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	n, err := openNetwork("wg7")
	if err != nil {
		t.Fatal(err)
	}
	if err := setReceiveBuffer(n.events, 1); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("addr add 10.0.0.%d/32 dev wg7", i+1))
	}
	ip(t, lines...)
	signals, ended := make(chan struct{}, 100), make(chan error)
	go func() { ended <- n.watch(func() { signals <- struct{}{} }) }()
	select {
	case <-signals:
	case <-time.After(10 * time.Second):
		t.Error("watch sent no signal within 10 s after the kernel dropped messages")
	}
	n.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func setReceiveBuffer(f *os.File, size int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}), err)
}

// TestChangesEnd checks that Changes leaves no goroutine and no descriptor when it returns.
func TestChangesEnd(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	goroutines := goleak.IgnoreCurrent()
	// After this first run, the runtime and the tests keep some goroutines and descriptors.
	watched(t, func(<-chan time.Time) {})
	before := descriptors(t)
	for range 2 {
		// The context ends during a burst.
		watched(t, func(<-chan time.Time) { ip(t, "addr add 192.0.2.7/24 dev eth0", "addr del 192.0.2.7/24 dev eth0") })
	}
	goleak.VerifyNone(t, goroutines)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d as before", after, before)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Changes(ctx, "", func() { t.Error("Changes reported a change although its context had ended") }); err != nil {
		t.Error(err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
