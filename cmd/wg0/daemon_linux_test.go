package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/tun"
	"github.com/seed-86b749af/wireguard/uapi"
)

// TestBackground checks that wg can query the daemon as soon as the parent has exited and stdout and stderr are closed, and
// that SIGTERM and SIGINT stop the daemon and leave nothing behind.
func TestBackground(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		s := newSpace(t)
		needs(t, "wg")
		iface := unique("w")
		s.endAfter(iface)
		if out := s.must(built(t), iface); strings.Contains(out, "level=ERROR") { // must returns when stdout and stderr are closed
			t.Errorf("the daemon logs an error:\n%s", out)
		}
		if out := s.must("wg", "show", iface); !strings.HasPrefix(out, "interface: "+iface) {
			t.Errorf("wg show prints %s, want the interface", out)
		}
		info, err := os.Stat(socketPath(iface))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the control socket is %v, %v, want mode 0600", info, err)
		}
		if out, code := s.run(built(t), iface); code != 1 || !strings.HasPrefix(out, "wg0: ") || strings.Count(out, "\n") != 1 {
			t.Errorf("a second daemon: exit status %d, want 1 and an error of one line:\n%s", code, out)
		}
		s.daemonOf(iface).Signal(signal)
		s.wantGone(iface)
	}
}

// TestLogOfBackground checks that with LOG_LEVEL set, the daemon still logs after the parent has exited.
func TestLogOfBackground(t *testing.T) {
	s := newSpace(t)
	iface := unique("w")
	s.endAfter(iface)
	s.env = append(s.env, "LOG_LEVEL=debug")
	log := filepath.Join(s.dir, "log")
	s.must("sh", "-c", built(t)+" "+iface+" 2>"+log)
	s.daemonOf(iface).Signal(syscall.SIGTERM)
	s.wantGone(iface)
	b, _ := os.ReadFile(log)
	for _, want := range []string{"msg=ready", "stopped by a signal", "msg=stopped"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the log does not say %q:\n%s", want, b)
		}
	}
}

// TestEnds checks that the daemon exits with 0 when its interface is deleted and when its socket is removed.
func TestEnds(t *testing.T) {
	for _, how := range []string{"interface", "socket"} {
		s := newSpace(t)
		iface := unique("w")
		s.endAfter(iface)
		f := s.front(built(t), "-f", iface)
		f.wantLog(t, "msg=ready")
		if how == "interface" {
			s.must("ip", "link", "delete", iface)
		} else if err := os.Remove(socketPath(iface)); err != nil {
			t.Fatal(err)
		}
		f.wantExit(t, 0)
		s.wantGone(iface)
	}
}

// TestNetworkChange checks that a daemon without a file wakes its device after a change of the network. One change may
// happen before the daemon knows the network, so the test makes several.
func TestNetworkChange(t *testing.T) {
	s := newSpace(t)
	iface := unique("w")
	s.endAfter(iface)
	f := s.front("env", "LOG_LEVEL=debug", built(t), "-f", iface)
	f.wantLog(t, "msg=ready")
	s.must("sh", "-c", "for i in 1 2 3; do ip addr add 192.0.2.$i/32 dev lo && sleep 0.7; done")
	f.wantLog(t, "the network changed")
	s.must("ip", "link", "delete", iface)
	f.wantExit(t, 0)
}

// TestFailedSocket checks that the daemon exits with an error when its control socket stops accepting.
func TestFailedSocket(t *testing.T) {
	s := newSpace(t)
	iface := unique("w")
	s.endAfter(iface)
	tun, socket := s.openInside(iface)
	f := &front{Cmd: s.command("sh", "-c", "WG_TUN_FD=3 WG_UAPI_FD=4 exec "+built(t)+" -f "+iface), log: new(lockedBuffer), exit: make(chan error, 1)}
	f.Stdout, f.Stderr, f.ExtraFiles = f.log, f.log, []*os.File{tun, socket}
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { f.exit <- f.Wait() }()
	f.wantLog(t, "msg=ready")
	if err := unix.Shutdown(int(socket.Fd()), unix.SHUT_RD); err != nil {
		t.Fatal(err)
	}
	f.wantExit(t, exitFailed)
	f.wantLog(t, `level=ERROR msg="the control socket of `+iface+` failed: `)
}

// A brokenTunnel returns an error from each read.
type brokenTunnel struct{ err error }

func (b brokenTunnel) ReadPackets(*wireguard.Batch) error      { return b.err }
func (b brokenTunnel) WritePackets(pkts [][]byte) (int, error) { return len(pkts), nil }
func (b brokenTunnel) MTU() int                                { return 1420 }
func (b brokenTunnel) Close() error                            { return nil }

// TestWait checks that wait returns an error unless a user stopped the daemon.
func TestWait(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name             string
		device, accepted error
		signal           bool
		want             error
	}{
		{name: "a signal", signal: true},
		{name: "an interface that was deleted", device: fmt.Errorf("read: %w", tun.ErrDeleted)},
		{name: "a tunnel that failed", device: broken, want: broken},
		{name: "a socket that was removed", accepted: fmt.Errorf("accept: %w", os.ErrNotExist)},
		{name: "a socket that failed", accepted: broken, want: broken},
	} {
		d := &daemon{log: slog.New(slog.DiscardHandler), tun: new(tun.Interface), served: make(chan error, 1)}
		var tunnel wireguard.Tunnel = pipe.NewTunnel(0)
		if c.device != nil {
			tunnel = brokenTunnel{c.device}
		}
		var err error
		d.device, err = wireguard.New(wireguard.Config{Tunnel: tunnel, Bind: pipe.NewNetwork(pipe.Config{}).NewEnd(netip.MustParseAddr("192.0.2.1"))})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.device.Up(); err != nil && c.device == nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if c.signal {
			cancel()
		}
		if c.accepted != nil {
			d.served <- c.accepted
		}
		if err := d.wait(ctx); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: wait returns %v, want %v", c.name, err, c.want)
		}
		cancel()
		d.device.Close()
	}
}

// TestLogLevel checks that wg0 accepts the values of wireguard-go, and that it runs with an unknown value.
func TestLogLevel(t *testing.T) {
	for v, want := range map[string]slog.Level{"verbose": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "": slog.LevelInfo,
		"error": slog.LevelError, "silent": 100, "loud": slog.LevelInfo} {
		t.Setenv("LOG_LEVEL", v)
		if got, known := logLevel(); got != want || known != (v != "loud") {
			t.Errorf("LOG_LEVEL %q means level %v, known: %v; want the level of the table, and only loud unknown", v, got, known)
		}
	}
	s := newSpace(t)
	iface := unique("w")
	s.endAfter(iface)
	s.env = append(s.env, "LOG_LEVEL=loud")
	f := s.front(built(t), "-f", iface)
	f.wantLog(t, `level=WARN msg="unknown LOG_LEVEL, using info; set it to verbose, debug, info, error or silent" LOG_LEVEL=loud`)
	f.wantLog(t, "msg=ready")
	s.daemonOf(iface).Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
}

// TestForegroundByEnvironment checks that WG_PROCESS_FOREGROUND=1 has the effect of -f, that wg0 writes the name that the system
// chose to WG_TUN_NAME_FILE, and that LOG_LEVEL=silent silences the log.
func TestForegroundByEnvironment(t *testing.T) {
	s := newSpace(t)
	file := filepath.Join(s.dir, "name")
	s.env = append(s.env, "WG_PROCESS_FOREGROUND=1", "WG_TUN_NAME_FILE="+file, "LOG_LEVEL=silent")
	prefix := unique("w") + "x"
	s.endAfter(prefix)
	f := s.front(built(t), prefix+"%d")
	testkit.Eventually(t, "wg0 writes the interface's name to WG_TUN_NAME_FILE", func() bool { b, _ := os.ReadFile(file); return strings.HasSuffix(string(b), "\n") })
	b, _ := os.ReadFile(file)
	if string(b) != prefix+"0\n" {
		t.Errorf("WG_TUN_NAME_FILE contains %q, want the name that the system chose", b)
	}
	if !s.exists(prefix + "0") {
		t.Error("the interface whose name wg0 wrote does not exist")
	}
	s.daemonOf(prefix).Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
	if f.log.String() != "" {
		t.Errorf("with LOG_LEVEL=silent, the daemon logs %s", f.log)
	}
}

// TestOptions checks that WG0_QUEUES and WG0_OFFLOAD affect the interface, and that WG0_OFFLOAD affects the sockets.
func TestOptions(t *testing.T) {
	s := newSpace(t)
	for _, c := range []struct {
		env        string
		want, wont string
	}{
		{"LOG_LEVEL=info", "vnet_hdr on", "multi_queue"},
		{"WG0_OFFLOAD=1", "vnet_hdr on", "multi_queue"},
		{"WG0_OFFLOAD=0", "vnet_hdr off", "vnet_hdr on"},
		{"WG0_QUEUES=3", "numqueues 3", "vnet_hdr off"},
		{"WG0_QUEUES=1", "vnet_hdr on", "multi_queue"},
	} {
		iface := unique("w")
		s.endAfter(iface)
		s.env = []string{c.env}
		f := s.front(built(t), "-f", iface)
		f.wantLog(t, "msg=ready")
		if out := s.must("ip", "-d", "link", "show", "dev", iface); !strings.Contains(out, c.want) || strings.Contains(out, c.wont) {
			t.Errorf("%s: ip must show %s and not %s:\n%s", c.env, c.want, c.wont, out)
		}
		s.daemonOf(iface).Signal(syscall.SIGTERM)
		f.wantExit(t, 0)
	}
	t.Setenv(envOffload, "0")
	if o, err := readOptions(); err != nil || !o.bind().NoOffload {
		t.Errorf("with WG0_OFFLOAD=0, the sockets still use offload, or readOptions fails: %v", err)
	}
	iface := unique("w")
	tun, _ := s.openInside(iface)
	if _, err := (options{queues: 2}).tun(iface, inherited{tun: tun}); err == nil || !strings.Contains(err.Error(), "an inherited interface has one queue") {
		t.Errorf("two queues for an inherited interface: %v, want an error", err)
	}
}

// inside runs f on a thread inside the namespace.
func (s *space) inside(f func() error) {
	s.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := os.Open("/var/run/netns/" + s.name)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		s.Fatal(err)
	}
}

// openInside opens a TUN and a control socket for a daemon to inherit.
func (s *space) openInside(iface string) (tun, socket *os.File) {
	s.Helper()
	s.inside(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		tun = os.NewFile(uintptr(fd), "tun")
		r, err := unix.NewIfreq(iface)
		if err != nil {
			return err
		}
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	})
	l, err := uapi.Listen(iface)
	if err != nil {
		s.Fatal(err)
	}
	socket, err = l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { tun.Close(); socket.Close(); l.Close() })
	return tun, socket
}

// TestInheritedDescriptors checks that the daemon uses a TUN and a socket that another program opened, in the foreground and
// in the background. The test passes the descriptors with WG_TUN_FD and WG_UAPI_FD, and then as a service manager passes them.
func TestInheritedDescriptors(t *testing.T) {
	needs(t, "wg")
	for _, how := range []string{"environment", "service manager", "background"} {
		s := newSpace(t)
		iface := unique("w")
		s.endAfter(iface)
		tun, socket := s.openInside(iface)
		script := "WG_TUN_FD=3 WG_UAPI_FD=4 exec " + built(t) + " -f " + iface
		switch how {
		case "service manager":
			script = "LISTEN_PID=$$ LISTEN_FDS=2 exec " + built(t) + " -f " + iface
		case "background":
			script = "WG_TUN_FD=3 WG_UAPI_FD=4 exec " + built(t) + " " + iface
		}
		f := &front{Cmd: s.command("sh", "-c", script), log: new(lockedBuffer), exit: make(chan error, 1)}
		f.Stdout, f.Stderr, f.ExtraFiles = f.log, f.log, []*os.File{tun, socket}
		if err := f.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { f.exit <- f.Wait() }()
		if how == "background" {
			f.wantExit(t, 0)
		} else {
			f.wantLog(t, "msg=ready")
		}
		tun.Close()
		socket.Close()
		if out := s.must("wg", "show", iface); !strings.HasPrefix(out, "interface: "+iface) {
			t.Errorf("%s: wg show prints %s, want the interface", how, out)
		}
		s.daemonOf(iface).Signal(syscall.SIGTERM)
		s.wantGone(iface)
	}
}

// TestServiceManager checks that the daemon reports its start and its stop to the service manager.
func TestServiceManager(t *testing.T) {
	s := newSpace(t)
	iface := unique("w")
	s.endAfter(iface)
	path := filepath.Join(s.dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetReadDeadline(time.Now().Add(20 * time.Second))
	s.env = append(s.env, "NOTIFY_SOCKET="+path)
	f := s.front(built(t), "-f", iface)
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		b := make([]byte, 100)
		n, err := l.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("the service manager receives %q, %v, want %s", b[:n], err, want)
		}
		if want == "READY=1" {
			if !s.exists(iface) {
				t.Error("the daemon reports READY=1 before its interface exists")
			}
			s.daemonOf(iface).Signal(syscall.SIGTERM)
		}
	}
	f.wantExit(t, 0)
}

// ports returns the local ports of the UDP sockets in the namespace.
func (s *space) ports() string {
	var ports []string
	for _, file := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		for line := range strings.Lines(s.must("cat", file)) {
			var n int
			var addr string
			var port uint16
			if _, err := fmt.Sscanf(strings.ReplaceAll(line, ":", " "), "%d %s %x", &n, &addr, &port); err == nil {
				ports = append(ports, fmt.Sprint(port))
			}
		}
	}
	return strings.Join(ports, " ")
}

// TestUpAndDown checks that an interface that is down has no open port, and that it opens its configured port when it is up again.
// If another program has taken the port, the log says so, and the tunnel comes up when the port is free.
func TestUpAndDown(t *testing.T) {
	s := newSpace(t)
	needs(t, "wg")
	iface := unique("w")
	s.endAfter(iface)
	f := s.front(built(t), "-f", iface)
	f.wantLog(t, "msg=ready")
	s.must("wg", "set", iface, "listen-port", "5555")
	if p := s.ports(); p != "" {
		t.Errorf("ports %s are open before the interface is up", p)
	}
	const open = "5555 5555"
	for range 2 {
		s.must("ip", "link", "set", iface, "up")
		testkit.Eventually(t, "the port is open", func() bool { return s.ports() == open })
		s.must("ip", "link", "set", iface, "down")
		testkit.Eventually(t, "the port is closed", func() bool { return s.ports() == "" })
	}
	var taken *net.UDPConn
	s.inside(func() (err error) {
		taken, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 5555})
		return err
	})
	s.must("ip", "link", "set", iface, "up")
	f.wantLog(t, `level=ERROR msg="the interface is up, but the tunnel is not; wg0 keeps trying" err="listen on port 5555: udp: port 5555 is taken `+
		`by another socket; close that socket, or listen on another port, or on 0 for any: listen udp4 0.0.0.0:5555: bind: address already in use"`+"\n")
	taken.Close()
	testkit.Eventually(t, "the port is open", func() bool { return s.ports() == open })
	s.daemonOf(iface).Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
}

// TestControlFaults checks that an invalid control line changes nothing and causes one sentence in the log, without the key in
// that line. It also checks that wg set reports the system's error for a port in use, whether the interface is up or still
// down, as when wg-quick configures it.
func TestControlFaults(t *testing.T) {
	s := newSpace(t)
	needs(t, "wg")
	iface := unique("w")
	s.endAfter(iface)
	f := s.front(built(t), "-f", iface)
	f.wantLog(t, "msg=ready")
	secret := strings.Repeat("5eC2e7", 11)[:64]
	for _, request := range []string{
		"set=1\nlisten_port=77\nprivate_key=" + secret[1:] + "\n\n",
		"set=1\nlisten_port=77\nprivte_key=" + secret + "\n\n",
		"set=1\nlisten_port=77\n" + secret + "\n\n",
	} {
		c, err := net.Dial("unix", socketPath(iface))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprint(c, request)
		b := make([]byte, 100)
		n, err := c.Read(b)
		c.Close()
		if err != nil || !strings.HasPrefix(string(b[:n]), "errno=-") {
			t.Errorf("the daemon answers %q with %q, %v, want an error number", request, b[:n], err)
		}
	}
	testkit.Eventually(t, "the log has three refused requests", func() bool { return strings.Count(f.log.String(), "control request refused") == 3 })
	if strings.Contains(f.log.String(), secret[1:20]) {
		t.Errorf("the log contains a key:\n%s", f.log)
	}
	if out := s.must("wg", "show", iface, "listen-port"); out != "0\n" {
		t.Errorf("the daemon carried out a part of a refused request: the port is %s, want 0", out)
	}
	s.inside(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 6666})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	config := s.write("setconf", "[Interface]\nListenPort = 6666\n", 0o600)
	for _, state := range []string{"down", "up"} {
		s.must("ip", "link", "set", iface, state)
		if state == "up" {
			testkit.Eventually(t, "the tunnel is up", func() bool { return s.ports() != "6666" })
		}
		for _, args := range [][]string{{"set", iface, "listen-port", "6666"}, {"setconf", iface, config}} {
			if out, code := s.run(append([]string{"wg"}, args...)...); code == 0 || !strings.Contains(out, "Address already in use") {
				t.Errorf("interface %s: wg %s with a port in use exits with status %d, %s, want the error Address already in use", state, args[0], code, out)
			}
		}
		if state == "down" && s.ports() != "6666" {
			t.Errorf("ports %s are open while the interface is down", s.ports())
		}
	}
	s.daemonOf(iface).Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
}
