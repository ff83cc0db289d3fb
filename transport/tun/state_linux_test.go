//go:build linux && !android

package tun

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/sys/unix"
)

// wantState waits until the channel of States returns s. It ignores other states before s.
func wantState(t *testing.T, d *Interface, s State, why string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for now := (State{}); ; {
		select {
		case next, ok := <-d.States():
			if !ok {
				t.Fatalf("%s: the channel of States was closed after %+v, want %+v before", why, now, s)
			}
			if now = next; now == s {
				if d.MTU() != s.MTU || d.Name() != s.Name {
					t.Errorf("%s: the interface has the MTU %d and the name %q, want those of %+v", why, d.MTU(), d.Name(), s)
				}
				return
			}
		case <-limit:
			t.Fatalf("%s: after 10 s, the last state is %+v, want %+v", why, now, s)
		}
	}
}

// wantEnd waits until the interface has ended and checks that Err returns err.
func wantEnd(t *testing.T, d *Interface, err error) {
	t.Helper()
	testkit.Next(t, d.Done(), "the interface ends")
	for range d.States() {
	}
	if !errors.Is(d.Err(), err) || (err == nil) != (d.Err() == nil) {
		t.Errorf("the interface ended with %v, want %v", d.Err(), err)
	}
}

// TestStates checks that an Interface reports the changes that an administrator makes to it, such as up and down, another MTU,
// another name or another namespace.
func TestStates(t *testing.T) {
	here, there := newNamespace(t), newNamespace(t)
	d := here.open(t, Config{Name: "wg%d"})
	wantState(t, d, State{MTU: 1420, Name: "wg0"}, "after Open")
	here.ip(t, "link set wg0 up")
	wantState(t, d, State{Up: true, MTU: 1420, Name: "wg0"}, "after up")
	here.ip(t, "link set wg0 mtu 1280")
	wantState(t, d, State{Up: true, MTU: 1280, Name: "wg0"}, "after a change of the MTU")
	here.ip(t, "link set wg0 down")
	wantState(t, d, State{MTU: 1280, Name: "wg0"}, "after down")
	here.ip(t, "link set wg0 name renamed")
	wantState(t, d, State{MTU: 1280, Name: "renamed"}, "after the interface was renamed")

	// Another interface gets the old name. The follower must not report the state of this interface as that of the renamed one.
	other := here.open(t, Config{Name: "wg0", MTU: 9000})
	here.ip(t, "link set wg0 up")
	here.ip(t, "link set renamed mtu 1300")
	wantState(t, d, State{MTU: 1300, Name: "renamed"}, "another interface has the old name")
	wantState(t, other, State{Up: true, MTU: 9000, Name: "wg0"}, "the interface that has the old name")

	// The kernel sets an interface down when it moves to another namespace.
	here.ip(t, "link set renamed up")
	here.ip(t, "link set renamed netns /proc/self/fd/3", there)
	there.ip(t, "link set renamed mtu 1301")
	wantState(t, d, State{MTU: 1301, Name: "renamed"}, "after a move to another namespace")
	there.ip(t, "link set renamed up")
	wantState(t, d, State{Up: true, MTU: 1301, Name: "renamed"}, "up in another namespace")
	there.ip(t, "link set renamed name wg0")
	there.ip(t, "link set wg0 netns /proc/self/fd/3 name back", here)
	here.ip(t, "link set back mtu 1302")
	wantState(t, d, State{MTU: 1302, Name: "back"}, "after the move back")

	here.ip(t, "link delete back")
	wantEnd(t, d, ErrDeleted)
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	wantEnd(t, other, nil)
}

// TestStatesLatest checks that a goroutine that reads States late receives only the latest state. The follower must not wait
// for that goroutine.
func TestStatesLatest(t *testing.T) {
	n := newNamespace(t)
	d := n.open(t, Config{Name: "wg0"})
	for _, mtu := range []string{"1000", "1100", "1200"} {
		n.ip(t, "link set wg0 mtu "+mtu)
	}
	testkit.Eventually(t, "the MTU is 1200, the last that was set", func() bool { return d.MTU() == 1200 })
	if s := <-d.States(); s.MTU != 1200 {
		t.Errorf("a late reader of States received %+v, want the latest state, with an MTU of 1200", s)
	}
}

// TestStatesPolled checks that an Interface reports changes without netlink.
func TestStatesPolled(t *testing.T) {
	n := newNamespace(t)
	d := n.open(t, Config{Name: "wg0"})
	d.mu.Lock()
	d.place.netlink.Close()
	d.mu.Unlock()
	n.ip(t, "link set wg0 mtu 1280")
	testkit.Eventually(t, "the MTU is 1280", func() bool { return d.MTU() == 1280 })
}

// TestDeleted checks that a read fails with ErrDeleted if the interface is deleted meanwhile, and that later reads and writes
// fail with ErrDeleted too.
func TestDeleted(t *testing.T) {
	n := newNamespace(t)
	d := n.open(t, Config{Name: "wg0"})
	n.up(t, d, "10.9.0.1/24")
	read := make(chan error, 1)
	go func() { read <- d.Queues()[0].ReadPackets(new(wireguard.Batch)) }()
	n.ip(t, "link delete wg0")
	if err := testkit.Next(t, read, "ReadPackets returns"); !errors.Is(err, ErrDeleted) || errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadPackets returned %v, want ErrDeleted and not net.ErrClosed", err)
	}
	wantEnd(t, d, ErrDeleted)
	if got, err := d.WritePackets(train(false, true, 1, 3, 100)); got != 0 || !errors.Is(err, ErrDeleted) {
		t.Errorf("WritePackets after the deletion: %d packets, error %v; want 0 and ErrDeleted", got, err)
	}
	if err := d.Queues()[0].ReadPackets(new(wireguard.Batch)); !errors.Is(err, ErrDeleted) {
		t.Errorf("second ReadPackets: error %v, want ErrDeleted", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if !errors.Is(d.Err(), ErrDeleted) {
		t.Errorf("after Close, Err returns %v, want ErrDeleted", d.Err())
	}
}

// TestDeletedUnread checks that the follower notices that an interface is deleted, even while no goroutine reads the interface.
func TestDeletedUnread(t *testing.T) {
	n := newNamespace(t)
	d := n.open(t, Config{Name: "wg0"})
	n.ip(t, "link delete wg0")
	wantEnd(t, d, ErrDeleted)
}

// descriptors returns the names of the sockets, TUNs and network namespaces that this process has open.
func descriptors(t *testing.T) (all []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if at, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil && (strings.HasPrefix(at, "socket:") || at == path || strings.HasPrefix(at, "net:")) {
			all = append(all, at)
		}
	}
	slices.Sort(all)
	return all
}

// TestClose checks that no goroutine, descriptor or interface exists after Close, whatever the state of the interface was.
// Several goroutines call Close at the same time.
func TestClose(t *testing.T) {
	n, other := newNamespace(t), newNamespace(t)
	before, goroutines := descriptors(t), runtime.NumGoroutine()
	for _, x := range []struct {
		state string
		do    func(d *Interface)
	}{
		{"down", func(*Interface) {}},
		{"up", func(*Interface) { n.ip(t, "link set wg0 up") }},
		{"deleted", func(*Interface) { n.ip(t, "link delete wg0") }},
		{"moved", func(*Interface) { n.ip(t, "link set wg0 netns /proc/self/fd/3", other) }},
	} {
		d := n.open(t, Config{Name: "wg0", Queues: 2})
		read := make(chan error)
		for _, q := range d.Queues() {
			go func() {
				for {
					if err := q.ReadPackets(new(wireguard.Batch)); err != nil {
						read <- err
						return
					}
				}
			}()
		}
		x.do(d)
		closed := make(chan error)
		for range 3 {
			go func() { closed <- d.Close() }()
		}
		for range 3 {
			if err := <-closed; err != nil {
				t.Errorf("%s: Close: %v", x.state, err)
			}
		}
		for range d.Queues() {
			if err := <-read; !errors.Is(err, net.ErrClosed) && !errors.Is(err, ErrDeleted) {
				t.Errorf("%s: ReadPackets ended with %v, want net.ErrClosed or ErrDeleted", x.state, err)
			}
		}
		if _, err := d.WritePackets(train(false, true, 1, 3, 100)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: WritePackets after Close: error %v, want net.ErrClosed", x.state, err)
		}
		testkit.Eventually(t, x.state+": no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
		if after := descriptors(t); !slices.Equal(before, after) {
			t.Errorf("%s: descriptors %v are open, want %v as before the test", x.state, after, before)
		}
		if x.state != "deleted" {
			testkit.Eventually(t, x.state+": the interface no longer exists", func() bool {
				return !strings.Contains(n.ip(t, "-o link"), "wg0") && !strings.Contains(other.ip(t, "-o link"), "wg0")
			})
		}
	}
}

// TestInherited checks that Open accepts a descriptor that another program opened, and does not change the MTU or the state of
// the interface. It also checks the errors of Open for wrong values in a Config.
func TestInherited(t *testing.T) {
	n := newNamespace(t)
	for _, offload := range []bool{false, true} {
		flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if offload {
			flags |= unix.IFF_VNET_HDR
		}
		f := inherit(t, n, flags)
		n.ip(t, "link set wg5 mtu 1333")
		n.ip(t, "link set wg5 up")
		// This call runs outside the namespace of the interface. Open finds the namespace with the help of the descriptor.
		d, err := Open(Config{File: f})
		if err != nil {
			t.Fatal(err)
		}
		wantState(t, d, State{Up: true, MTU: 1333, Name: "wg5"}, "after Open of an inherited descriptor")
		if f.Fd() != ^uintptr(0) {
			t.Error("Open did not close the file that it was given")
		}
		n.ip(t, "link set wg5 mtu 1334")
		wantState(t, d, State{Up: true, MTU: 1334, Name: "wg5"}, "after a change of the MTU by an administrator")
		if (d.header > 0) != offload {
			t.Errorf("packets have a header of %d bytes, with offload: %v; want a header exactly with offload", d.header, offload)
		}
		n.ip(t, "address add 10.9.5.1/24 dev wg5")
		ping(t, n, d, "10.9.5.2")
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	f := inherit(t, n, unix.IFF_TAP|unix.IFF_NO_PI)
	defer f.Close()
	if _, err := Open(Config{File: f}); err == nil || !strings.Contains(err.Error(), "IFF_TUN") {
		t.Errorf("Open of an Ethernet interface: error %v, want one that mentions IFF_TUN", err)
	}
	if f.Fd() == ^uintptr(0) {
		t.Error("Open failed and closed the caller's file")
	}
	for what, c := range map[string]Config{
		"one queue":          {File: f, Queues: 2},
		"the descriptor":     {File: os.Stdin},
		"not between 0":      {Queues: 257},
		"not between 68":     {MTU: 70000},
		"longer than":        {Name: "a-name-of-16-byte"},
		"is not valid for":   {Name: "a b"},
		"only in one %d":     {Name: "wg%s"},
		"setting the MTU of": {Name: "wg0", MTU: 60},
	} {
		n.do(t, func() {
			if d, err := Open(c); err == nil || !strings.Contains(err.Error(), what) || !strings.HasPrefix(err.Error(), "tun: ") {
				t.Errorf("Open(%+v): error %v, want one of this package that names the cause", c, err)
				if err == nil {
					d.Close()
				}
			}
		})
	}
}

// inherit makes the interface wg5 in n, and returns its descriptor.
func inherit(t *testing.T, n *namespace, flags uint16) *os.File {
	t.Helper()
	var f *os.File
	n.do(t, func() {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		r, _ := unix.NewIfreq("wg5")
		r.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
			t.Fatal(err)
		}
		f = os.NewFile(uintptr(fd), "inherited")
	})
	return f
}

// ping sends a datagram from a socket of the namespace to the address to, and reads it from the interface d.
func ping(t *testing.T, n *namespace, d *Interface, to string) {
	t.Helper()
	n.do(t, func() {
		c, err := net.Dial("udp", net.JoinHostPort(to, "9"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello, hello")); err != nil {
			t.Fatal(err)
		}
	})
	b := new(wireguard.Batch)
	for {
		if err := d.Queues()[0].ReadPackets(b); err != nil {
			t.Fatal(err)
		}
		for i := range b.Len() {
			if p := b.Packet(i); p[0] == 0x45 && p[9] == 17 {
				s := shape{l3: 20, l4: 28, udp: true}
				if string(p[28:]) != "hello, hello" || checksum(s.pseudo(p), p[20:]) != 0 {
					t.Fatalf("ReadPackets returned %x, want the datagram that was sent, with a valid checksum", p)
				}
				b.Reset()
				return
			}
		}
		b.Reset()
	}
}

// TestTaken checks that the error of Open says why a name cannot be used, and that Open can use a TUN that exists and is not
// open.
func TestTaken(t *testing.T) {
	n := newNamespace(t)
	n.open(t, Config{Name: "wg0"})
	n.ip(t, "link add bridge0 type bridge")
	n.ip(t, "tuntap add own mode tun")
	n.do(t, func() {
		for _, x := range []struct {
			c    Config
			want string
			err  error
		}{
			{Config{Name: "wg0"}, "another program has", unix.EBUSY},
			{Config{Name: "bridge0"}, "is not a TUN", unix.EINVAL},
			{Config{Name: "own", Queues: 2}, "with several queues", unix.EINVAL},
		} {
			if d, err := Open(x.c); !errors.Is(err, x.err) || !strings.Contains(err.Error(), x.want) {
				t.Errorf("Open(%+v): error %v, want one that says why the name cannot be used", x.c, err)
				if err == nil {
					d.Close()
				}
			}
		}
	})
	own := n.open(t, Config{Name: "own"})
	wantState(t, own, State{MTU: 1420, Name: "own"}, "Open of a TUN that exists")
	if err := own.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(n.ip(t, "link show own"), "own") {
		t.Error("Close deleted a persistent TUN that another program had made")
	}
}
