package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// packages names the Debian package of each tool whose package has another name.
var packages = map[string]string{"ip": "iproute2", "wg": "wireguard-tools", "ping": "iputils-ping", "nft": "nftables"}

// Missing says what this host lacks, as in "needs root: …", or "" where it has root, namespaces, /dev/net/tun and the tools.
func Missing(tools ...string) string {
	if os.Geteuid() != 0 {
		return "needs root: namespaces and interfaces are made here"
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "needs /dev/net/tun: " + err.Error()
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			name := tool
			if p, ok := packages[tool]; ok {
				name = p
			}
			return fmt.Sprintf("needs %s: install %s", tool, name)
		}
	}
	probe := exec.Command("true")
	Isolate(probe)
	if err := probe.Run(); err != nil {
		return "needs a root that may make namespaces: " + err.Error()
	}
	return ""
}

// Isolate lets cmd, which is not started yet, run in mount, process and network namespaces of its own, and die with
// this process. The program that it runs calls Enter.
func Isolate(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
}

// Enter makes an isolated process at home in its namespaces. Its /run is empty, and no mount of it is seen outside.
func Enter() error {
	if os.Getpid() != 1 {
		return errors.New("netlab: Enter is for a process that Isolate prepared")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("netlab: keeping mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("netlab: mounting /proc: %w", err)
	}
	if err := unix.Mount("netlab", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("netlab: mounting /run: %w", err)
	}
	for _, dir := range []string{"/run/netns", socketDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("netlab: %w", err)
		}
	}
	return nil
}
