//go:build !unix

package main

import "os"

// tryLock always succeeds here: only Unix systems have this lock.
func tryLock(*os.File) (bool, error) { return true, nil }
