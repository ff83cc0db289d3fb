//go:build linux

package kernel

import (
	"fmt"
	"testing"

	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// These tests use the line, because QEMU's user network does not carry the TOS byte. The kernel's echo reply has the same inner
// type of service as the request, so one exchange tests both directions.

// TestHandshakeDSCP checks that the handshake messages of both peers have 0x88 as type of service: AF41, not ECN-capable.
func TestHandshakeDSCP(t *testing.T) {
	for _, w := range []way{line4, line6} {
		for first, role := range []string{"ours", "the kernel's"} {
			t.Run(fmt.Sprintf("%s/%s", w, role), func(t *testing.T) {
				p := newPair(t, setup{way: w})
				if first == ours {
					p.ping(0)
				} else {
					p.pinged(0)
				}
				for end := range 2 {
					for _, kind := range []pipe.MessageType{pipe.TypeInitiation, pipe.TypeResponse} {
						for _, d := range p.line.all(end, kind) {
							if d.tos != 0x88 || d.df {
								t.Errorf("%v from end %d has TOS %#x and DF %v, want TOS 0x88 without DF", kind, end, d.tos, d.df)
							}
						}
					}
				}
			})
		}
	}
}

// TestECN checks RFC 6040's normal mode, which the kernel implements too. The outer header copies the inner ECN mark, except that
// CE becomes ECT(0), and carries no DSCP. The inner header arrives unchanged. The test expects the same outer marks on our messages
// as on the kernel's.
func TestECN(t *testing.T) {
	for _, w := range []way{line4, line6} {
		t.Run(string(w), func(t *testing.T) {
			p := newPair(t, setup{way: w, packets: true})
			for family, name := range families {
				for _, c := range []struct{ inner, outer uint8 }{{0, 0}, {1, 1}, {2, 2}, {3, 2}, {0xb8, 0}, {0xb9, 1}, {0xba, 2}, {0x8b, 2}} {
					sent, answered := p.line.count(ours, pipe.TypeData), p.line.count(kernels, pipe.TypeData)
					if got := tosOf(p.echo(family, 104, c.inner)); got != c.inner {
						t.Errorf("%s: the answer to a packet with TOS %#x has TOS %#x, want the same", name, c.inner, got)
					}
					out, back := p.line.all(ours, pipe.TypeData)[sent:], p.line.all(kernels, pipe.TypeData)[answered:]
					if len(out) != 1 || len(back) != 1 {
						t.Fatalf("%s: we sent %d data messages and the kernel sent %d, want 1 each", name, len(out), len(back))
					}
					if out[0].tos != c.outer || back[0].tos != c.outer {
						t.Errorf("%s: with TOS %#x inside, our message has %#x outside and the kernel's has %#x, want %#x", name, c.inner, out[0].tos, back[0].tos, c.outer)
					}
				}
			}
			p.wantCounters()
		})
	}
}

// TestECNMarked changes the ECN mark of the outer header, as a router on the path may do. The receiver copies CE to an inner header
// that has ECT(0) or ECT(1), and copies ECT(1) to an inner header that has ECT(0). It does not mark an inner packet that is not
// ECN-capable.
func TestECNMarked(t *testing.T) {
	for _, w := range []way{line4, line6} {
		t.Run(string(w), func(t *testing.T) {
			p := newPair(t, setup{way: w, packets: true})
			for end, direction := range []string{"to the kernel", "from the kernel"} {
				for family, name := range families {
					for _, c := range []struct{ inner, mark, want uint8 }{
						{2, 3, 3}, {1, 3, 3}, {2, 1, 1}, {1, 2, 1}, {0, 1, 0}, {0, 2, 0}, {3, 2, 3}, {3, 0, 3}, {2, 0, 2}, {0xba, 3, 0xbb},
					} {
						p.line.filter(func(from int, d *datagram) bool {
							if from == end && d.kind() == pipe.TypeData {
								d.tos = c.mark
							}
							return true
						})
						// The kernel's answer carries the inner mark with which the request arrived.
						if got := tosOf(p.echo(family, 104, c.inner)); got != c.want {
							t.Errorf("%s, %s: a packet with TOS %#x inside and %#x outside arrived with %#x, want %#x", direction, name, c.inner, c.mark, got, c.want)
						}
					}
				}
			}
		})
	}
}

// TestECNMismatch sets CE in the outer header of a packet whose inner header is not ECN-capable. RFC 6040 (section 4.2) tells a
// receiver to drop the packet. The kernel logs such a packet and delivers it unchanged. Our device also delivers it unchanged, and
// counts it.
func TestECNMismatch(t *testing.T) {
	p := newPair(t, setup{way: line4, packets: true})
	p.echo(0, 84, 0)
	began := p.dev.Status().ECNMismatches
	for end, direction := range []string{"to the kernel", "from the kernel"} {
		p.line.filter(func(from int, d *datagram) bool {
			if from == end && d.kind() == pipe.TypeData {
				d.tos = 3
			}
			return true
		})
		for family, name := range families {
			if got := tosOf(p.echo(family, 104, 0)); got != 0 {
				t.Errorf("%s, %s: the packet arrived with TOS %#x, want 0", direction, name, got)
			}
		}
	}
	if n := p.dev.Status().ECNMismatches - began; n != 2 {
		t.Errorf("our device counted %d ECN mismatches, want 2", n)
	}
}
