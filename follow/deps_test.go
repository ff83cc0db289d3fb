package follow_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestNoStack checks that a program that imports this package does not link a network stack.
func TestNoStack(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../cmd/wg0", ".").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "wireguard/follow\n") {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for path := range strings.Lines(string(out)) {
		if strings.Contains(path, "gvisor") || strings.Contains(path, "netstack") {
			t.Errorf("a program that imports this package links %s", strings.TrimSpace(path))
		}
	}
}
