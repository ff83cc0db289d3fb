//go:build linux && !race

package netns

var buildFlags []string
