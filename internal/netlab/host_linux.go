package netlab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a program that Run or RunWith starts may take, and how long an interface or a server may take to be ready.
const patience = 60 * time.Second

// A Host is a network namespace, with its loopback interface up. NewHost makes it. It is safe for concurrent use.
type Host struct {
	Name string

	namespace *os.File
	closed    sync.Once
}

// NewHost makes a namespace, which "ip -n" knows under the same name. IPv6 addresses are usable at once in it, because duplicate
// address detection is off.
func NewHost(name string) (*Host, error) {
	if err := check(exec.Command("ip", "netns", "add", name)); err != nil {
		return nil, err
	}
	f, err := os.Open("/run/netns/" + name)
	if err != nil {
		return nil, err
	}
	h := &Host{Name: name, namespace: f}
	for _, scope := range []string{"all", "default"} {
		err = h.Sysctl("net/ipv6/conf/"+scope+"/accept_dad", "0")
		if err != nil {
			break
		}
	}
	if err == nil {
		_, err = h.Run("ip link set lo up")
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Close removes the namespace. The namespace disappears when the last process in it has ended.
func (h *Host) Close() (err error) {
	h.closed.Do(func() {
		err = check(exec.Command("ip", "netns", "del", h.Name))
		h.namespace.Close()
	})
	return err
}

// Do calls f on a thread in the namespace. The sockets that f opens and the programs that f starts belong to the namespace.
func (h *Host) Do(f func() error) error {
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer before.Close()
	if err := unix.Setns(int(h.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("netlab: enter the namespace of %s: %w", h.Name, err)
	}
	defer func() {
		if unix.Setns(int(before.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // otherwise the thread ends with its goroutine
		}
	}()
	return f()
}

// Command prepares a program. Start it inside Do.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// Run splits a command line at white space, without regard to quotes, runs it, and returns its output. If the command fails, the
// error contains the output too.
func (h *Host) Run(line string) (string, error) { return h.RunWith("", line) }

// RunWith is Run with a standard input.
func (h *Host) RunWith(input, line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := h.Command(ctx, strings.Fields(line)...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Do(cmd.Start); err != nil {
		return "", fmt.Errorf("%s: %s: %w", h.Name, line, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %s: %w\n%s", h.Name, line, err, &out)
	}
	return out.String(), nil
}

// Sysctl writes value to the file name under /proc/sys, for example net/ipv4/ip_forward.
func (h *Host) Sysctl(name, value string) error {
	return h.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0) })
}

// Join connects two hosts with a veth pair whose ends are up and carry packets.
func Join(a *Host, nameA string, b *Host, nameB string) error {
	err := check(exec.Command("ip", "link", "add", nameA, "netns", a.Name, "type", "veth",
		"peer", "name", nameB, "netns", b.Name))
	if err != nil {
		return err
	}
	if err := a.raise(nameA); err != nil {
		return err
	}
	if err := b.raise(nameB); err != nil {
		return err
	}
	if err := a.ready(nameA); err != nil {
		return err
	}
	return b.ready(nameB)
}

func (h *Host) raise(iface string) error {
	_, err := h.Run("ip link set up dev " + iface)
	return err
}

// ready waits until the kernel reports that an interface has a carrier. The kernel drops packets that are sent before the interface
// has a carrier.
func (h *Host) ready(iface string) error {
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		out, err := h.Run("ip link show dev " + iface)
		if err != nil || strings.Contains(out, "state UP") {
			return err
		}
		if time.Since(start) > patience {
			return fmt.Errorf("%s: %s does not come up:\n%s", h.Name, iface, out)
		}
	}
}

// A Process is a program that runs in the background.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended and err is set
	err  error
}

// Start starts a program and writes its output to out.
func (h *Host) Start(out io.Writer, env []string, args ...string) (*Process, error) {
	cmd := h.Command(context.Background(), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", h.Name, args[0], err)
	}
	b := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		b.err = cmd.Wait()
		close(b.done)
	}()
	return b, nil
}

// Pid returns the process ID.
func (b *Process) Pid() int { return b.cmd.Process.Pid }

// Done returns a channel that is closed when the program has ended.
func (b *Process) Done() <-chan struct{} { return b.done }

// Wait waits until the program has ended and returns the error of exec.Cmd.Wait.
func (b *Process) Wait() error {
	<-b.done
	return b.err
}

// Signal sends a signal. It has no effect on a program that has ended.
func (b *Process) Signal(s os.Signal) { b.cmd.Process.Signal(s) }

// Kill kills the program and waits until it has ended.
func (b *Process) Kill() {
	b.cmd.Process.Kill()
	<-b.done
}
