//go:build linux

package kernel

import (
	"bufio"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard/internal/netlab"
)

var long = flag.Bool("long", false, "also run the tests that wait for minutes on the kernel's clock")

const (
	bootTimeout   = 90 * time.Second // booting takes 2 to 7 s, and longer on busy cores
	scriptTimeout = 40 * time.Second
	guestPort     = 51820 // the kernel's UDP port; QEMU's user network forwards datagrams to it
)

// All tests of a run except TestDaemon share one machine. The first test that needs the machine boots it.
var (
	boot      sync.Once
	booted    *machine
	bootError error
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(daemonEnv) != "" {
		if err := netlab.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	status := m.Run()
	if booted != nil {
		booted.close()
	}
	if err := goleak.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// A machine is a QEMU process that runs a Linux kernel. The method close ends QEMU. QEMU also ends when the process that started
// it ends for any reason.
type machine struct {
	cmd *exec.Cmd
	dir string // contains QEMU's files; close removes it
	// UDP port of 127.0.0.1 that QEMU forwards to guestPort
	port uint16
	// The network namespace in which QEMU runs, and in which the TAP hostTAP is connected to eth1. If host is nil, QEMU runs in the
	// namespace of the test, and the socket in the field wire is connected to eth1.
	host    *netlab.Host
	wire    *wire
	bootIn  time.Duration
	exited  chan struct{} // closed once QEMU has ended
	exitErr error

	mu     sync.Mutex // guards the fields below; held while a script runs, so only one runs at a time
	in     *os.File
	out    *os.File
	lines  *bufio.Reader
	number int
	broken error // why the machine no longer works
}

// guest returns the machine. It skips the test if the host cannot run a machine.
func guest(t *testing.T) *machine {
	t.Helper()
	boot.Do(func() {
		img, err := makeImage()
		if err != nil {
			bootError = err
			return
		}
		// Try three times, because another process may take the forwarded port before QEMU opens it.
		for range 3 {
			if booted, bootError = start(img, nil); bootError == nil {
				t.Logf("the kernel booted in %v", booted.bootIn)
				return
			}
		}
	})
	if bootError != nil {
		if strings.HasPrefix(bootError.Error(), "needs ") {
			t.Skip(bootError)
		}
		t.Fatal(bootError)
	}
	return booted
}

// start boots a machine. If host is not nil, QEMU runs in the network namespace of that host.
func start(img *image, host *netlab.Host) (*machine, error) {
	dir, err := os.MkdirTemp("", "kernel-peer-")
	if err != nil {
		return nil, err
	}
	m := &machine{dir: dir, port: freePort(), host: host, exited: make(chan struct{})}
	began := time.Now()
	if err := m.run(img); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if _, err := m.answer(0, bootTimeout); err != nil {
		return nil, errors.Join(fmt.Errorf("the kernel did not boot: %w\n%s", err, m.console()), m.close())
	}
	m.bootIn = time.Since(began)
	os.Remove(filepath.Join(dir, "initramfs")) // QEMU has loaded it; without it, a killed test leaves only small files behind
	out, err := m.script(`ip addr add 10.0.2.15/24 dev eth0
ip addr add 10.9.0.2/24 dev eth1
sysctl -qw net.ipv6.conf.all.accept_ra=0 net.ipv6.conf.eth1.accept_dad=0 net.ipv4.conf.eth1.promote_secondaries=1
ip link set eth0 up && ip link set eth1 up
ip -6 addr add fd09::2/64 dev eth1 nodad
ip neigh add 10.9.0.1 lladdr ` + hostMAC.String() + ` dev eth1 nud permanent
ip neigh add fd09::1 lladdr ` + hostMAC.String() + ` dev eth1 nud permanent
ip neigh add 10.9.0.3 lladdr ` + hostMAC.String() + ` dev eth1 nud permanent`)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up the machine's networks: %w\n%s", err, out), m.close())
	}
	return m, nil
}

// run starts QEMU. The kernel's console output goes to a file. Scripts and their output use a virtio port which, unlike a serial
// line, loses no bytes. If m.host is nil, eth1 is connected to m.wire, and otherwise to the TAP of that host.
func (m *machine) run(img *image) error {
	initramfs := filepath.Join(m.dir, "initramfs")
	if err := os.WriteFile(initramfs, img.initramfs, 0o600); err != nil {
		return err
	}
	eth1, frames, qemus := "tap,id=n1,ifname="+hostTAP+",script=no,downscript=no", net.Conn(nil), []*os.File(nil)
	if m.host == nil {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		near, far := os.NewFile(uintptr(pair[0]), "wire"), os.NewFile(uintptr(pair[1]), "eth1")
		defer near.Close()
		defer far.Close()
		if frames, err = net.FileConn(near); err != nil {
			return err
		}
		eth1, qemus = "socket,id=n1,fd=3", []*os.File{far}
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdout.Close()
	m.cmd = exec.Command(img.qemu, "-M", "pc", "-accel", "tcg", "-cpu", "qemu64,+ssse3,+rdrand", "-m", "192", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", img.vmlinuz, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on net.ifnames=0",
		"-serial", "file:"+filepath.Join(m.dir, "console"),
		"-chardev", "stdio,id=c0", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=c0",
		"-netdev", fmt.Sprintf("user,id=n0,hostfwd=udp:127.0.0.1:%d-10.0.2.15:%d", m.port, guestPort),
		"-device", "virtio-net-pci,netdev=n0,romfile=",
		"-netdev", eth1, "-device", "virtio-net-pci,netdev=n1,romfile=,mac="+guestMAC.String())
	m.cmd.Stdin, m.cmd.Stdout, m.cmd.ExtraFiles = stdin, stdout, qemus
	stderr, err := os.Create(filepath.Join(m.dir, "stderr"))
	if err != nil {
		return err
	}
	defer stderr.Close()
	m.cmd.Stderr = stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := m.keep(); err != nil {
		return fmt.Errorf("needs qemu-system-x86_64 that starts: %w", err)
	}
	m.in, m.out, m.lines = in, out, bufio.NewReader(out)
	if frames != nil {
		m.wire = newWire(frames)
	}
	return nil
}

// keep starts QEMU on a goroutine that is locked to its thread, and returns. The goroutine then waits until QEMU ends, and so
// keeps the thread: the host's kernel kills QEMU when the thread that started it ends. So QEMU ends with this process at the
// latest.
func (m *machine) keep() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		begin := m.cmd.Start
		if m.host != nil {
			begin = func() error { return m.host.Do(m.cmd.Start) }
		}
		err := begin()
		started <- err
		if err == nil {
			m.exitErr = m.cmd.Wait()
			close(m.exited)
		}
	}()
	return <-started
}

func (m *machine) close() error {
	syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
	<-m.exited
	if m.wire != nil {
		m.wire.close()
	}
	return errors.Join(m.in.Close(), m.out.Close(), os.RemoveAll(m.dir))
}

// console returns the last output of the kernel and QEMU.
func (m *machine) console() string {
	var s strings.Builder
	for _, name := range []string{"console", "stderr"} {
		b, _ := os.ReadFile(filepath.Join(m.dir, name))
		fmt.Fprintf(&s, "%s:\n%s\n", name, b[max(0, len(b)-4000):])
	}
	return s.String()
}

// A statusError is the exit status of a script that failed.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

// script runs a shell script in the machine and returns its output. If the script fails, the error is a statusError. Any other
// error means that the machine no longer works.
func (m *machine) script(s string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return "", m.broken
	}
	// Define functions for the host's programs, because busybox prefers its built-in commands to those in the path.
	s = "ip() { /host/ip \"$@\"; }\nwg() { /host/wg \"$@\"; }\niperf3() { /host/iperf3 \"$@\"; }\nset -e\n" + s + "\n"
	m.number++
	line := fmt.Sprintf("%d %d %s\n", m.number, scriptTimeout/time.Second, base64.StdEncoding.EncodeToString([]byte(s)))
	m.in.SetWriteDeadline(time.Now().Add(scriptTimeout))
	_, err := m.in.WriteString(line)
	var out string
	if err == nil {
		out, err = m.answer(m.number, 2*scriptTimeout)
	}
	if err != nil && !errors.As(err, new(statusError)) {
		m.broken = fmt.Errorf("the machine does not answer: %w\n%s", err, m.console())
		err = m.broken
	}
	return out, err
}

// answer returns the output of the script with the given number. It reads up to the line that marks the end of that output.
func (m *machine) answer(number int, timeout time.Duration) (string, error) {
	m.out.SetReadDeadline(time.Now().Add(timeout))
	var out strings.Builder
	for {
		line, err := m.lines.ReadString('\n')
		if err != nil {
			return out.String() + line, err
		}
		var n, status int
		if _, err := fmt.Sscanf(line, "=== %d %d", &n, &status); err != nil || n != number {
			out.WriteString(line)
			continue
		}
		text := strings.TrimRight(out.String(), "\n")
		if status != 0 {
			return text, statusError(status)
		}
		return text, nil
	}
}

func freePort() uint16 {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}
