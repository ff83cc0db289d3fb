package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// files returns the files that a reload reads again.
func (s *settings) files() []string {
	all := []string{s.path}
	if s.included != "" {
		all = append(all, s.included)
	}
	for _, svc := range s.services {
		if svc.certFile != "" {
			all = append(all, svc.certFile, svc.keyFile)
		}
	}
	return all
}

// foldersOf returns the folders of files, and for symbolic links also the folders of their targets. wgproxy keeps rights to
// folders, because editors and configuration tools replace files. For a file in the root folder, foldersOf returns the file
// itself, because the root folder holds all others.
func foldersOf(files []string) (folders []string) {
	for _, f := range files {
		real, err := filepath.EvalSymlinks(f)
		if err != nil {
			real = f
		}
		for _, path := range []string{f, real} {
			if abs, err := filepath.Abs(path); err == nil {
				path = abs
			}
			if dir := filepath.Dir(path); dir != filepath.Dir(dir) {
				path = dir
			}
			if !slices.Contains(folders, path) {
				folders = append(folders, path)
			}
		}
	}
	return folders
}

// explain adds to err why a file cannot be opened, if the reason is that wgproxy was confined before it knew of the file.
func (o *options) explain(err error) error {
	var path *fs.PathError
	if o.confined == nil || !errors.As(err, &path) || !errors.Is(path, fs.ErrPermission) {
		return err
	}
	for _, folder := range foldersOf([]string{path.Path}) {
		if !slices.ContainsFunc(o.confined, func(root string) bool { return folder == root || strings.HasPrefix(folder, root+"/") }) {
			return fmt.Errorf("%w; since its start, wgproxy may read only files in %s: put the file there, or start wgproxy again", err, strings.Join(o.confined, ", "))
		}
	}
	return err
}
