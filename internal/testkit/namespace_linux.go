package testkit

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// InNamespace runs the calling test again in a child process, which has a network namespace that it may configure. InNamespace
// returns true in the child. In the parent, it logs the child's output, fails the test if the child failed, and returns false.
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

// OwnNetwork makes cmd run in a new network namespace, which cmd may configure. This needs no root.
func OwnNetwork(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}
