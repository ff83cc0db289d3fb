//go:build linux && !android

package tun

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/sys/unix"
)

// A namespace is a network namespace. It exists while its descriptor is open, or the descriptor of an interface or socket in
// it.
type namespace struct{ f *os.File }

// newNamespace makes a namespace. Its only interface is a loopback interface, which is down.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs the command ip of iproute2")
	}
	n := new(namespace)
	onThread(t, func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.f, err = os.Open("/proc/thread-self/ns/net")
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { n.f.Close() })
	return n
}

// onThread runs f on a separate thread, which ends when f returns.
func onThread(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	ok := false
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
		ok = true
	}()
	if <-done; !ok {
		t.FailNow()
	}
}

// do runs f inside the namespace.
func (n *namespace) do(t testing.TB, f func()) {
	t.Helper()
	onThread(t, func() {
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	})
}

// ip runs the command "ip" with args inside the namespace, and returns its output. The command inherits the descriptors of the
// namespaces in others, numbered from 3.
func (n *namespace) ip(t testing.TB, args string, others ...*namespace) string {
	t.Helper()
	var out []byte
	n.do(t, func() {
		c := exec.Command("ip", strings.Fields(args)...)
		for _, o := range others {
			c.ExtraFiles = append(c.ExtraFiles, o.f)
		}
		var err error
		if out, err = c.CombinedOutput(); err != nil {
			t.Errorf("ip %s: %v\n%s", args, err, out)
		}
	})
	return string(out)
}

// open opens an interface inside the namespace. The interface is closed when the test ends.
func (n *namespace) open(t testing.TB, c Config) *Interface {
	t.Helper()
	var d *Interface
	n.do(t, func() {
		var err error
		if d, err = Open(c); err != nil {
			t.Error(err)
		}
	})
	if d == nil {
		t.FailNow()
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

// up adds the addresses to d, which is in the namespace, and brings d up. It prevents a link-local IPv6 address, so that the
// kernel sends no packets by itself.
func (n *namespace) up(t testing.TB, d *Interface, addresses ...string) {
	t.Helper()
	name := d.Name()
	n.ip(t, "link set lo up")
	n.ip(t, "link set "+name+" addrgenmode none")
	for _, a := range addresses {
		n.ip(t, "address add "+a+" dev "+name+" "+map[bool]string{true: "nodad"}[strings.Contains(a, ":")])
	}
	n.ip(t, "link set "+name+" up")
	// After an IPv6 address was added, the kernel accepts packets to this address only after a delay.
	testkit.Eventually(t, "the kernel accepts packets to the new addresses", func() bool {
		local := n.ip(t, "-6 route show table local dev "+name)
		return !slices.ContainsFunc(addresses, func(a string) bool {
			a, _, _ = strings.Cut(a, "/")
			return strings.Contains(a, ":") && !strings.Contains(local, "local "+a+" ")
		})
	})
}

// join forwards packets between two interfaces in both directions, until the interfaces are closed. If tap is not nil, join
// calls it with each batch.
func join(t testing.TB, a, b *Interface, tap func(from wireguard.PacketSource, b *wireguard.Batch)) {
	carry := func(from, to *Interface, s wireguard.PacketSource) {
		b := new(wireguard.Batch)
		var pkts [][]byte
		for {
			err := s.ReadPackets(b)
			if tap != nil {
				tap(s, b)
			}
			pkts = pkts[:0]
			for i := range b.Len() {
				pkts = append(pkts, b.Packet(i))
			}
			_, _ = to.WritePackets(pkts)
			b.Reset()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("reading %s: %v", from.Name(), err)
				}
				return
			}
		}
	}
	done := make(chan struct{})
	n := 0
	start := func(from, to *Interface) {
		for _, s := range from.Queues() {
			n++
			go func() {
				carry(from, to, s)
				done <- struct{}{}
			}()
		}
	}
	start(a, b)
	start(b, a)
	t.Cleanup(func() {
		a.Close()
		b.Close()
		for range n {
			<-done
		}
	})
}

// A link consists of two namespaces, each of which has an interface wg0 with an IPv4 and an IPv6 address:
//
//	x: 10.9.0.1, fd09::1  wg0 ══ join ══ wg0  y: 10.9.0.2, fd09::2
type link struct {
	x, y *namespace
	a, b *Interface
}

func newLink(t testing.TB, c Config) link {
	l := link{x: newNamespace(t), y: newNamespace(t)}
	c.Name = "wg0"
	l.a, l.b = l.x.open(t, c), l.y.open(t, c)
	l.x.up(t, l.a, "10.9.0.1/24", "fd09::1/64")
	l.y.up(t, l.b, "10.9.0.2/24", "fd09::2/64")
	return l
}

func (l link) address(v6 bool) string {
	if v6 {
		return "fd09::2"
	}
	return "10.9.0.2"
}
