package wireguard

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// systemClock is CLOCK_BOOTTIME, which counts suspend.
type systemClock struct{}

// Now is the time since the machine was started.
func (systemClock) Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("wireguard: no CLOCK_BOOTTIME: " + err.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// A bootAlarm is a timer of the kernel that counts suspend, so that what came due meanwhile is done at the resume.
type bootAlarm struct {
	mu     sync.Mutex // keeps set from using a closed descriptor
	f      *os.File
	fd     int
	closed bool
}

// newSystemAlarm makes the alarm that goes with systemClock.
func newSystemAlarm() (alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &bootAlarm{f: os.NewFile(uintptr(fd), "timerfd"), fd: fd}, nil
}

func (a *bootAlarm) set(in time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	// A time of zero would disarm it.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(in, 1)))}
	unix.TimerfdSettime(a.fd, 0, &spec, nil)
}

func (a *bootAlarm) wait() bool {
	var rings [8]byte
	_, err := a.f.Read(rings[:])
	return err == nil
}

func (a *bootAlarm) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.f.Close()
}
