//go:build linux

package kernel

import (
	"fmt"
	"testing"

	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// The kernel answers an echo request with the type of service that it came with inside, so one exchange shows both directions.
// All of it goes over the line: QEMU's user network carries no TOS byte either way.

// TestHandshakeDSCP: "handshake messages carry 0x88 (AF41, not ECN-capable)", those of both ends.
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
								t.Errorf("%v of end %d: TOS %#x, DF %v; want 0x88, clear", kind, end, d.tos, d.df)
							}
						}
					}
				}
			})
		}
	}
}

// TestECN: outside is what is inside, but CE, which is sent as ECT(0), and no DSCP (RFC 6040's normal mode, as the kernel has it);
// what arrives inside is what was sent inside. Ours and the kernel's are compared in one table.
func TestECN(t *testing.T) {
	for _, w := range []way{line4, line6} {
		t.Run(string(w), func(t *testing.T) {
			p := newPair(t, setup{way: w, packets: true})
			for family, name := range families {
				for _, c := range []struct{ inner, outer uint8 }{{0, 0}, {1, 1}, {2, 2}, {3, 2}, {0xb8, 0}, {0xb9, 1}, {0xba, 2}, {0x8b, 2}} {
					sent, answered := p.line.count(ours, pipe.TypeData), p.line.count(kernels, pipe.TypeData)
					if got := tosOf(p.echo(family, 104, c.inner)); got != c.inner {
						t.Errorf("%s: the answer to %#x has %#x inside", name, c.inner, got)
					}
					out, back := p.line.all(ours, pipe.TypeData)[sent:], p.line.all(kernels, pipe.TypeData)[answered:]
					if len(out) != 1 || len(back) != 1 {
						t.Fatalf("%s: %d messages out, %d back, want 1 each", name, len(out), len(back))
					}
					if out[0].tos != c.outer || back[0].tos != c.outer {
						t.Errorf("%s: %#x inside is %#x outside of ours and %#x of the kernel's, want %#x", name, c.inner, out[0].tos, back[0].tos, c.outer)
					}
				}
			}
			p.wantCounters()
		})
	}
}

// TestECNMarked: a router outside marks what is ECN-capable. Marks are put inside by either end, CE over ECT and ECT(1) over
// ECT(0); not over what is not ECN-capable inside.
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
						// A mark on the way there is what the kernel answers with.
						if got := tosOf(p.echo(family, 104, c.inner)); got != c.want {
							t.Errorf("%s, %s, %#x inside and %#x outside: %#x inside after it, want %#x", direction, name, c.inner, c.mark, got, c.want)
						}
					}
				}
			}
		})
	}
}

// TestECNMismatch: CE outside on what is not ECN-capable inside. RFC 6040 lets a receiver drop it; the kernel logs and delivers it
// unchanged, and so do we, and count it.
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
				t.Errorf("%s, %s: %#x inside, want 0", direction, name, got)
			}
		}
	}
	if n := p.dev.Status().ECNMismatches - began; n != 2 {
		t.Errorf("%d mismatches of ours, want 2", n)
	}
}
