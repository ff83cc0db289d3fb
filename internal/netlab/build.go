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

// Build builds a program from the package source, with flags for "go build". root is the module's folder. Build calls Stat on each
// Go file of the module, so that "go test" knows that the program depends on them and does not use a cached result after a change.
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

// check runs cmd. Its error contains the output.
func check(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
