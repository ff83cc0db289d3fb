package udp

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// fast returns the path of e for the family f, which must be a linuxPath.
func fast(t *testing.T, e *end, f family) *linuxPath {
	t.Helper()
	p, ok := e.paths[f].(*linuxPath)
	if !ok {
		t.Fatalf("%T is not the Linux path", e.paths[f])
	}
	return p
}

// isTrain reports whether a message has the control message that makes the system split it into datagrams.
func isTrain(m *mmsghdr) bool { return hasControlMessage(m, unix.IPPROTO_UDP, unix.UDP_SEGMENT) }

func hasTOS(m *mmsghdr) bool {
	return hasControlMessage(m, unix.IPPROTO_IP, unix.IP_TOS) || hasControlMessage(m, unix.IPPROTO_IPV6, unix.IPV6_TCLASS)
}

func hasSource(m *mmsghdr) bool {
	return hasControlMessage(m, unix.IPPROTO_IP, unix.IP_PKTINFO) || hasControlMessage(m, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO)
}

func hasControlMessage(m *mmsghdr, level, kind int32) bool {
	if m.hdr.Control == nil {
		return false
	}
	b := unsafe.Slice(m.hdr.Control, m.hdr.Controllen)
	for len(b) > 0 {
		h, _, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return false
		}
		if h.Level == level && h.Type == kind {
			return true
		}
		b = rest
	}
	return false
}

// refuse makes p refuse each message for which refused returns an error number. As in a real call of sendmmsg, the messages
// before a refused one are sent.
func refuse(p *linuxPath, refused func(m *mmsghdr) syscall.Errno) {
	p.sendmmsg = func(fd uintptr, m []mmsghdr) (int, syscall.Errno) {
		for i := range m {
			if errno := refused(&m[i]); errno != 0 && i == 0 {
				return 0, errno
			} else if errno != 0 {
				return sendmmsg(fd, m[:i])
			}
		}
		return sendmmsg(fd, m)
	}
}

// TestRefusedTrainGoesOutSingly checks that the datagrams of a refused train are sent singly. In another implementation, sending
// with UDP GSO failed with EMSGSIZE for ever if the path had a small MTU (faults_test.go).
func TestRefusedTrainGoesOutSingly(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EMSGSIZE, unix.EIO, unix.EINVAL} {
		t.Run(errno.Error(), func(t *testing.T) {
			x, y := variants[0].pair(t, ipv4)
			p := fast(t, x, ipv4)
			p.gso = true
			asked := 0
			refuse(p, func(m *mmsghdr) syscall.Errno {
				if isTrain(m) {
					asked++
					return errno
				}
				return 0
			})
			to := y.at(ipv4)
			ts := []wireguard.Train{
				trainOf(0, 10, 10, to),
				trainOf(1, 70*100+1, 100, to), // two messages
				trainOf(2, 20, 20, to),
				trainOf(3, 250, 100, to),
			}
			x.send(ts...)
			got := y.receive(ipv4, 1+71+1+3)
			for i, n := range []int{1, 71, 1, 3} {
				wantTrain(t, got[:n], ts[i])
				got = got[n:]
			}
			// From then on, Send does not try trains to this destination. It still sends many datagrams per system call.
			asked = 0
			before := x.Stats().SendCalls
			x.send(ts[1], ts[3])
			y.receive(ipv4, 71+3)
			if asked != 0 || x.Stats().SendCalls-before != 2 {
				t.Errorf("Send tried GSO %d more times and used %d system calls, want 0 more times and 2 calls", asked, x.Stats().SendCalls-before)
			}
			// Other destinations are not affected.
			if p.plain.has(netip.MustParseAddr("127.0.0.2")) {
				t.Error("Send stopped sending trains to 127.0.0.2, which never refused one")
			}
			// When plainTime is over, Send tries trains again.
			p.plain.until[to.Addr.Addr()] = time.Now()
			refuse(p, func(*mmsghdr) syscall.Errno { return 0 })
			before = x.Stats().SendCalls
			x.send(ts[3])
			y.receive(ipv4, 3)
			if calls := x.Stats().SendCalls - before; calls != 1 {
				t.Errorf("after plainTime, Send used %d system calls for a train, want 1", calls)
			}
		})
	}
}

// TestRefusedTrainKeepsItsSource checks that the source is kept if the system refuses a train with EINVAL but accepts its
// single datagrams. EINVAL can mean either that the train is refused or that the source no longer exists.
func TestRefusedTrainKeepsItsSource(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	p := fast(t, x, ipv4)
	p.gso = true
	refuse(p, func(m *mmsghdr) syscall.Errno {
		if isTrain(m) {
			return unix.EINVAL
		}
		return 0
	})
	to := y.at(ipv4)
	to.Source = loopback(ipv4)
	ts := []wireguard.Train{trainOf(1, 3000, 1000, to)}
	x.send(ts...)
	wantTrain(t, y.receive(ipv4, 3), ts[0])
	if ts[0].Endpoint.Source != to.Source || !p.plain.has(to.Addr.Addr()) {
		t.Errorf("source %v, destination gets single datagrams: %v; want the source kept and single datagrams", ts[0].Endpoint.Source, p.plain.has(to.Addr.Addr()))
	}
}

// TestGoneSourceIsForgottenOnFailure checks that Send clears a source that may no longer exist, even if sending without the
// source fails too. It also checks that Send gives up after at most 3 attempts.
func TestGoneSourceIsForgottenOnFailure(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	tries := 0
	refuse(fast(t, x, ipv4), func(*mmsghdr) syscall.Errno {
		tries++
		return unix.ENETUNREACH
	})
	to := y.at(ipv4)
	to.Source, to.Interface = loopback(ipv4), 1
	ts := []wireguard.Train{trainOf(1, 100, 100, to)}
	x.Send(ts)
	if !errors.Is(ts[0].Err, unix.ENETUNREACH) || ts[0].Endpoint != y.at(ipv4) || tries > 3 {
		t.Errorf("error %v, endpoint %+v, %d attempts; want ENETUNREACH, an endpoint without source, and at most 3 attempts", ts[0].Err, ts[0].Endpoint, tries)
	}
}

// TestEveryTrainIsTried checks that a datagram that cannot be sent does not prevent the sending of earlier or later trains, and
// that its error is set in its train.
func TestEveryTrainIsTried(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	to := y.at(ipv4)
	var ts []wireguard.Train
	for i := range 150 {
		ts = append(ts, trainOf(i, 101+i, 101+i, to))
	}
	refuse(fast(t, x, ipv4), func(m *mmsghdr) syscall.Errno {
		if m.hdr.Iov.Len%10 == 0 {
			return unix.ENOBUFS
		}
		return 0
	})
	x.Send(ts)
	n := 0
	for i := range ts {
		if fails := len(ts[i].Data)%10 == 0; fails != errors.Is(ts[i].Err, unix.ENOBUFS) {
			t.Errorf("train %d of %d bytes: error %v, want ENOBUFS exactly if the length is a multiple of 10", i, len(ts[i].Data), ts[i].Err)
		} else if !fails {
			n++
		}
	}
	y.receive(ipv4, n)
}

// TestFullBuffer checks that Send waits while a socket's send buffer is full, and that Close ends the wait.
func TestFullBuffer(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	p := fast(t, x, ipv4)
	full := true
	p.sendmmsg = func(fd uintptr, m []mmsghdr) (int, syscall.Errno) {
		if full {
			full = false
			return 0, unix.EAGAIN
		}
		return sendmmsg(fd, m)
	}
	ts := []wireguard.Train{trainOf(1, 100, 100, y.at(ipv4)), trainOf(2, 3000, 1000, y.at(ipv4))}
	x.send(ts...)
	y.receive(ipv4, 4)

	stuck := make(chan bool, 1000)
	p.sendmmsg = func(uintptr, []mmsghdr) (int, syscall.Errno) {
		stuck <- true
		return 0, unix.EAGAIN
	}
	done := make(chan bool)
	go func() {
		x.Send(ts)
		close(done)
	}()
	<-stuck
	x.Close()
	<-done
	for i := range ts {
		if !errors.Is(ts[i].Err, net.ErrClosed) {
			t.Errorf("train %d: error %v, want net.ErrClosed", i, ts[i].Err)
		}
	}
}

// TestDamagedDatagrams checks that damaged datagrams are dropped and counted, and that the datagrams before and after them are
// returned.
func TestDamagedDatagrams(t *testing.T) {
	damage := map[string]func(m *mmsghdr){
		"truncated":          func(m *mmsghdr) { m.hdr.Flags |= unix.MSG_TRUNC },
		"train without size": func(m *mmsghdr) { m.hdr.Flags |= unix.MSG_CTRUNC; m.hdr.SetControllen(0) },
		"broken control":     func(m *mmsghdr) { *(*uint32)(unsafe.Pointer(m.hdr.Control)) = 1 << 20 },
		"wrong family":       func(m *mmsghdr) { (*unix.RawSockaddr)(unsafe.Pointer(m.hdr.Name)).Family = unix.AF_INET6 },
		"no address":         func(m *mmsghdr) { m.hdr.Namelen = 0 },
		"too long":           func(m *mmsghdr) { m.n = slotSize + 1 },
		"empty":              func(m *mmsghdr) { m.n = 0 },
	}
	for name, harm := range damage {
		t.Run(name, func(t *testing.T) {
			x, y := variants[0].pair(t, ipv4)
			p := fast(t, y, ipv4)
			p.gro = true
			p.want = 8
			p.recvmmsg = func(fd uintptr, m []mmsghdr) (int, syscall.Errno) {
				n, errno := recvmmsg(fd, m)
				for i := range n {
					if m[i].n == 66 {
						harm(&m[i])
					}
				}
				return n, errno
			}
			var ts []wireguard.Train
			for i, n := range []int{66, 10, 66, 66, 20, 66, 30} {
				ts = append(ts, trainOf(i, n, n, y.at(ipv4)))
			}
			x.send(ts...)
			got := y.receive(ipv4, 3)
			for i, k := range []int{1, 4, 6} {
				wantTrain(t, got[i:i+1], ts[k])
			}
			if st := y.Stats(); st.Dropped != 4 || st.ReceivedDatagrams != 3 {
				t.Errorf("Stats counted %d dropped and %d received datagrams, want 4 and 3", st.Dropped, st.ReceivedDatagrams)
			}
		})
	}
}

func TestEmptyDatagram(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		x.send(wireguard.Train{Endpoint: y.at(f)}, trainOf(1, 5, 5, y.at(f)))
		y.receive(f, 1)
		if st := y.Stats(); st.Dropped != 1 {
			t.Errorf("Stats counted %d dropped datagrams, want 1, the empty one", st.Dropped)
		}
	})
}

// TestErrorThatStays checks that Receive returns an error that does not go away, and that the path then holds no rack (no receive
// buffers). Receive works again when the error is gone.
func TestErrorThatStays(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	p := fast(t, y, ipv4)
	p.recvmmsg = func(uintptr, []mmsghdr) (int, syscall.Errno) { return 0, unix.ENOMEM }
	for range 3 {
		if _, err := p.Receive(); !errors.Is(err, unix.ENOMEM) || p.rack != nil {
			t.Fatalf("error %v, want ENOMEM; the path holds a rack: %v, want false", err, p.rack != nil)
		}
	}
	p.recvmmsg = recvmmsg
	x.send(trainOf(1, 10, 10, y.at(ipv4)))
	y.receive(ipv4, 1)
}

func TestPlainPaths(t *testing.T) {
	var p plainPaths
	start := time.Now()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	if p.hasAt(at(0), start) {
		t.Error("an empty table contains an address")
	}
	for i := range maxPlain + 10 {
		p.add(at(i), start.Add(time.Duration(i)*time.Millisecond))
	}
	if len(p.until) != maxPlain || int(p.n.Load()) != maxPlain {
		t.Errorf("the table has %d entries and its counter is %d, want %d for both", len(p.until), p.n.Load(), maxPlain)
	}
	var kept []int
	for i := range maxPlain + 10 {
		if p.hasAt(at(i), start) {
			kept = append(kept, i)
		}
	}
	if slices.Index(kept, 10) != 0 {
		t.Errorf("the oldest entry left is %v, want entry 10: the first ten must be evicted", kept[:1])
	}
	last := at(maxPlain + 9)
	if p.add(last, start); !p.hasAt(last, start.Add(plainTime-1)) || p.hasAt(last, start.Add(plainTime)) {
		t.Errorf("an entry does not expire exactly %v after it was added", plainTime)
	}
	for i := range maxPlain + 10 {
		p.hasAt(at(i), start.Add(time.Hour))
	}
	if len(p.until) != 0 || p.n.Load() != 0 {
		t.Errorf("an hour later, the table has %d entries and its counter is %d, want 0 for both", len(p.until), p.n.Load())
	}
}

// withTOS returns a train of three datagrams with a type of service and a source.
func withTOS(n int, to wireguard.Endpoint) wireguard.Train {
	t := trainOf(n, 3000, 1000, to)
	t.TOS, t.Endpoint.Source = 0x88, to.Addr.Addr()
	return t
}

// TestRefusedTOS checks that datagrams are sent without a type of service after the system has refused it once. The datagrams
// keep their source, and are still sent as trains.
func TestRefusedTOS(t *testing.T) {
	for f := range families {
		t.Run(f.String(), func(t *testing.T) {
			if !has(f) {
				t.Skipf("needs an %v loopback address", f)
			}
			x, y := variants[0].pair(t, f)
			p := fast(t, x, f)
			asked := 0
			refuse(p, func(m *mmsghdr) syscall.Errno {
				if hasTOS(m) {
					asked++
					return unix.EINVAL
				}
				return 0
			})
			ts := []wireguard.Train{withTOS(1, y.at(f)), withTOS(2, y.at(f)), trainOf(3, 10, 10, y.at(f))}
			x.send(ts...)
			y.receive(f, 7)
			for i := range 2 {
				if !ts[i].Endpoint.Source.IsValid() {
					t.Errorf("Send cleared the source of train %d, want it kept", i)
				}
			}
			if p.plain.has(loopback(f)) {
				t.Error("the destination gets single datagrams, want trains")
			}
			asked = 0
			x.send(withTOS(4, y.at(f)))
			y.receive(f, 3)
			if asked != 0 || p.tos.Load() != tosRefused {
				t.Errorf("Send tried the type of service %d more times, want 0; its state is %d, want tosRefused", asked, p.tos.Load())
			}
		})
	}
}

// TestTOSIsNotBlamed checks that Send does not stop setting the type of service when the error has another cause: first, the
// system refuses the source; then, it refuses every message.
func TestTOSIsNotBlamed(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	p := fast(t, x, ipv4)
	refuse(p, func(m *mmsghdr) syscall.Errno {
		if hasSource(m) {
			return unix.EINVAL
		}
		return 0
	})
	ts := []wireguard.Train{withTOS(1, y.at(ipv4))}
	ts[0].Size = len(ts[0].Data)
	x.send(ts...)
	if got := y.receive(ipv4, 1); got[0].tos != 0x88 || ts[0].Endpoint.Source.IsValid() || p.tos.Load() != tosTaken {
		t.Errorf("type of service %#x, source %v, state %d; want 0x88, no source and the state tosTaken", got[0].tos, ts[0].Endpoint.Source, p.tos.Load())
	}
	p.tos.Store(tosUnknown)
	refuse(p, func(*mmsghdr) syscall.Errno { return unix.EINVAL })
	ts = []wireguard.Train{withTOS(1, y.at(ipv4))}
	if x.Send(ts); !errors.Is(ts[0].Err, unix.EINVAL) || p.tos.Load() != tosUnknown {
		t.Errorf("error %v, state %d; want EINVAL and tosUnknown, because the system refused every message", ts[0].Err, p.tos.Load())
	}
}
