//go:build linux && !android

package tun

import (
	"bytes"
	"syscall"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/sys/unix"
)

// TestMerge checks that WritePackets merges packets that may be merged, and no others.
func TestMerge(t *testing.T) {
	d, k := dry(t)
	writes := func(what string, ps [][]byte, want int) {
		t.Helper()
		k.written = nil
		if n, err := d.WritePackets(ps); n != len(ps) || err != nil {
			t.Errorf("%s: WritePackets wrote %d packets, error %v; want all", what, n, err)
		}
		if len(k.written) != want {
			t.Errorf("%s: %d system calls, want %d", what, len(k.written), want)
		}
	}
	for _, v6 := range []bool{false, true} {
		writes("TCP, 64 KiB", train(v6, false, 1, 45, 1400), 1)
		writes("TCP, 128 KiB", train(v6, false, 1, 90, 1400), 2)
		writes("UDP, 45 datagrams", train(v6, true, 1, 45, 1400), 1)
		writes("UDP, 65 datagrams", train(v6, true, 1, 65, 10), 2)
		writes("four flows in turn", interleave(train(v6, false, 1, 9, 100), train(v6, true, 2, 9, 100), train(v6, false, 3, 9, 200), train(v6, true, 4, 9, 300)), 4)

		wrong := train(v6, false, 1, 10, 100)
		wrong[5][len(wrong[5])-1] ^= 1
		writes("a wrong checksum in the middle", wrong, 3)
		wrong = train(v6, true, 1, 10, 100)
		wrong[0][len(wrong[0])-1] ^= 1
		writes("a wrong checksum in the first packet", wrong, 2)
	}
	fragments := train(false, true, 1, 10, 100)
	for i, p := range fragments {
		p[6] = 0 // clears "don't fragment", so the identifications must be consecutive
		p[5] = byte(2 * i)
		(shape{l3: 20, l4: 28, udp: true}).mend(p)
	}
	writes("identifications that are not consecutive", fragments, 10)
	for i, p := range fragments {
		p[5] = byte(i)
		(shape{l3: 20, l4: 28, udp: true}).mend(p)
	}
	writes("consecutive identifications", fragments, 1)
}

// TestRefused checks that, if the kernel refuses a merged packet, its parts are written one by one. After the kernel has refused
// the first three merged packets of one kind, this kind is no longer merged. Other kinds are not affected.
func TestRefused(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.EMSGSIZE} {
		t.Run(errno.Error(), func(t *testing.T) {
			d, k := dry(t)
			tried := 0
			k.refuse = func(h virtio) syscall.Errno {
				if h.gso == gsoUDP {
					tried++
					return errno
				}
				return 0
			}
			udp, tcp := train(false, true, 1, 10, 100), train(false, false, 1, 10, 100)
			for i := range 5 {
				begin := len(k.written)
				if n, err := d.WritePackets(append(bytesClones(udp), tcp...)); n != 20 || err != nil {
					t.Fatalf("WritePackets wrote %d packets, error %v; want 20 and no error", n, err)
				}
				if want := min(i+1, mergeRefused); tried != want {
					t.Errorf("WritePackets tried %d merged packets, want %d", tried, want)
				}
				for i, p := range udp {
					if !bytes.Equal(k.written[begin+i][virtioSize:], p) {
						t.Fatalf("the kernel received packet %d changed", i)
					}
				}
			}
			if s := d.Stats(); s.WriteCalls != 55 || s.Merged != 50 || s.Refused != 3 || s.WrittenPackets != 100 {
				t.Errorf("%+v, want 55 calls, 50 merged, 3 refused and 100 written packets", s)
			}
			if d.merges[udp6].Load() != mergeUntried {
				t.Error("the refusals for IPv4 changed the state of merging for IPv6")
			}
		})
	}
}

// TestRefusedRuns checks that merging stops only if the kernel refuses the first three merged packets. Later refusals must not
// stop it, because a peer chooses the contents of the packets, and so can cause refusals.
func TestRefusedRuns(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.EMSGSIZE} {
		for _, x := range []struct {
			name  string
			taken []bool // whether the kernel accepts the first, second, ... merged packet
			dead  bool
		}{
			{"the first", []bool{false}, false},
			{"the first two", []bool{false, false}, false},
			{"the first three", []bool{false, false, false}, true},
			{"three, the second taken", []bool{false, true, false, false}, false},
			{"what worked", []bool{true, false, false, false, false}, false},
		} {
			t.Run(errno.Error()+"/"+x.name, func(t *testing.T) {
				d, k := dry(t)
				var merged, refused uint64
				for i, taken := range append(x.taken, true) {
					k.refuse = func(h virtio) syscall.Errno {
						if h.gso == gsoNone || taken {
							return 0
						}
						return errno
					}
					switch {
					case !taken:
						refused++
					case i < len(x.taken) || !x.dead:
						merged += 10
					}
					if n, err := d.WritePackets(train(false, false, 1, 10, 100)); n != 10 || err != nil {
						t.Fatalf("run %d: WritePackets wrote %d packets, error %v; want 10 and no error", i, n, err)
					}
				}
				if s := d.Stats(); s.Merged != merged || s.Refused != refused {
					t.Errorf("%d packets were merged and %d merged packets refused, want %d and %d", s.Merged, s.Refused, merged, refused)
				}
			})
		}
	}
}

// TestNotTaken checks that packets that the kernel does not accept are counted by reason. Later packets are still written.
func TestNotTaken(t *testing.T) {
	for _, x := range []struct {
		errno                     syscall.Errno
		full, down, invalid, gone uint64
	}{{unix.EAGAIN, 11, 0, 0, 0}, {unix.ENOBUFS, 11, 0, 0, 0}, {unix.EIO, 0, 11, 0, 0}, {unix.EPERM, 0, 0, 11, 0}, {unix.EBADFD, 0, 0, 0, 11}} {
		d, k := dry(t)
		k.refuse = func(virtio) syscall.Errno { return x.errno }
		pkts := append(train(false, false, 1, 10, 100), []byte("no packet"))
		if n, err := d.WritePackets(pkts); n != 0 || err == nil {
			t.Errorf("%v: WritePackets wrote %d packets, error %v; want 0 and an error", x.errno, n, err)
		}
		if s := d.Stats(); s.Full != x.full || s.Down != x.down || s.Invalid != x.invalid || s.WriteCalls != 0 {
			t.Errorf("%v: the counters are %+v, want 11 packets counted for this reason", x.errno, s)
		}
		if ended := d.Err() != nil; ended != (x.gone > 0) {
			t.Errorf("%v: Err returns %v, want an error only after EBADFD", x.errno, d.Err())
		}
		if k.refuse = nil; x.gone > 0 {
			continue
		}
		if n, err := d.WritePackets(pkts); n != len(pkts) || err != nil {
			t.Errorf("after %v, without further errors: WritePackets wrote %d packets, error %v; want all", x.errno, n, err)
		}
	}
}

// TestNoHeader checks that packets are written without a header if the kernel expects none.
func TestNoHeader(t *testing.T) {
	d, k := dry(t)
	d.header = 0
	for i := range d.merges {
		d.merges[i].Store(mergeRefused)
	}
	pkts := train(true, false, 1, 5, 100)
	if n, err := d.WritePackets(pkts); n != 5 || err != nil {
		t.Fatalf("WritePackets wrote %d packets, error %v; want 5 and no error", n, err)
	}
	for i, p := range pkts {
		if !bytes.Equal(k.written[i], p) {
			t.Fatalf("the kernel received packet %d changed", i)
		}
	}
}

// TestWriteAllocates checks that the inbound path does not allocate.
func TestWriteAllocates(t *testing.T) {
	if testkit.Race {
		t.Skip("under the race detector, sync.Pool drops objects at random")
	}
	d, k := dry(t)
	k.discard = true
	for _, udp := range []bool{false, true} {
		ps := append(train(false, udp, 1, 45, 1400), train(true, udp, 2, 45, 1400)...)
		if n := testing.AllocsPerRun(100, func() { _, _ = d.WritePackets(ps) }); n != 0 {
			t.Errorf("writing 90 packets allocates %v times, want 0", n)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	d, k := dry(b)
	k.discard = true
	ps := train(false, false, 1, 45, 1380)
	b.SetBytes(45 * 1380)
	for b.Loop() {
		_, _ = d.WritePackets(ps)
	}
}

// TestOffload checks that offload tries fewer and fewer offloads until the kernel accepts them.
func TestOffload(t *testing.T) {
	const (
		tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		ecn = unix.TUN_F_TSO_ECN
		udp = unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	for _, x := range []struct {
		kernel    string
		has, want int
	}{
		{"since 6.2", tcp | ecn | udp, tcp | ecn | udp},
		{"before 6.2", tcp | ecn | unix.TUN_F_UFO, tcp | ecn},
		{"without ECN", tcp, tcp},
		{"with checksums only", unix.TUN_F_CSUM, unix.TUN_F_CSUM},
		{"without offloads", 0, 0},
	} {
		for _, wanted := range []bool{true, false} {
			set := -1
			got := offload(wanted, func(offloads int) error {
				if offloads&^x.has != 0 {
					return unix.EINVAL
				}
				set = offloads
				return nil
			})
			want := x.want
			if !wanted {
				want = 0
			}
			if got != want || set != want {
				t.Errorf("kernel %s, offloads wanted: %v: offload returned %#x and set %#x, want %#x for both", x.kernel, wanted, got, set, want)
			}
		}
	}
}
