//go:build unix && !linux

package uapi

// newWatcher returns a poller, so the file is checked once per second.
func newWatcher(string) watcher { return newPoller() }
