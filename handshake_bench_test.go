package wireguard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// handshakeRemotes is the number of peers that initiate one after the other. wireguard-go refuses an initiation that it receives
// less than 20 ms of real time after the same peer's last one. With 512 peers, more than 20 ms pass between two initiations of a
// peer.
const handshakeRemotes = 512

// BenchmarkHandshakeResponder measures a responder's work for one handshake: it consumes an initiation, creates the response and
// derives the session's keys. Both implementations know the shared secret of the two static keys from an earlier handshake, so
// each handshake needs four X25519. For this package, the benchmark measures all work of a worker, including the index, the
// changes of the peer's state, the macs of the response and the call of Socket.Send. For wireguard-go it calls the exported
// functions, which do not include the macs and the socket.
func BenchmarkHandshakeResponder(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		e, rs := handshakeEnd(b)
		id, r := e.identity.Load(), e.running.Load()
		messages := make([]handshakeMessage, len(rs))
		run := func(n int) {
			for i := range n {
				e.receiveInitiation(&messages[i], id, r)
			}
		}
		benchmarkInitiations(b, rs, e.clock, func(i int, m []byte) {
			messages[i] = handshakeMessage{from: rs[i].from, size: initiationSize}
			copy(messages[i].b[:], m)
		}, run)
		if drops := e.drops.load(); drops.Total() != 0 {
			b.Fatalf("the drops are %v, want none", drops)
		}
	})
	b.Run("wireguard-go", func(b *testing.B) {
		key, rs := testKey(1), make([]*remote, handshakeRemotes)
		var config bytes.Buffer
		fmt.Fprintf(&config, "private_key=%x\n", key[:])
		for i := range rs {
			rs[i] = newRemote(i+1, key.Public())
			fmt.Fprintf(&config, "public_key=%x\n", rs[i].id.public[:])
		}
		d := device.NewDevice(tuntest.NewChannelTUN().TUN(), &goLine{in: make(chan []byte), out: make(chan []byte, 16)}, device.NewLogger(device.LogLevelSilent, ""))
		defer d.Close()
		if err := d.IpcSetOperation(&config); err != nil {
			b.Fatal(err)
		}
		if err := d.Up(); err != nil {
			b.Fatal(err)
		}
		messages := make([]device.MessageInitiation, len(rs))
		run := func(n int) {
			for i := range n {
				p := d.ConsumeMessageInitiation(&messages[i])
				if p == nil {
					b.Fatal("wireguard-go refused an initiation")
				}
				if _, err := d.CreateMessageResponse(p); err != nil {
					b.Fatal(err)
				}
				if err := p.BeginSymmetricSession(); err != nil {
					b.Fatal(err)
				}
			}
		}
		benchmarkInitiations(b, rs, new(handClock), func(i int, m []byte) {
			if err := binary.Read(bytes.NewReader(m), binary.LittleEndian, &messages[i]); err != nil {
				b.Fatal(err)
			}
		}, run)
	})
}

// handshakeEnd returns a device with many remotes. The device's responses are discarded.
func handshakeEnd(b *testing.B) (*end, []*remote) {
	rs, configs := make([]*remote, handshakeRemotes), make([]PeerConfig, handshakeRemotes)
	for i := range rs {
		rs[i] = newRemote(i+1, testKey(1).Public())
		configs[i] = rs[i].config()
	}
	e := newEnd(b, testKey(1), configs...)
	e.line.send = func([]Train) {}
	if err := e.Up(); err != nil {
		b.Fatal(err)
	}
	return e, rs
}

// benchmarkInitiations makes each of rs initiate, round after round. The function put stores the i-th message of a round, and run
// handles the first n messages.
func benchmarkInitiations(b *testing.B, rs []*remote, clock *handClock, put func(i int, m []byte), run func(n int)) {
	round := func(n int) {
		clock.at.Add(second) // so that no two initiations of a peer arrive within 20 ms
		for i := range n {
			put(i, rs[i].initiation())
		}
	}
	round(len(rs))
	run(len(rs)) // the first handshake of each peer computes the secret of the static keys
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		b.StopTimer()
		some := min(b.N-n, len(rs))
		round(some)
		b.StartTimer()
		run(some)
		n += some
	}
}

// BenchmarkCookieReplies measures how fast a device under load answers forged initiations from many addresses with cookie
// replies. With -cpu 1,2 it shows whether the goroutines wait for each other.
func BenchmarkCookieReplies(b *testing.B) {
	d, err := New(Config{PrivateKey: testKey(1), Tunnel: newDrain(), Bind: muted{}})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := d.Up(); err != nil {
		b.Fatal(err)
	}
	id, r := d.identity.Load(), d.running.Load()
	var from atomic.Uint32
	b.RunParallel(func(b *testing.PB) {
		m := handshakeMessage{size: initiationSize, b: [initiationSize]byte{typeInitiation}}
		new(cookieJar).sign(m.bytes(), id.public, 1)
		var w worker
		for b.Next() {
			n := from.Add(1)
			m.from = EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}), 1000))
			if d.checkMACs(&m, id, r, d.now(), true, &w) {
				panic("checkMACs accepted a message without a cookie")
			}
		}
		d.sendReplies(&w.replies)
	})
	if n := d.drops[DropCookieRequired].Load(); n != uint64(b.N) {
		b.Fatalf("%d cookie replies to %d messages, want one per message", n, b.N)
	}
}

// muted is a Bind that discards what it should send, and receives nothing.
type muted struct{}

func (muted) Listen(uint16) (Socket, error) { return &mutedSocket{closed: make(chan struct{})}, nil }

type mutedSocket struct{ closed chan struct{} }

func (s *mutedSocket) Port() uint16              { return 1 }
func (s *mutedSocket) Receivers() []Receiver     { return []Receiver{s} }
func (s *mutedSocket) Receive() ([]Train, error) { <-s.closed; return nil, net.ErrClosed }
func (s *mutedSocket) Send([]Train)              {}
func (s *mutedSocket) SetMark(uint32) error      { return nil }
func (s *mutedSocket) Close() error              { close(s.closed); return nil }
