//go:build unix && !linux

package uapi

// newWatcher looks at the file once a second.
func newWatcher(string) watcher { return newPoller() }
