//go:build !unix

package main

import "os"

// tryLock always succeeds. Only Unix systems have this lock.
func tryLock(*os.File) (bool, error) { return true, nil }
