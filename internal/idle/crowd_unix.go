//go:build unix

package idle

import "syscall"

// preemptions returns how often the system has preempted a thread of this process.
func preemptions() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return int64(u.Nivcsw)
}
