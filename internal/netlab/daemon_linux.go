package netlab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// socketDir is the directory of the control sockets at which daemons listen for wg(8).
const socketDir = "/var/run/wireguard/"

// A Daemon is a WireGuard daemon in the foreground. StartDaemon makes it.
type Daemon struct {
	*Process
	Interface string

	log *tail
}

// StartDaemon starts a daemon with the command line of wireguard-go's daemon, and waits until it answers wg(8). All hosts share the
// socket directory, so each interface needs a unique name.
func (h *Host) StartDaemon(program, iface string) (*Daemon, error) {
	log := &tail{}
	b, err := h.Start(log, []string{"WG_PROCESS_FOREGROUND=1", "LOG_LEVEL=error"}, program, "-f", iface)
	if err != nil {
		return nil, err
	}
	d := &Daemon{b, iface, log}
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		err := d.answers()
		if err == nil {
			return d, nil
		}
		select {
		case <-d.Done():
			return nil, fmt.Errorf("%s: %s ended: %v\n%s", h.Name, program, d.Wait(), d.Log())
		default:
		}
		if time.Since(start) > 10*time.Second {
			d.Kill()
			return nil, fmt.Errorf("%s: %s does not answer: %v\n%s", h.Name, program, err, d.Log())
		}
	}
}

// Socket returns the path of the control socket.
func (d *Daemon) Socket() string { return socketDir + d.Interface + ".sock" }

// answers asks the daemon for its configuration. It returns nil if the daemon answers.
func (d *Daemon) answers() error {
	c, err := net.Dial("unix", d.Socket())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "get=1\n\n"); err != nil {
		return err
	}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if lines.Text() == "errno=0" {
			return nil
		}
	}
	return io.ErrUnexpectedEOF
}

// Log returns the end of the daemon's output.
func (d *Daemon) Log() string { return d.log.String() }

// Resident returns the program's resident memory in bytes.
func (p *Process) Resident() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", p.Pid())
}

// CPU returns the processor time that the program has used, to a hundredth of a second.
func (p *Process) CPU() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return 0, err
	}
	_, fields, _ := strings.Cut(string(text), ") ") // the fields after the program's name
	var ticks time.Duration
	for _, f := range strings.Fields(fields)[11:13] { // the ticks in user mode, and those in the kernel
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond, nil
}

// A tail keeps the last bytes written to it, because a program's output has no limit.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailLength = 16 << 10

// Write accepts all of p.
func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if n := len(l.text) - tailLength; n > 0 {
		l.text = append(l.text[:0], l.text[n:]...)
	}
	return len(p), nil
}

// String returns the kept bytes.
func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
