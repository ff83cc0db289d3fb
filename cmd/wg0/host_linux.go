package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/seed-86b749af/wireguard/conf"
)

// A host runs commands for one interface.
type host struct {
	iface string
	out   interface{ Write([]byte) (int, error) } // gets the commands and their output
}

// run prints and runs a command. If the command fails, the error contains what the command printed on stderr.
func (h *host) run(ctx context.Context, stdin string, name string, args ...string) error {
	line := strings.Join(append([]string{name}, args...), " ")
	fmt.Fprintf(h.out, "[#] %s\n", line)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Env = strings.NewReader(stdin), environ()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = h.out, &stderr
	err := cmd.Run()
	if err == nil {
		h.out.Write(stderr.Bytes())
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if said := strings.TrimSpace(stderr.String()); said != "" {
		return fmt.Errorf("%s: %s", line, strings.ReplaceAll(said, "\n", "; "))
	}
	return fmt.Errorf("%s: %w", line, err)
}

// output runs a command and returns its standard output.
func (h *host) output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = environ()
	out, err := cmd.Output()
	return string(out), err
}

// ip runs ip(8) for the family of a.
func (h *host) ip(ctx context.Context, a netip.Addr, args ...string) error {
	return h.run(ctx, "", "ip", append([]string{family(a)}, args...)...)
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "-4"
	}
	return "-6"
}

// longestHookEnd is how long a hook may run after SIGTERM.
const longestHookEnd = 5 * time.Second

// hooks runs hooks in the shell. It sets *ran to true before it starts the first hook; ran may be nil.
func (h *host) hooks(ctx context.Context, hooks []string, ran *bool) error {
	shell := "sh"
	if _, err := exec.LookPath("bash"); err == nil { // wg-quick(8) uses bash
		shell = "bash"
	}
	for _, hook := range hooks {
		hook = conf.ExpandHook(hook, h.iface)
		fmt.Fprintf(h.out, "[#] %s\n", hook)
		if ran != nil {
			*ran = true
		}
		cmd := exec.CommandContext(ctx, shell, "-c", hook)
		cmd.Env, cmd.Stdout, cmd.Stderr = environ(), h.out, h.out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Cancel also ends the shell's children
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
		cmd.WaitDelay = longestHookEnd
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("the hook %q failed: %w", hook, err)
		}
	}
	return nil
}

// has reports whether a command is installed.
func has(command string) bool {
	_, err := exec.LookPath(command)
	return err == nil
}
