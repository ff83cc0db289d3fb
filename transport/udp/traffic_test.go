package udp

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

func TestTrainsArriveWhole(t *testing.T) {
	shapes := []struct {
		name    string
		n, size int
	}{
		{"one byte", 1, 1},
		{"one datagram", 1452, 1452},
		{"one datagram shorter than its size", 700, 1452},
		{"equal tail", 5 * 1200, 1200},
		{"short tail", 5*1200 + 1, 1200},
		{"full train", 44 * 1452, 1452},
		{"64 small ones", 64 * 32, 32},
		{"more than 64", 150*32 + 7, 32},
		{"more bytes than a datagram run can have", 60 * 1452, 1452},
		{"two that do not fit together", 2 * 40000, 40000},
		{"largest datagram", 65507 - 20, 65507 - 20},
		{"no size", 300, 0},
	}
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		for i, s := range shapes {
			sent := trainOf(i, s.n, s.size, y.at(f))
			x.send(sent)
			if s.size == 0 {
				sent.Size = s.n
			}
			got := y.receive(f, sent.Len())
			if wantTrain(t, got, sent); t.Failed() {
				t.Fatal(s.name)
			}
			if from := x.at(f); !got[0].from.SamePlace(from) {
				t.Fatalf("the datagram came from %v, want %v", got[0].from, from)
			}
		}
	})
}

// TestReceivedTrainHasItsSize checks that a train that is sent over loopback in one message is received as one train with the
// same Size.
func TestReceivedTrainHasItsSize(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	if c := y.paths[ipv4].socket(); !c.gso || !c.gro {
		t.Skip("needs UDP offloads")
	}
	sent := trainOf(1, 10*1200+300, 1200, y.at(ipv4))
	x.send(sent)
	ts := y.trains(ipv4)
	if len(ts) != 1 || ts[0].Size != 1200 || !bytes.Equal(ts[0].Data, sent.Data) {
		t.Fatalf("got %d trains, the first of %d bytes in datagrams of %d; want one of %d in datagrams of 1200",
			len(ts), len(ts[0].Data), ts[0].Size, len(sent.Data))
	}
	if st := y.Stats(); st.ReceiveCalls != 1 || st.ReceivedDatagrams != 11 || st.ReceivedBytes != 12300 {
		t.Errorf("the receiver counted %+v, want 1 call, 11 datagrams and 12300 bytes", st)
	}
	if st := x.Stats(); st.SendCalls != 1 || st.SentDatagrams != 11 || st.SentBytes != 12300 || st.Refused != 0 {
		t.Errorf("the sender counted %+v, want 1 call, 11 datagrams, 12300 bytes and none refused", st)
	}
}

func TestNoOffloadSendsSingleDatagrams(t *testing.T) {
	for _, v := range variants[1:] {
		x, y := v.pair(t, ipv4)
		sent := trainOf(1, 3*1200, 1200, y.at(ipv4))
		x.send(sent)
		for range 3 {
			for _, d := range y.trains(ipv4) {
				if d.Len() != 1 {
					t.Fatalf("%s: received a train of %d datagrams, want single datagrams", v.name, d.Len())
				}
			}
			if y.Stats().ReceivedDatagrams == 3 {
				break
			}
		}
	}
}

// TestManyEndpointsInOneSend checks that one call of Send can send to several sockets of both families, even if it has more
// trains than one system call takes.
func TestManyEndpointsInOneSend(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			x := v.listen(t)
			var fs []family
			var ys []*end
			for f := range families {
				if x.paths[f] != nil && has(f) {
					for range 3 {
						fs, ys = append(fs, f), append(ys, v.with(func(b *Bind) { b.Address = loopback(f) }).listen(t))
					}
				}
			}
			var ts []wireguard.Train
			want := make([][]wireguard.Train, len(ys))
			for i := range 150 {
				k := i % len(ys)
				size := 100 + i
				train := trainOf(i, size*(1+i%4)-i%3, size, ys[k].at(fs[k]))
				ts, want[k] = append(ts, train), append(want[k], train)
			}
			x.send(ts...)
			for k, y := range ys {
				n := 0
				for _, w := range want[k] {
					n += w.Len()
				}
				got := y.receive(fs[k], n)
				for _, w := range want[k] {
					wantTrain(t, got[:w.Len()], w)
					got = got[w.Len():]
				}
			}
		})
	}
}

// TestOneBadTrainHurtsNoOther checks that Send sets the error of a train that cannot be sent, and that the trains before and
// after it arrive.
func TestOneBadTrainHurtsNoOther(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		to := y.at(f)
		ts := []wireguard.Train{
			trainOf(0, 100, 100, to),
			trainOf(1, 100, 100, wireguard.Endpoint{}),                // no address
			trainOf(2, 100, 100, wireguard.EndpointOf(other(f))),      // a family that the socket does not have
			trainOf(3, 70000, 70000, to),                              // longer than a datagram can be
			trainOf(4, 3*1000, 1000, to),                              // follows a train that fails
			trainOf(5, 100, 100, to),                                  //
			trainOf(6, 100, 100, wireguard.EndpointOf(addrPort0(to))), // port 0
			trainOf(7, 100, 100, to),
		}
		x.Send(ts)
		for i, want := range []error{nil, errNoAddress, syscall.EAFNOSUPPORT, tooLong, nil, nil, errAny, nil} {
			switch err := ts[i].Err; {
			case want == errAny && err != nil:
			case !errors.Is(err, want):
				t.Errorf("train %d: error %v, want %v", i, err, want)
			}
		}
		got := y.receive(f, 6)
		wantTrain(t, got[:1], ts[0])
		wantTrain(t, got[1:4], ts[4])
		wantTrain(t, got[4:5], ts[5])
		wantTrain(t, got[5:], ts[7])
	})
}

var errAny = errors.New("any error")

var tooLong = map[bool]error{true: errAny, false: syscall.EMSGSIZE}[runtime.GOOS == "windows"]

func other(f family) netip.AddrPort { return netip.AddrPortFrom(loopback(1-f), 9) }

func addrPort0(e wireguard.Endpoint) netip.AddrPort { return netip.AddrPortFrom(e.Addr.Addr(), 0) }

func TestTypeOfService(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		if !v.control() || runtime.GOOS == "openbsd" && f == ipv4 {
			t.Skip("this path does not support the type of service")
		}
		x, y := v.pair(t, f)
		for i, tos := range []uint8{0, 1, 2, 0x88, 0xb8, 3} {
			sent := trainOf(i, 2500, 1000, y.at(f))
			sent.TOS = tos
			x.send(sent)
			for _, d := range y.receive(f, 3) {
				if d.tos != tos {
					t.Errorf("sent with type of service %#x, arrived with %#x", tos, d.tos)
				}
			}
		}
	})
}

// TestMappedAddressGoesOutByIPv4 checks that a train to an IPv4-mapped IPv6 address (::ffff:a.b.c.d) is sent over IPv4.
func TestMappedAddressGoesOutByIPv4(t *testing.T) {
	for _, v := range variants {
		x, y := v.pair(t, ipv4)
		to := wireguard.Endpoint{Addr: netip.MustParseAddrPort("[::ffff:127.0.0.1]:9")}
		to.Addr = netip.AddrPortFrom(to.Addr.Addr(), y.Port())
		x.send(trainOf(1, 2000, 1000, to))
		if got := y.receive(ipv4, 2); !got[0].from.Addr.Addr().Is4() {
			t.Errorf("%s: the datagram came from %v, want an IPv4 address", v.name, got[0].from)
		}
	}
}

// TestReceivedMemoryOutlivesClose checks that the trains that Receive has returned stay valid until Receive is called again,
// even if the socket is closed meanwhile.
func TestReceivedMemoryOutlivesClose(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		sent := trainOf(7, 900, 900, y.at(f))
		x.send(sent)
		ts := y.trains(f)
		y.Close()
		for i := range 100 { // other sockets use the pool meanwhile
			u, w := v.pair(t, f)
			u.send(trainOf(i, 900, 900, w.at(f)))
			w.receive(f, 1)
			u.Close()
			w.Close()
		}
		if !bytes.Equal(ts[0].Data, sent.Data) {
			t.Error("the train changed after Close")
		}
	})
}

func TestConcurrentSend(t *testing.T) {
	const senders, rounds = 8, 10
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for r := range rounds {
					ts := []wireguard.Train{trainOf(s*rounds+r, 3*64, 64, y.at(f)), trainOf(s*rounds+r, 64, 64, y.at(f))}
					x.Send(ts)
					if ts[0].Err != nil || ts[1].Err != nil {
						t.Errorf("sender %d: errors %v and %v, want none", s, ts[0].Err, ts[1].Err)
					}
				}
			})
		}
		got := y.receive(f, senders*rounds*4)
		wg.Wait()
		seen := map[string]int{} // number of arrivals of each datagram, by its content
		for _, d := range got {
			seen[string(d.data)]++
		}
		for s := range senders * rounds {
			if n := seen[string(numbered(s, 64))]; n != 2 {
				t.Fatalf("the first datagram of train %d arrived %d times, want 2", s, n)
			}
		}
	})
}

func TestNothingAllocatedPerDatagram(t *testing.T) {
	if testkit.Race {
		t.Skip("under the race detector, sync.Pool drops objects at random")
	}
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		in := y.receiver(f)
		single, long := trainOf(1, 100, 100, y.at(f)), trainOf(2, 8*1200, 1200, y.at(f))
		long.TOS = 2
		long.Endpoint.Source = loopback(f)
		ts := []wireguard.Train{single, long, single}
		for name, send := range map[string][]wireguard.Train{"one datagram": ts[:1], "several trains": ts} {
			n := 0
			for i := range send {
				n += send[i].Len()
			}
			allocs := testing.AllocsPerRun(200, func() {
				x.Send(send)
				for left := n; left > 0; {
					got, err := in.Receive()
					if err != nil {
						t.Error(err)
						return
					}
					for i := range got {
						left -= got[i].Len()
					}
				}
			})
			if allocs != 0 {
				t.Errorf("%s: %v allocations, want 0", name, allocs)
			}
		}
	})
}
