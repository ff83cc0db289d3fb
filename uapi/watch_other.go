//go:build unix && !linux

package uapi

// newWatcher returns a watcher that looks at the file once per second.
func newWatcher(string) watcher { return newPoller() }
