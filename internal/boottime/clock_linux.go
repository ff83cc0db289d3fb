package boottime

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reading CLOCK_BOOTTIME takes a system call. Go reads the monotonic clock and the wall clock without one. A device calls Now for
// each batch of packets. So Now returns the monotonic clock plus the time that the machine has slept. Now asks the kernel for the
// time asleep once per second. It also asks when the wall clock has jumped relative to the monotonic clock, as after a resume.
var asleep struct {
	offset atomic.Int64 // CLOCK_BOOTTIME minus the monotonic clock; only grows
	apart  atomic.Int64 // the wall clock minus the monotonic clock, when Now last asked the kernel
	until  atomic.Int64 // when to ask again, on the monotonic clock
}

const (
	asleepGrain = int64(time.Millisecond) // per second without a resume, the wall clock and the monotonic clock drift apart by less
	asleepAgain = int64(time.Second)
)

var clockStart = time.Now()

// Now returns the time since the machine started.
func (Clock) Now() time.Duration {
	now := time.Now()
	mono := int64(now.Sub(clockStart))
	moved := now.UnixNano() - mono - asleep.apart.Load()
	if mono >= asleep.until.Load() || moved > asleepGrain || moved < -asleepGrain {
		return askBootTime()
	}
	return time.Duration(mono + asleep.offset.Load())
}

// askBootTime reads CLOCK_BOOTTIME.
func askBootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("wireguard: reading CLOCK_BOOTTIME: " + err.Error()) // Linux has had this clock since 2.6.39
	}
	now := time.Now()
	mono := int64(now.Sub(clockStart))
	// The monotonic clock is read after ts, so the difference ts minus mono may be too small, and is never too large. So the
	// greatest difference is the most accurate. Now uses it, so the clock never goes back.
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

// A timerfd is an Alarm that uses the kernel's timer. The timer counts the time that the machine sleeps. So an alarm whose time
// passed during a sleep rings at the resume.
type timerfd struct {
	mu     sync.Mutex // keeps Set from using a closed descriptor
	f      *os.File
	fd     int
	closed bool
}

// NewAlarm makes an Alarm that counts the time that the machine sleeps. If the system cannot provide one, NewAlarm returns an
// Alarm that does not count this time, and an error.
func NewAlarm() (Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return NewTimer(), os.NewSyscallError("timerfd_create", err)
	}
	return &timerfd{f: os.NewFile(uintptr(fd), "timerfd"), fd: fd}, nil
}

func (a *timerfd) Set(in time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	// A time of zero would disarm the timer.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(in, 1)))}
	unix.TimerfdSettime(a.fd, 0, &spec, nil)
}

func (a *timerfd) Wait() bool {
	var rings [8]byte
	_, err := a.f.Read(rings[:])
	return err == nil
}

func (a *timerfd) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.f.Close()
}
