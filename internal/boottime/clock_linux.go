package boottime

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reading CLOCK_BOOTTIME takes a system call, while Go reads the monotonic clock and the calendar without one, and the
// clock is read for each batch of packets. So Now is the monotonic clock plus the time asleep. It asks the kernel for the
// time asleep again when the calendar has moved against the monotonic clock, as a resume makes it move, and once per second.
var asleep struct {
	offset atomic.Int64 // CLOCK_BOOTTIME less the monotonic clock; it only grows
	apart  atomic.Int64 // the calendar less the monotonic clock, when the kernel was asked
	until  atomic.Int64 // when to ask again, by the monotonic clock
}

const (
	asleepGrain = int64(time.Millisecond) // the calendar moves by less without a resume
	asleepAgain = int64(time.Second)
)

var clockStart = time.Now()

// Now is the time since the machine was started.
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
		panic("wireguard: reading CLOCK_BOOTTIME: " + err.Error()) // Linux has it since 2.6.39
	}
	now := time.Now()
	mono := int64(now.Sub(clockStart))
	// The time that passed since the kernel answered makes the difference too small, never too large. So the greatest
	// difference is the best one, and with it time never goes back.
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

// A timerfd is an Alarm of the kernel's. It counts suspend, so a deadline that passed during a suspend is met at the resume.
type timerfd struct {
	mu     sync.Mutex // keeps Set from using a closed descriptor
	f      *os.File
	fd     int
	closed bool
}

// NewAlarm makes an Alarm that counts sleep. If the system has none, it returns one that does not, and an error.
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
	// A time of zero would disarm it.
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
