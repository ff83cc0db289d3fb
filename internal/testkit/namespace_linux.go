package testkit

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// InNamespace runs the calling test again, in a process that has its own network and administers it, and returns true there. In
// the calling process it reports what the other process said, and returns false.
func InNamespace(t *testing.T) bool {
	t.Helper()
	const here = "TESTKIT_NAMESPACE"
	if os.Getenv(here) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), here+"=1")
	OwnNetwork(cmd)
	out, err := cmd.CombinedOutput()
	if _, ran := err.(*exec.ExitError); err != nil && !ran {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Logf("%s", out)
	if err != nil {
		t.Fail()
	}
	return false
}

// OwnNetwork gives cmd its own network, which it administers. This needs no root.
func OwnNetwork(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}
