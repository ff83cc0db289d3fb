package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// packages gives the Debian package of each tool whose package has another name than the tool.
var packages = map[string]string{"ip": "iproute2", "wg": "wireguard-tools", "ping": "iputils-ping", "nft": "nftables"}

// Missing says what this package lacks on this host, such as "needs root: …". It returns "" if this process is root, and if
// namespaces, /dev/net/tun and the tools are available.
func Missing(tools ...string) string {
	if os.Geteuid() != 0 {
		return "needs root: this program makes namespaces and interfaces"
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
		return "needs permission to make namespaces: " + err.Error()
	}
	return ""
}

// Isolate makes cmd run in its own mount, process and network namespaces, and makes the kernel kill that command when this process
// ends. Call Isolate before cmd starts. The program must call Enter.
func Isolate(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
}

// Enter sets up the namespaces of an isolated process. It mounts /proc and an empty /run, and hides the mounts of the process
// from processes outside its namespace.
func Enter() error {
	if os.Getpid() != 1 {
		return errors.New("netlab: Enter: this process is not isolated; start it with Isolate")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("netlab: make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("netlab: mount /proc: %w", err)
	}
	if err := unix.Mount("netlab", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("netlab: mount /run: %w", err)
	}
	for _, dir := range []string{"/run/netns", socketDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("netlab: %w", err)
		}
	}
	return nil
}
