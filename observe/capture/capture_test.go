package capture_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe/capture"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

var insideA, insideB = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")

// A pair is two devices. The test captures what device a sends and receives.
type pair struct {
	t          *testing.T
	a, b       *wireguard.Device
	tunA, tunB *pipe.Tunnel
	keyB       wireguard.PublicKey
}

func newPair(t *testing.T, c *capture.Capture, addrs ...netip.Addr) *pair {
	t.Helper()
	n := pipe.NewNetwork(pipe.Config{Seed: 1})
	endA, endB := n.NewEnd(), n.NewEnd()
	if len(addrs) == 2 {
		endA, endB = n.NewEnd(addrs[0]), n.NewEnd(addrs[1])
	}
	keyA, keyB, psk := wireguard.NewPrivateKey(), wireguard.NewPrivateKey(), wireguard.NewPresharedKey()
	p := &pair{t: t, tunA: pipe.NewTunnel(1420), tunB: pipe.NewTunnel(1420), keyB: keyB.Public()}
	up := func(c wireguard.Config, peer wireguard.PublicKey, at *pipe.End, inside netip.Addr) *wireguard.Device {
		c.ListenPort, c.Clock = 51820, pipe.NewClock()
		c.Peers = []wireguard.PeerConfig{{PublicKey: peer, PresharedKey: psk, Endpoint: at.Endpoint(51820), AllowedIPs: []netip.Prefix{netip.PrefixFrom(inside, 32)}}}
		d, err := wireguard.New(c)
		if err == nil {
			t.Cleanup(func() { d.Close() })
			err = d.Up()
		}
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	p.b = up(wireguard.Config{PrivateKey: keyB, Bind: endB, Tunnel: p.tunB}, keyA.Public(), endA, insideA)
	p.a = up(wireguard.Config{PrivateKey: keyA, Bind: c.Bind(endA), Tunnel: c.Tunnel(p.tunA), KeyLog: c.KeyLog()}, keyB.Public(), endB, insideB)
	return p
}

// exchange sends a packet with the text question from a to b, and one with the text answer from b to a.
func (p *pair) exchange(question, answer string) {
	p.t.Helper()
	for _, way := range []struct {
		from, to *pipe.Tunnel
		src, dst netip.Addr
		text     string
	}{{p.tunA, p.tunB, insideA, insideB, question}, {p.tunB, p.tunA, insideB, insideA, answer}} {
		packet := pipe.UDPPacket(netip.AddrPortFrom(way.src, 7000), netip.AddrPortFrom(way.dst, 7000), []byte(way.text))
		way.from.TrySend(packet)
		synctest.Wait()
		if got := way.to.TryReceive(); !bytes.Equal(got, packet) {
			p.t.Fatalf("the other end received %d bytes, want the packet of %d bytes with the text %q", len(got), len(packet), way.text)
		}
	}
}

// read returns the given fields of each packet that a filter of tshark selects.
func read(t *testing.T, tshark string, file []byte, filter string, fields ...string) string {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "capture.pcapng")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-n", "-r", name, "-Y", filter, "-T", "fields"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	c := exec.Command(tshark, args...)
	c.Env = append(os.Environ(), "HOME="+dir) // so that tshark reads no user's preferences
	var trouble bytes.Buffer
	c.Stderr = &trouble
	out, err := c.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, &trouble)
	}
	return string(out)
}

const question, answer, early = "7175657374696f6e", "616e73776572", "6561726c79" // as hexadecimal digits

// TestWiresharkDecrypts checks that tshark opens the file, tells outer from inner packets, shows their directions, and
// decrypts the outer ones with the keys in the file.
func TestWiresharkDecrypts(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("needs tshark: install it to have its dissector read the capture")
	}
	for name, addrs := range map[string][]netip.Addr{
		"IPv4": nil,
		"IPv6": {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
	} {
		t.Run(name, func(t *testing.T) {
			var file bytes.Buffer
			synctest.Test(t, func(t *testing.T) {
				c, err := capture.New(&file)
				if err != nil {
					t.Fatal(err)
				}
				p := newPair(t, c, addrs...)
				p.exchange("early", "early") // before Start, so it is not captured
				c.Start()
				if err := p.a.Renew(t.Context(), p.keyB); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				p.exchange("question", "answer")
				c.Stop()
				p.exchange("early", "early")
				if err := c.Err(); err != nil {
					t.Fatal(err)
				}
			})
			// data.data contains the bytes that no dissector parses. In this file, they are the payload inside the tunnel.
			all := read(t, tshark, file.Bytes(), `wg.type == 4 || frame.interface_name == "inner" || _ws.malformed`, "data.data", "frame.interface_name", "frame.packet_flags_direction", "_ws.malformed")
			for _, want := range []string{
				question + "\touter\t0x00000002\t\n", answer + "\touter\t0x00000001\t\n", // decrypted
				question + "\tinner\t0x00000002\t\n", answer + "\tinner\t0x00000001\t\n",
			} {
				if strings.Count(all, want) != 1 {
					t.Errorf("want %q once in the output of tshark:\n%s", want, all)
				}
			}
			if strings.Contains(all, early) || strings.Contains(all, "alformed") {
				t.Errorf("the file has a packet from before Start or after Stop, or a malformed packet:\n%s", all)
			}
			if name == "IPv6" {
				return
			}
			// Without the blocks that hold the keys, tshark cannot read the payload inside the tunnel.
			var without []byte
			for rest := file.Bytes(); len(rest) > 0; {
				n := int(rest[4]) | int(rest[5])<<8 | int(rest[6])<<16
				if rest[0] != 10 || rest[1] != 0 {
					without = append(without, rest[:n]...)
				}
				rest = rest[n:]
			}
			if got := read(t, tshark, without, `wg`, "data.data"); strings.Contains(got, question) {
				t.Errorf("tshark decrypts the packets of a file without keys:\n%s", got)
			}
		})
	}
}

// TestStoppedCaptureIsNotThere checks that a stopped Capture takes no lock, allocates nothing and writes nothing.
func TestStoppedCaptureIsNotThere(t *testing.T) {
	var file bytes.Buffer
	c, err := capture.New(&file)
	if err != nil {
		t.Fatal(err)
	}
	size := file.Len()
	defer capture.Hold(c)()
	sink := c.Tunnel(&still{})
	socket, err := c.Bind(&still{}).Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	receiver := socket.Receivers()[0]
	packets, trains := [][]byte{make([]byte, 100)}, []wireguard.Train{{Data: make([]byte, 100), Size: 100}}
	var b wireguard.Batch
	allocs := testing.AllocsPerRun(100, func() {
		socket.Send(trains)
		if _, err := receiver.Receive(); err != nil {
			t.Error(err)
		}
		if _, err := sink.WritePackets(packets); err != nil {
			t.Error(err)
		}
		if err := sink.(wireguard.PacketSource).ReadPackets(&b); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.KeyLog().Write([]byte("secret")); err != nil || allocs != 0 || file.Len() != size {
		t.Errorf("the stopped Capture has the error %v, made %.0f allocations and wrote %d bytes; want none of them", err, allocs, file.Len()-size)
	}
}

// still is a Bind, a Socket, a Receiver and a Tunnel that do nothing.
type still struct{ trains [1]wireguard.Train }

func (s *still) Listen(uint16) (wireguard.Socket, error) { return s, nil }
func (s *still) Port() uint16                            { return 1 }
func (s *still) Receivers() []wireguard.Receiver         { return []wireguard.Receiver{s} }
func (s *still) Send([]wireguard.Train)                  {}
func (s *still) Close() error                            { return nil }
func (s *still) Receive() ([]wireguard.Train, error)     { return s.trains[:], nil }
func (s *still) WritePackets(p [][]byte) (int, error)    { return len(p), nil }
func (s *still) ReadPackets(*wireguard.Batch) error      { return nil }
func (s *still) MTU() int                                { return 1420 }

type marks struct{ still }

func (*marks) SetMark(uint32) error                      { return errors.New("marked") }
func (m *marks) Listen(uint16) (wireguard.Socket, error) { return m, nil }
func (*marks) Headroom() int                             { return 12 }

type renewal struct{}

func (renewal) Renew() (wireguard.Socket, error) { return &still{}, nil }
func (renewal) Retire()                          {}

type renewer struct {
	still
	renewal
}

func (r *renewer) Listen(uint16) (wireguard.Socket, error) { return r, nil }

type markedRenewer struct {
	marks
	renewal
}

func (m *markedRenewer) Listen(uint16) (wireguard.Socket, error) { return m, nil }

type attacher struct{ still }

func (*attacher) Attach(*wireguard.Device) {}

type queues struct{ still }

func (q *queues) Queues() []wireguard.PacketSource { return []wireguard.PacketSource{q, q} }

// bare is a Tunnel that is not a PacketSource, and has no Queues and no Attach.
type bare struct{ wireguard.Tunnel }

// TestWrappersKeepInterfaces checks that a wrapper has the optional interfaces of the value that it wraps, and no others.
func TestWrappersKeepInterfaces(t *testing.T) {
	c, err := capture.New(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		tunnel                   wireguard.Tunnel
		attaches, queues, source bool
	}{
		"source": {&still{}, false, false, true}, "queues": {&queues{}, false, true, false}, "attacher": {&attacher{}, true, false, false},
		"bare": {bare{&still{}}, false, false, false},
	} {
		w := c.Tunnel(test.tunnel)
		_, attaches := w.(wireguard.Attacher)
		q, isQueues := w.(wireguard.Queues)
		_, source := w.(wireguard.PacketSource)
		if attaches != test.attaches || isQueues != test.queues || source != test.source || w.MTU() != 1420 {
			t.Errorf("%s: the wrapper is an Attacher: %t, has Queues: %t, is a PacketSource: %t; want the interfaces of the wrapped Tunnel, and MTU 1420", name, attaches, isQueues, source)
		}
		if isQueues && len(q.Queues()) != 2 {
			t.Errorf("the wrapper has %d queues, want 2", len(q.Queues()))
		}
	}
	for name, test := range map[string]struct {
		bind          wireguard.Bind
		headroom      int
		marks, renews bool
	}{
		"bind": {&still{}, 0, false, false}, "marker": {&marks{}, 12, true, false},
		"renewer": {&renewer{}, 0, false, true}, "both": {&markedRenewer{}, 12, true, true},
	} {
		w := c.Bind(test.bind)
		s, err := w.Listen(0)
		if err != nil {
			t.Fatal(err)
		}
		m, marks := s.(wireguard.Marker)
		_, renews := s.(wireguard.Renewer)
		if got := w.(wireguard.Framer).Headroom(); marks != test.marks || renews != test.renews || got != test.headroom || s.Port() != 1 {
			t.Errorf("%s: the wrapped socket is a Marker: %t, a Renewer: %t, with headroom %d; want what the original has, and port 1", name, marks, renews, got)
		}
		if marks && m.SetMark(1) == nil {
			t.Errorf("%s: the mark does not reach the socket", name)
		}
	}
}

// TestRenewedSocket checks that the Capture also captures the socket that replaces another one in Device.Wake.
func TestRenewedSocket(t *testing.T) {
	var file bytes.Buffer
	c, err := capture.New(&file)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Bind(&renewer{}).Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = s.(wireguard.Renewer).Renew(); err != nil {
		t.Fatal(err)
	}
	c.Start()
	head := file.Len()
	s.Send([]wireguard.Train{{Data: make([]byte, 100), Size: 100}})
	if file.Len() <= head+100 {
		t.Error("the Capture did not write the datagram of the new socket")
	}
}

// TestWriterThatFails checks that the device continues after the writer has failed, and that the writer is not called again.
func TestWriterThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &failing{after: 5}
		c, err := capture.New(w)
		if err != nil {
			t.Fatal(err)
		}
		p := newPair(t, c)
		c.Start()
		p.exchange("question", "answer")
		if err := c.Err(); !errors.Is(err, io.ErrShortWrite) || w.calls != 6 {
			t.Errorf("the Capture has the error %v after %d writes, want %v after 6", err, w.calls, io.ErrShortWrite)
		}
	})
	if _, err := capture.New(&failing{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("New: %v, want %v", err, io.ErrShortWrite)
	}
}

type failing struct{ calls, after int }

func (f *failing) Write(b []byte) (int, error) {
	if f.calls++; f.calls > f.after {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

// TestLinks checks that the file contains the datagrams of a Link and of an endpoint without an address, and leaves out datagrams
// that are too large for UDP.
func TestLinks(t *testing.T) {
	var file bytes.Buffer
	c, err := capture.New(&file)
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	s, err := c.Bind(&still{}).Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	head := file.Len()
	s.Send([]wireguard.Train{{Data: make([]byte, 100), Size: 70, Endpoint: wireguard.Endpoint{Link: link{}}}})
	if got := file.Len() - head; got < 100+2*48 {
		t.Errorf("the Capture wrote %d bytes for two datagrams of a Link, want at least 196", got)
	}
	head = file.Len()
	s.Send([]wireguard.Train{{Data: make([]byte, 66000), Size: 66000, Endpoint: wireguard.Endpoint{Link: link{}}}})
	if file.Len() != head {
		t.Error("the Capture wrote a datagram that is too large for UDP")
	}
	s.Send([]wireguard.Train{{Data: make([]byte, 10), Size: 10}})
	if file.Len() == head {
		t.Error("the Capture left out a datagram without an address")
	}
}

type link struct{}

func (link) Key() [16]byte  { return [16]byte{1, 2} }
func (link) String() string { return "relay" }
