package wireguard

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// systemClock is CLOCK_BOOTTIME, which counts suspend. Go reads the monotonic clock and the calendar without a system call,
// but not this one, and each batch asks: so it is the monotonic clock plus the time asleep, which is asked for again
// when the calendar has moved against the monotonic clock, as it does by a resume, and each second in any case.
type systemClock struct{}

var asleep struct {
	offset atomic.Int64 // CLOCK_BOOTTIME less the monotonic clock; it only grows
	apart  atomic.Int64 // the calendar less the monotonic clock, when offset was asked for
	until  atomic.Int64 // by the monotonic clock: ask again
}

const (
	asleepGrain = int64(time.Millisecond) // of the calendar's moves
	asleepAgain = int64(time.Second)
)

var clockStart = time.Now()

// Now is the time since the machine was started.
func (systemClock) Now() time.Duration {
	now := time.Now()
	mono := int64(now.Sub(clockStart))
	moved := now.UnixNano() - mono - asleep.apart.Load()
	if mono >= asleep.until.Load() || moved > asleepGrain || moved < -asleepGrain {
		return askBootTime()
	}
	return time.Duration(mono + asleep.offset.Load())
}

// askBootTime is Now by the kernel's word.
func askBootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("wireguard: no CLOCK_BOOTTIME: " + err.Error()) // Linux has it since 2.6.39
	}
	now := time.Now()
	mono := int64(now.Sub(clockStart))
	// What passed since the kernel was asked makes the difference too small, never too large: the greatest one seen is
	// right, and by it time never goes back.
	for {
		old := asleep.offset.Load()
		offset := max(old, ts.Nano()-mono)
		if asleep.offset.CompareAndSwap(old, offset) {
			asleep.apart.Store(now.UnixNano() - mono)
			asleep.until.Store(mono + asleepAgain)
			return time.Duration(mono + offset)
		}
	}
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
