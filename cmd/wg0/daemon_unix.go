//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/follow"
	"github.com/seed-86b749af/wireguard/internal/systemd"
	"github.com/seed-86b749af/wireguard/transport/tun"
	"github.com/seed-86b749af/wireguard/uapi"
)

// run executes c, in this process or in the background.
func run(c command) error {
	if c.action == actionDown {
		return takeDown(c.target)
	}
	o, err := readOptions()
	if err != nil {
		return err
	}
	var file *tunnelFile
	if c.action == actionUp {
		if file, err = readTarget(c.target); err != nil {
			return err
		}
	}
	parent, err := parentOf()
	if err != nil {
		return err
	}
	in, err := inherit()
	if err != nil {
		return err
	}
	if parent == nil && !c.foreground && os.Getenv(envForeground) != "1" {
		return background(c, in)
	}
	os.Unsetenv(envForeground)
	return serve(c, file, parent, in, o, newLogger())
}

// serve runs the daemon until it stops. file is nil if other programs configure the interface. If the daemon stops although
// nobody has asked it to, serve returns an error, so that a service manager restarts the daemon.
func serve(c command, file *tunnelFile, parent *parent, in inherited, o options, log *slog.Logger) error {
	stops, hups := signals(file != nil)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		s := <-stops
		cancel(fmt.Errorf("stopped by a signal (%v)", s))
		<-stops // on a second signal, exit at once
		os.Exit(exitFailed)
	}()

	name := c.target
	if file != nil {
		name = file.name()
		if err := file.prepare(ctx); err != nil {
			return err
		}
	}
	d, err := open(name, in, o, log)
	if err == nil && file != nil {
		err = file.up(ctx, d)
	}
	if err != nil {
		if file != nil {
			file.undo(d)
		}
		d.close()
		return err
	}
	go d.followStates()
	if file != nil {
		go file.follow(ctx)
	} else {
		go d.newFollower(conf.Resolution{}).Run(ctx) // without peers, it only wakes the device after changes of the network
	}
	if err := parent.release(); err != nil {
		log.Warn("the daemon is ready but could not detach from the process that started it", "err", err)
	}
	systemd.Notify("READY=1")
	log.Info("ready", "interface", d.name)

	reloading, stop := context.WithCancelCause(ctx)
	var reloads sync.WaitGroup
	reloads.Go(func() { file.reloads(reloading, d, hups) })
	why := d.wait(ctx)
	if why != nil {
		log.Error(why.Error())
	}
	systemd.Notify("STOPPING=1")
	stop(errStopping)
	reloads.Wait() // wait, because cleanUp must also remove the rules that a reload adds
	if file != nil {
		if ctx.Err() != nil {
			file.preDown(d)
		}
		file.cleanUp(context.Background())
	}
	d.close()
	if file != nil && ctx.Err() != nil {
		file.postDown()
	}
	log.Info("stopped", "interface", d.name)
	if why != nil {
		return errReported
	}
	return nil
}

var errStopping = errors.New("the daemon is stopping")

// reloads reads the file again on each signal, until ctx ends.
func (t *tunnelFile) reloads(ctx context.Context, d *daemon, hups <-chan os.Signal) {
	for {
		select {
		case <-hups:
		case <-ctx.Done():
			return
		}
		err := t.reload(ctx, d)
		switch {
		case ctx.Err() != nil:
		case errors.As(err, new(*routesError)):
			d.log.Error("the configuration was reloaded, but some of its routes are missing", "err", err)
		case err != nil:
			d.log.Error("the configuration was not reloaded; the old one stays in use", "err", err)
		}
	}
}

// A routesError reports that a reload changed the device but could not add a route.
type routesError struct{ err error }

func (e *routesError) Error() string { return e.err.Error() }
func (e *routesError) Unwrap() error { return e.err }

// signals returns the signals that stop the daemon (stops) and those that make it read its file again (hups). Without a file,
// SIGHUP stops the daemon.
func signals(hasFile bool) (stops, hups chan os.Signal) {
	stops, hups = make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(stops, unix.SIGTERM, unix.SIGINT)
	if hasFile {
		signal.Notify(hups, unix.SIGHUP)
	} else {
		signal.Notify(stops, unix.SIGHUP)
	}
	return stops, hups
}

// A daemon is an interface with its control socket. close accepts a nil daemon.
type daemon struct {
	name     string
	log      *slog.Logger
	tun      *tun.Interface
	device   *wireguard.Device
	server   *uapi.Server
	served   chan error // receives the error of Serve
	listener net.Listener
	up       bool // whether the interface is up when followStates starts
}

// open creates the interface and its socket. It leaves the device down.
func open(name string, in inherited, o options, log *slog.Logger) (*daemon, error) {
	if in.tun == nil {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	config, err := o.tun(name, in)
	if err != nil {
		return nil, err
	}
	t, err := tun.Open(config)
	if err != nil {
		return nil, err
	}
	d := &daemon{name: t.Name(), log: log, tun: t, served: make(chan error, 1)}
	if err := d.serve(in.uapi, o.bind()); err != nil {
		d.close()
		return nil, err
	}
	if path := os.Getenv("WG_TUN_NAME_FILE"); path != "" {
		if err := os.WriteFile(path, []byte(d.name+"\n"), 0o644); err != nil {
			d.close()
			return nil, fmt.Errorf("write the interface's name to the file in WG_TUN_NAME_FILE: %w", err)
		}
	}
	return d, nil
}

// checkName refuses a name that wg(8) or wg-quick(8) would refuse.
func checkName(name string) error {
	if strings.Contains(name, "/") || strings.HasSuffix(name, ".conf") {
		return fmt.Errorf("%q is a file, not an interface; to bring up its interface, run: wg0 up %s", name, name)
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_', r == '=', r == '+', r == '.', r == '-', r == '%':
		default:
			return fmt.Errorf("%q is not an interface name: want only letters, digits and _=+.- as in wg0", name)
		}
	}
	if len(name) > 15 || name == "." || name == ".." {
		return fmt.Errorf("%q is not an interface name: want 1 to 15 letters and digits, as in wg0", name)
	}
	return nil
}

// serve creates the device and the socket, and starts to answer requests.
func (d *daemon) serve(inherited *os.File, bind wireguard.Bind) (err error) {
	d.device, err = wireguard.New(wireguard.Config{Tunnel: d.tun, Bind: bind, Logger: d.log})
	if err != nil {
		return err
	}
	if inherited != nil {
		d.listener, err = uapi.ListenFile(d.name, inherited)
		inherited.Close()
	} else {
		d.listener, err = uapi.Listen(d.name)
	}
	if err != nil {
		return err
	}
	d.server = &uapi.Server{Device: d.device, Bind: bind, Logger: d.log}
	go func() { d.served <- d.server.Serve(d.listener) }()
	return nil
}

// close closes the device, the interface and, last, the socket.
func (d *daemon) close() {
	switch {
	case d == nil:
		return
	case d.device == nil:
		d.tun.Close()
	default:
		d.device.Close()
	}
	if d.server != nil {
		d.server.Close()
	}
}

// newFollower makes a Follower that ignores changes of the daemon's own interface.
func (d *daemon) newFollower(r conf.Resolution) *follow.Follower {
	changes := func(ctx context.Context, changed func()) error { return follow.Changes(ctx, d.name, changed) }
	return follow.New(d.device, follow.Config{Resolution: r, Changes: changes, Logger: d.log})
}

// wait returns when the daemon must stop. The error is nil if a user sent a signal, deleted the interface, or removed the
// control socket.
func (d *daemon) wait(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
		d.log.Info(context.Cause(ctx).Error())
		return nil
	case err = <-d.served:
		if err == nil || errors.Is(err, os.ErrNotExist) {
			d.log.Info("the control socket was removed", "err", err)
			return nil
		}
		return fmt.Errorf("the control socket of %s failed: %w", d.name, err)
	case <-d.tun.Done():
		if err = d.tun.Err(); err == nil { // the device closed the interface and knows the reason
			<-d.device.Done()
			err = d.device.Err()
		}
	case <-d.device.Done():
		err = d.device.Err()
	}
	if err == nil || errors.Is(err, tun.ErrDeleted) {
		d.log.Info("the interface was deleted")
		return nil
	}
	return fmt.Errorf("the device of %s stopped: %w", d.name, err)
}

// upAgain is the delay before the daemon tries again to open the port of an interface that is up.
const upAgain = 2 * time.Second

// followStates brings the device up and down together with the interface.
func (d *daemon) followStates() {
	up := d.up
	var again <-chan time.Time
	var told string
	for {
		select {
		case s, ok := <-d.tun.States():
			if !ok {
				return
			}
			if s.Up == up {
				continue
			}
			if up, again, told = s.Up, nil, ""; !up {
				d.device.Down()
				continue
			}
		case <-again:
		}
		if err := d.device.Up(); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if now := words(err); now != told {
				told = now
				d.log.Error("the interface is up, but the tunnel is not; wg0 keeps trying", "err", told)
			}
			again = time.After(upAgain)
		}
	}
}
