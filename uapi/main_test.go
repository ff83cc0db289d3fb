package uapi

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newDevice returns a device that is up, with UDP sockets on the loopback interface and an in-memory tunnel.
func newDevice(t testing.TB) *wireguard.Device {
	t.Helper()
	return devices.Up(t, wireguard.Config{Tunnel: pipe.NewTunnel(1420), Bind: &udp.Bind{Address: netip.MustParseAddr("127.0.0.1")}})
}

// serveAt serves d at l until the test ends.
func serveAt(t testing.TB, s *Server, l net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v, want nil after Close", err)
		}
	})
}

// get returns what Get writes for d.
func get(t testing.TB, d *wireguard.Device) string {
	t.Helper()
	var b strings.Builder
	if err := Get(&b, d); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// set makes a set request on d, and fails the test if Set refuses it.
func set(t testing.TB, d *wireguard.Device, request string) {
	t.Helper()
	if err := Set(strings.NewReader(request), d); err != nil {
		t.Fatalf("Set refused a request with %v:\n%s", err, request)
	}
}

var interfaces atomic.Int32

// uniqueName returns the name of an interface that no other test uses.
func uniqueName() string { return fmt.Sprintf("ut%dn%d", os.Getpid(), interfaces.Add(1)) }

// freePort returns a port that was free when freePort looked. Another process may take it afterwards.
func freePort(t testing.TB) uint16 {
	t.Helper()
	d := newDevice(t)
	defer d.Close()
	return d.Status().ListenPort
}
