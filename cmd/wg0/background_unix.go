//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard/internal/systemd"
)

// This program moves to the background in three steps. The process that the user started (the parent) starts a child in a new
// session. The child does all the work and shares stderr with the parent until it is ready. Then the child writes a byte to
// a pipe, and the parent exits with 0. If the pipe closes without a byte, the child has failed and has printed the reason.

// background starts c in the background. It returns when the child is ready or has failed.
func background(c command, in inherited) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("go to the background: %w; use -f", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("go to the background: %w; use -f", err)
	}
	defer null.Close()
	attr := os.ProcAttr{
		Files: []*os.File{null, os.Stdout, os.Stderr, w},
		Env:   append(environ(), envForeground+"=1", envReady+"=3", systemd.EnvNotify+"="+os.Getenv(systemd.EnvNotify)),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	for _, f := range []struct {
		env  string
		file *os.File
	}{{envTUN, in.tun}, {envUAPI, in.uapi}} {
		if f.file != nil {
			attr.Env = append(attr.Env, f.env+"="+strconv.Itoa(len(attr.Files)))
			attr.Files = append(attr.Files, f.file)
		}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	p, err := os.StartProcess(exe, os.Args, &attr)
	w.Close()
	if err != nil {
		return fmt.Errorf("go to the background: %w; use -f", err)
	}
	go func() {
		for range signals { // a user who interrupts the parent wants the child to undo what it has done
			p.Signal(unix.SIGTERM)
		}
	}()
	if n, _ := r.Read(make([]byte, 1)); n == 1 {
		return p.Release()
	}
	state, err := p.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("wait for the background process: %w", err)
	case state.ExitCode() < 0:
		return fmt.Errorf("the background process ended without a message: %v", state)
	}
	return errReported
}

// environ returns the environment without the variables that only this process may use.
func environ() []string {
	own := []string{envTUN, envUAPI, envForeground, envReady, systemd.EnvNotify}
	return slices.DeleteFunc(os.Environ(), func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		return slices.Contains(own, name)
	})
}

// A parent is the process that waits until this one is ready. A nil parent means that no process waits.
type parent struct {
	pipe *os.File
}

// parentOf finds the parent in the environment.
func parentOf() (*parent, error) {
	f, err := inheritNamed(envReady)
	if f == nil || err != nil {
		return nil, err
	}
	return &parent{f}, nil
}

// release tells the parent to exit, and closes the files that this process shares with it. If LOG_LEVEL is set, stderr stays
// open.
func (p *parent) release() error {
	if p == nil {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	shared := []int{0, 1, 2}
	if v := os.Getenv("LOG_LEVEL"); v != "" && v != "silent" {
		shared = shared[:2]
	} else {
		logAway()
	}
	for _, fd := range shared {
		if e := dup2(int(null.Fd()), fd); e != nil {
			err = errors.Join(err, e)
		}
	}
	err = errors.Join(err, os.Chdir("/"))
	if _, e := p.pipe.Write([]byte{'\n'}); e != nil && !errors.Is(e, unix.EPIPE) {
		err = errors.Join(err, e)
	}
	return errors.Join(err, p.pipe.Close())
}
