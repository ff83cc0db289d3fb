//go:build !linux

package main

// confine does nothing, because Landlock exists only on Linux.
func confine([]string) (readable []string, err error) { return nil, nil }
