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
	"github.com/seed-86b749af/wireguard/transport/tun"
	"github.com/seed-86b749af/wireguard/uapi"
)

// run carries out c: here, or in the background.
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

// serve is the daemon's life. file is nil where others configure the interface. An end that nobody asked for is an error, so
// that a service manager starts the daemon again.
func serve(c command, file *tunnelFile, parent *parent, in inherited, o options, log *slog.Logger) error {
	stops, hups := signals(file != nil)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		s := <-stops
		cancel(fmt.Errorf("stopped by a signal (%v)", s))
		<-stops // the second one is for who has no patience
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
		go file.follow(ctx, d)
	}
	if err := parent.release(); err != nil {
		log.Warn("the start was not clean", "err", err)
	}
	notify("READY=1")
	log.Info("ready", "interface", d.name)

	reloading, stop := context.WithCancelCause(ctx)
	var reloads sync.WaitGroup
	reloads.Go(func() { file.reloads(reloading, d, hups) })
	why := d.wait(ctx)
	if why != nil {
		log.Error(why.Error())
	}
	notify("STOPPING=1")
	stop(errStopping)
	reloads.Wait() // what a reload adds to the host is there for cleanUp to remove
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

var errStopping = errors.New("the daemon ends")

// reloads reads the file again for each signal, until ctx ends.
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
			d.log.Error("the configuration was reloaded, but its routes are not complete", "err", err)
		case err != nil:
			d.log.Error("the configuration was not reloaded, and stays as it was", "err", err)
		}
	}
}

// A routesError is why a reload ended after the device was made what the file says.
type routesError struct{ err error }

func (e *routesError) Error() string { return e.err.Error() }
func (e *routesError) Unwrap() error { return e.err }

// signals are those that stop the daemon, and those that make it read its file again, if it has one.
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

// A daemon is an interface with its control socket. A nil one can be closed.
type daemon struct {
	name     string
	log      *slog.Logger
	tun      *tun.Interface
	device   *wireguard.Device
	server   *uapi.Server
	served   chan error // gets what Serve returned
	listener net.Listener
	up       bool // what followStates starts from
}

// open makes the interface and its socket. The device is down.
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
			return nil, fmt.Errorf("WG_TUN_NAME_FILE: %w", err)
		}
	}
	return d, nil
}

// checkName says what wg(8) and wg-quick(8) can do nothing with.
func checkName(name string) error {
	if strings.Contains(name, "/") || strings.HasSuffix(name, ".conf") {
		return fmt.Errorf("%q is a file, not an interface; to bring up what it says: wg0 up %s", name, name)
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_', r == '=', r == '+', r == '.', r == '-', r == '%':
		default:
			return fmt.Errorf("%q is no name of an interface: want letters, digits and _=+.- as in wg0", name)
		}
	}
	if len(name) > 15 || name == "." || name == ".." {
		return fmt.Errorf("%q is no name of an interface: want 1 to 15 letters and digits, as in wg0", name)
	}
	return nil
}

// serve makes the device and the socket, and starts to answer.
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

// close ends everything; the socket goes last.
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

// wait returns when the daemon is to end. The error is why, unless it is one of the ends that a user asks for: a signal, an
// interface that was deleted, a socket that was removed.
func (d *daemon) wait(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
		d.log.Info(context.Cause(ctx).Error())
		return nil
	case err = <-d.served:
		if err == nil || errors.Is(err, os.ErrNotExist) {
			d.log.Info("the control socket has gone", "err", err)
			return nil
		}
		return fmt.Errorf("the control socket has failed: %w", err)
	case <-d.tun.Done():
		if err = d.tun.Err(); err == nil { // the device has closed it, and knows why
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
	return fmt.Errorf("the device has ended: %w", err)
}

// upAgain is how long to wait before an interface that is up is given its port again.
const upAgain = 2 * time.Second

// followStates takes the device up and down with the interface.
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
				d.log.Error("the interface is up, but not the tunnel; trying again", "err", told)
			}
			again = time.After(upAgain)
		}
	}
}
