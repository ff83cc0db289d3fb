//go:build !unix

package systemd

import "os"

// Files returns no files: only Unix has service managers that pass them.
func Files() ([]*os.File, error) { return nil, nil }
