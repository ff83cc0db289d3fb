//go:build linux && race

package netns

// buildFlags make the daemon look for races as the tests do.
var buildFlags = []string{"-race"}
