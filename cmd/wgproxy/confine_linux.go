package main

import (
	"fmt"
	"slices"

	"github.com/landlock-lsm/go-landlock/landlock"
	"github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// systemFolders hold what the system's and Go's resolvers read: resolv.conf, hosts, nsswitch.conf and the libraries that it names.
// These files change with the network, and some of them by replacement, so the folders must stay readable. /proc/sys/net has limits
// that package net reads when it first listens.
var systemFolders = []string{"/etc", "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/usr", "/lib", "/lib64", "/proc/sys/net"}

// confine takes away this process's right to open files, for good, except for reading what is in folders and systemFolders. Open
// descriptors stay open. It returns the folders whose files can still be read, or nil if the kernel has no Landlock; older versions
// of Landlock restrict less. Landlock cannot restrict the listeners of package net, which use MPTCP, so confine does not restrict
// sockets.
func confine(folders []string) (readable []string, err error) {
	if version, err := syscall.LandlockGetABIVersion(); err != nil || version < 1 {
		return nil, nil
	}
	const read = landlock.AccessFSSet(syscall.AccessFSReadFile)
	system := append(foldersOf([]string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"}), systemFolders...)
	err = landlock.V5.BestEffort().RestrictPaths(landlock.PathAccess(read, folders...), landlock.PathAccess(read, system...).IgnoreIfMissing())
	if err != nil {
		return nil, fmt.Errorf("give up the right to open files with Landlock (-no-landlock keeps it): %w", err)
	}
	for _, f := range append(folders, system...) {
		if !slices.Contains(readable, f) {
			readable = append(readable, f)
		}
	}
	return readable, nil
}
