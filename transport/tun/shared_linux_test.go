//go:build linux && !android

package tun

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// sharedCase is the environment variable with the name of the case of TestShared that this process runs.
const sharedCase = "TUN_TEST_SHARED"

// TestShared checks that garbage collection, signals and Close work even if the program that passed a descriptor makes its file
// blocking after Open. Each case runs in a separate process, which is killed if it freezes.
func TestShared(t *testing.T) {
	cases := map[string]func(t *testing.T, d *Interface, n *namespace){
		"collect while a read waits":  sharedCollect,
		"close while a read waits":    sharedClose,
		"a signal while a read waits": sharedSignal,
		"packets in both directions":  sharedPackets,
	}
	if name := os.Getenv(sharedCase); name != "" {
		n := newNamespace(t)
		f := inherit(t, n, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
		holder, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(holder)
		n.ip(t, "link set wg5 up")
		n.ip(t, "address add 10.9.5.1/24 dev wg5")
		d, err := Open(Config{File: f})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := unix.SetNonblock(holder, false); err != nil {
			t.Fatal(err)
		}
		cases[name](t, d, n)
		return
	}
	newNamespace(t) // skips the test if it cannot make a namespace
	for name := range cases {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			c := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestShared$")
			c.Env = append(os.Environ(), sharedCase+"="+name)
			if out, err := c.CombinedOutput(); ctx.Err() != nil {
				t.Errorf("the process froze: it did not end within 60 s\n%s", out)
			} else if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// reads starts a goroutine that reads d, and returns 300 ms later, when that goroutine waits for a packet.
func reads(d *Interface) (ended chan error) {
	ended = make(chan error, 1)
	go func() {
		for {
			var b wireguard.Batch
			if err := d.Queues()[0].ReadPackets(&b); err != nil {
				ended <- err
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond)
	return ended
}

func sharedCollect(t *testing.T, d *Interface, _ *namespace) {
	reads(d)
	for range 3 {
		runtime.GC()
	}
}

func sharedClose(t *testing.T, d *Interface, _ *namespace) {
	ended := reads(d)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadPackets ended with %v, want net.ErrClosed or os.ErrClosed", err)
	}
}

func sharedSignal(t *testing.T, d *Interface, _ *namespace) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	reads(d)
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-signals
}

func sharedPackets(t *testing.T, d *Interface, n *namespace) {
	ping(t, n, d, "10.9.5.2")
	runtime.GC()
	for range 1000 {
		p := make([]byte, 28)
		p[0], p[3], p[8], p[9] = 0x45, 28, 64, 17
		copy(p[12:], []byte{10, 9, 5, 2, 10, 9, 5, 1})
		if _, err := d.WritePackets([][]byte{p}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
}

// TestSharedOlderKernel checks that readShared and writevShared do not wait on a kernel that does not support the flag RWF_NOWAIT
// for their file, such as Linux before 6.4 for a TUN. The test reads a blocking inotify descriptor and writes to a blocking
// eventfd, for which the kernel refuses the flag.
func TestSharedOlderKernel(t *testing.T) {
	dir := t.TempDir()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if n, errno := readShared(uintptr(watch), b); errno != unix.EAGAIN {
		t.Errorf("read without an event: %d bytes, error %v, want EAGAIN", n, errno)
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, errno := readShared(uintptr(watch), b); errno != 0 || n < unix.SizeofInotifyEvent {
		t.Errorf("read of an event: %d bytes, error %v; want a whole event and no error", n, errno)
	}

	counter, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(counter)
	var most [8]byte
	binary.NativeEndian.PutUint64(most[:], math.MaxUint64-1) // the largest value of the counter, so that another write would wait
	iovs := []unix.Iovec{{Base: &most[0]}}
	iovs[0].SetLen(len(most))
	if n, errno := writevShared(uintptr(counter), iovs); n != len(most) || errno != 0 {
		t.Errorf("first write: %d bytes, error %v; want 8 bytes and no error", n, errno)
	}
	if n, errno := writevShared(uintptr(counter), iovs); errno != unix.EAGAIN {
		t.Errorf("write that would wait: %d bytes, error %v, want EAGAIN", n, errno)
	}
}
