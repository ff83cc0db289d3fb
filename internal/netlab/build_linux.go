package netlab

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Build makes a program of a package, with flags of "go build". Root is the folder of the module of the test that calls it:
// each of its Go files is looked at, so that "go test" knows what the program depends on, and does not answer from its
// cache when that changed.
func Build(root, source, program string, flags ...string) error {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("netlab: %w", err)
	}
	return check(exec.Command("go", slices.Concat([]string{"build"}, flags, []string{"-o", program, source})...))
}
