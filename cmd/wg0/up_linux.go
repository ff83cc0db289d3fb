package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/follow"
)

// A tunnelFile is a wg-quick(8) file and the interface that the file configures. `wg0 up` and `wg0 down` take these steps in
// this order:
//
//	up:   PreUp, interface and socket, names, keys and peers, addresses, MTU and up, DNS, routes, PostUp
//	down: PreDown, SaveConfig, rules, filter, DNS, interface and socket, PostDown
type tunnelFile struct {
	host
	path   string // absolute
	hooked bool   // whether a PreUp or PostUp hook has started
	only4  bool   // whether to leave out IPv6, because the host has none or has it turned off; set by up, then used by reloads
	mark   uint32 // the mark in the default route's rules, or 0 without such rules; used by up, then by reloads, then by cleanUp

	mu   sync.Mutex // guards file, which reload changes
	file *conf.File

	follower *follow.Follower // set by configure
}

const configDirectory = "/etc/wireguard"

var fileName = regexp.MustCompile(`^([a-zA-Z0-9_=+.-]{1,15})\.conf$`)

// findTarget returns the file and the interface that target, the argument FILE or IFACE, means.
func findTarget(target string) (path, iface string, err error) {
	path = target
	if !strings.Contains(target, "/") && !strings.HasSuffix(target, ".conf") {
		path = filepath.Join(configDirectory, target+".conf")
	}
	m := fileName.FindStringSubmatch(filepath.Base(path))
	if m == nil {
		return "", "", fmt.Errorf("%q does not name an interface: want a name of 1 to 15 letters and digits, or a file named after it, as in wg0.conf", target)
	}
	path, err = filepath.Abs(path)
	return path, m[1], err
}

// readTarget reads and checks the file that target means. Its error lists everything that is wrong with the file.
func readTarget(target string) (*tunnelFile, error) {
	path, iface, err := findTarget(target)
	if err != nil {
		return nil, err
	}
	f, err := readFile(path)
	if err != nil {
		return nil, err
	}
	for _, w := range f.Warnings() {
		printError(os.Stderr, fmt.Errorf("warning: %w", &fileError{path, w}))
	}
	return &tunnelFile{host: host{iface: iface, out: os.Stderr}, path: path, file: f}, nil
}

// maxFile is the largest file that readFile accepts, in bytes. It is far larger than any interface needs.
const maxFile = 64 << 20

func readFile(path string) (*conf.File, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist; write it as described in wg-quick(8)", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, notReadable(path)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxFile:
		return nil, fmt.Errorf("%s is not a configuration file: want a regular file of at most 64 MiB", path)
	case info.Mode().Perm()&0o007 != 0:
		fmt.Fprintf(os.Stderr, "wg0: all users can read %s and the keys in it; run: chmod 600 %s\n", path, path)
	}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, notReadable(path)
	case err != nil:
		return nil, err
	}
	f, err := conf.Parse(text)
	if err != nil {
		return nil, &fileError{path, err}
	}
	errs := []error{f.Validate()}
	for _, e := range f.Unknown() {
		errs = append(errs, e)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, &fileError{path, err}
	}
	return f, safeHooks(path, f)
}

// safeHooks refuses a file with hooks that every user can change, since wg0 runs hooks as root.
func safeHooks(path string, f *conf.File) error {
	i := &f.Interface
	if len(i.PreUp)+len(i.PostUp)+len(i.PreDown)+len(i.PostDown) == 0 {
		return nil
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, name := range []string{target, filepath.Dir(target)} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("%s has hooks, and all users can write %s: wg0 does not run commands that any user can change; run: chmod o-w %s", path, name, name)
		}
	}
	return nil
}

func notReadable(path string) error {
	return fmt.Errorf("this user may not read %s; run wg0 as root", path)
}

func (t *tunnelFile) name() string { return t.iface }

// config returns the file as last read.
func (t *tunnelFile) config() *conf.File {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.file
}

// prepare does the work that precedes the interface: it checks the host and runs PreUp.
func (t *tunnelFile) prepare(ctx context.Context) error {
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("the command ip is not installed; install iproute2")
	}
	if _, err := net.InterfaceByName(t.iface); err == nil {
		return fmt.Errorf("%s exists already; take it down first (wg0 down %s)", t.iface, t.iface)
	}
	if !mayAdminister() {
		return errors.New("making an interface needs the capability CAP_NET_ADMIN; run wg0 as root")
	}
	if err := t.hooks(ctx, t.file.Interface.PreUp, &t.hooked); err != nil {
		t.undo(nil)
		return err
	}
	return nil
}

const capNetAdmin = 12

// mayAdminister reports whether this process has CAP_NET_ADMIN. If it cannot find out, it returns true.
func mayAdminister() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err != nil || set&(1<<capNetAdmin) != 0
		}
	}
	return true
}

// up configures d and the host as the file says.
func (t *tunnelFile) up(ctx context.Context, d *daemon) error {
	f := t.config()
	if err := t.configure(ctx, d, f); err != nil {
		return err
	}
	if err := d.device.Up(); err != nil {
		return err
	}
	t.findIPv6(f)
	for _, a := range f.Interface.Addresses {
		if t.skips(a) {
			continue
		}
		if err := t.ip(ctx, a.Addr(), "address", "add", a.String(), "dev", t.iface); err != nil {
			return err
		}
	}
	mtu := f.Interface.MTU
	if mtu == 0 {
		mtu = t.findMTU(ctx, d.device)
	}
	if err := t.run(ctx, "", "ip", "link", "set", "mtu", strconv.Itoa(mtu), "up", "dev", t.iface); err != nil {
		return err
	}
	if err := d.waitUp(ctx); err != nil {
		return err
	}
	if err := t.setDNS(ctx, &f.Interface); err != nil {
		return err
	}
	if err := t.addRoutes(ctx, d.device, &f.Interface); err != nil {
		return err
	}
	return t.hooks(ctx, f.Interface.PostUp, &t.hooked)
}

// configure resolves the names in f and gives f's keys, port and peers to d.
func (t *tunnelFile) configure(ctx context.Context, d *daemon, f *conf.File) error {
	r, err := t.resolution()
	if err != nil {
		return err
	}
	if err := f.Resolve(ctx, r); err != nil {
		return &fileError{t.path, err}
	}
	c, err := f.Change()
	if err != nil {
		return &fileError{t.path, err}
	}
	if err := d.device.Configure(c); err != nil {
		return err
	}
	t.follower = d.newFollower(r)
	t.follower.Set(follow.Endpoints(f))
	return nil
}

// resolution says how to resolve the names of endpoints.
func (t *tunnelFile) resolution() (conf.Resolution, error) {
	retries, err := resolutionRetries()
	return conf.Resolution{Retries: retries, Waiting: func(host string, err error, wait time.Duration) {
		fmt.Fprintf(t.out, "wg0: %v: trying again in %.1f seconds\n", err, wait.Seconds())
	}}, err
}

// resolutionRetries returns WG_ENDPOINT_RESOLUTION_RETRIES as a value for conf.Resolution.
func resolutionRetries() (int, error) {
	const env = "WG_ENDPOINT_RESOLUTION_RETRIES"
	switch v := os.Getenv(env); v {
	case "":
		return 0, nil
	case "infinity":
		return int(^uint(0) >> 1), nil
	default:
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return 0, fmt.Errorf("%s is %q: want a number or infinity", env, v)
		}
		if n == 0 {
			return -1, nil
		}
		return int(n), nil
	}
}

// longestUp is how long waitUp waits for the system to report that the interface is up.
const longestUp = 5 * time.Second

// waitUp returns when the system reports that the interface is up.
func (d *daemon) waitUp(ctx context.Context) error {
	timeout := time.NewTimer(longestUp)
	defer timeout.Stop()
	for !d.up {
		select {
		case s, ok := <-d.tun.States():
			if !ok {
				return fmt.Errorf("%s was deleted while wg0 was setting it up; look for the program that did it", d.name)
			}
			d.up = s.Up
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout.C:
			return fmt.Errorf("%s is not up after %v; check whether another program configures it", d.name, longestUp)
		}
	}
	return nil
}

// undo reverts what prepare and up did before they failed. d may be nil.
func (t *tunnelFile) undo(d *daemon) {
	ctx := context.Background()
	if d != nil {
		t.cleanUp(ctx)
		d.close()
	}
	if t.hooked {
		t.postDown()
	}
}

// cleanUp removes the rules, the filter and the DNS settings, which would outlive the interface.
func (t *tunnelFile) cleanUp(ctx context.Context) {
	i := &t.config().Interface
	if t.mark != 0 {
		t.removeRules(ctx, t.mark)
	}
	t.removeFilter(ctx)
	t.unsetDNS(ctx, i)
}

// preDown runs PreDown and saves the configuration. It logs errors; they do not stop the daemon from taking the interface down.
func (t *tunnelFile) preDown(d *daemon) {
	f := t.config()
	if err := t.hooks(context.Background(), f.Interface.PreDown, nil); err != nil {
		d.log.Error("PreDown failed", "err", err)
	}
	if f.Interface.SaveConfig {
		if err := t.save(d.name); err != nil {
			d.log.Error("the configuration was not saved", "err", err)
		}
	}
}

func (t *tunnelFile) postDown() {
	if err := t.hooks(context.Background(), t.config().Interface.PostDown, nil); err != nil {
		printError(t.out, err)
	}
}

// reload reads the file again and configures the device. It keeps addresses, MTU, DNS and hooks. It adds new routes and keeps old
// ones, because packets to a removed peer are dropped with or without a route. An error that occurs after the device has
// changed is a *routesError.
func (t *tunnelFile) reload(ctx context.Context, d *daemon) error {
	f, err := readFile(t.path)
	if err != nil {
		return err
	}
	p, err := follow.NewPlan(t.config(), f)
	if err != nil {
		return &fileError{t.path, err}
	}
	running := p.Running()
	running.Interface.SaveConfig = f.Interface.SaveConfig // preDown needs the new value
	p.Reopen = slices.DeleteFunc(p.Reopen, func(key string) bool { return key == "SaveConfig" })
	if mark := slices.Index(p.Interface, "FwMark"); mark >= 0 && t.mark != 0 {
		// The rules of addDefault name the mark, so the device keeps it.
		p.Change.FirewallMark, running.Interface.FwMark = nil, t.config().Interface.FwMark
		p.Interface, p.Reopen = slices.Delete(p.Interface, mark, mark+1), append(p.Reopen, "FwMark")
	}
	for line := range strings.Lines(p.String()) {
		d.log.Info("reload: " + strings.TrimSpace(line))
	}
	if err := t.follower.Apply(ctx, p); conf.Errors(err) != nil {
		return &fileError{t.path, err}
	} else if err != nil {
		return err
	}
	t.mu.Lock()
	t.file = running
	t.mu.Unlock()
	if err := t.addRoutes(ctx, d.device, &running.Interface); err != nil {
		return &routesError{err}
	}
	d.log.Info("reloaded", "file", t.path, "peers", len(f.Peers))
	return nil
}

// follow keeps the endpoints of the peers up to date until ctx ends.
func (t *tunnelFile) follow(ctx context.Context) { t.follower.Run(ctx) }
