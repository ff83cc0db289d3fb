// These examples are not built for WebAssembly, where a program has no sockets.

//go:build !js

package wireguard_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// In this example, a web client and a web server communicate through two devices. Each device has a network stack inside the
// process, so it needs neither root privileges nor a network interface.
func Example() {
	key, serverKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	peer := serverKey.Public()
	endpoint, stop := exampleServer(serverKey, key.Public())
	defer stop()

	// README.md: from here
	stack, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	check(err)
	d, err := wireguard.New(wireguard.Config{
		PrivateKey: key,
		Tunnel:     stack,
		Bind:       &udp.Bind{},
		Peers: []wireguard.PeerConfig{{
			PublicKey:  peer,
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			Endpoint:   wireguard.EndpointOf(endpoint), // for example 192.0.2.1:51820
		}},
	})
	check(err)
	check(d.Up())
	defer d.Close()

	web := http.Client{Transport: &http.Transport{DialContext: stack.DialContext}}
	answer, err := web.Get("http://10.0.0.1/")
	check(err)
	body, err := io.ReadAll(answer.Body)
	check(err)
	for p := range d.Peers() {
		fmt.Printf("%s, handshake: %t, received: %t\n", body, !p.LastHandshake.IsZero(), p.Received.Bytes > 0)
	}
	// README.md: to here

	// Output: hello, handshake: true, received: true
}

// exampleServer starts a device, and serves HTTP at the address 10.0.0.1 inside its tunnel until stop is called.
func exampleServer(key wireguard.PrivateKey, client wireguard.PublicKey) (endpoint netip.AddrPort, stop func()) {
	stack, err := netstack.New(netstack.Config{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	check(err)
	d, err := wireguard.New(wireguard.Config{
		PrivateKey: key, Tunnel: stack, Bind: &udp.Bind{},
		Peers: []wireguard.PeerConfig{{
			PublicKey: client, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")},
		}},
	})
	check(err)
	check(d.Up())
	listener, err := stack.Listen("tcp", ":80")
	check(err)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), d.Status().ListenPort), func() { d.Close() }
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// A chanTunnel is a Tunnel in some thirty lines. The program puts the packets that the device is to send into the channel out. The
// device puts the packets that it delivers into the channel in.
type chanTunnel struct {
	out, in chan []byte
	once    sync.Once
	closed  chan struct{}
}

func newChanTunnel() *chanTunnel {
	return &chanTunnel{out: make(chan []byte, 16), in: make(chan []byte, 16), closed: make(chan struct{})}
}

func (t *chanTunnel) MTU() int { return 1420 }

func (t *chanTunnel) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

func (t *chanTunnel) ReadPackets(b *wireguard.Batch) error {
	select {
	case p := <-t.out:
		b.Append(p) // an empty batch has room for any packet
		return nil
	case <-t.closed:
		return net.ErrClosed
	}
}

func (t *chanTunnel) WritePackets(pkts [][]byte) (n int, err error) {
	for _, p := range pkts {
		select {
		case t.in <- append([]byte(nil), p...): // the device reuses the memory of p after this call
			n++
		default: // a Tunnel must not wait here; the device counts the other packets as dropped
		}
	}
	return n, nil
}

// A chanBind is a Bind in some forty lines. Two channels connect the chanBinds of two devices like a wire.
type chanBind struct {
	in, peer chan []byte
	from     wireguard.Endpoint // the source of every datagram
}

func (b *chanBind) Listen(uint16) (wireguard.Socket, error) {
	return &chanSocket{bind: b, closed: make(chan struct{})}, nil // a new socket for each call: Wake and Up call Listen again
}

type chanSocket struct {
	bind   *chanBind
	once   sync.Once
	closed chan struct{}
}

func (s *chanSocket) Port() uint16                    { return 1 }
func (s *chanSocket) Receivers() []wireguard.Receiver { return []wireguard.Receiver{s} }

func (s *chanSocket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *chanSocket) Send(trains []wireguard.Train) {
	for i := range trains {
		for m := range trains[i].Datagrams() {
			select {
			case s.bind.peer <- append([]byte(nil), m...): // the device reuses the memory of m after this call
			default: // drop the datagram if the channel is full
			}
		}
	}
}

func (s *chanSocket) Receive() ([]wireguard.Train, error) {
	select {
	case m := <-s.bind.in:
		return []wireguard.Train{{Data: m, Size: len(m), Endpoint: s.bind.from}}, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// In this example, a program connects two devices with Tunnels and Binds that it implements itself.
func ExampleTunnel() {
	here, there := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	wire := [2]chan []byte{make(chan []byte, 16), make(chan []byte, 16)}
	device := func(i int, key wireguard.PrivateKey, peer wireguard.PublicKey) (*wireguard.Device, *chanTunnel) {
		other := wireguard.EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(2 - i)}), 1))
		t := newChanTunnel()
		d, err := wireguard.New(wireguard.Config{
			PrivateKey: key, Tunnel: t,
			Bind: &chanBind{in: wire[i], peer: wire[1-i], from: other},
			Peers: []wireguard.PeerConfig{{
				PublicKey: peer, Endpoint: other, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
			}},
		})
		check(err)
		check(d.Up())
		return d, t
	}
	a, out := device(0, here, there.Public())
	defer a.Close()
	b, in := device(1, there, here.Public())
	defer b.Close()

	b.Down()
	check(b.Up()) // Up opens a second socket of the same Bind
	check(a.Handshake(context.Background(), there.Public()))
	check(a.Wake()) // as a program does when the machine resumes; Wake keeps the session
	check(b.Wake())
	out.out <- append([]byte{0x45, 0, 0, 25, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, "hello"...)
	fmt.Printf("%s\n", (<-in.in)[20:])
	// Output: hello
}
