package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// generatorEnv is the name of an environment variable. A process of bench in which it is set is the generator: it sends as the
// peers of a hub.
const generatorEnv = "WIREGUARD_BENCH_PEERS"

const (
	manyPeers   = 1000
	manySockets = 16
	manySize    = 208 // 200 bytes rounded up to a multiple of 16; packets are padded to this size before they are sealed
	manyStep    = 128 // packets per report of the hub, and per call of nest.send
	manyTrain   = 64  // packets in one wireguard.Train
	manyWindow  = window / manyStep
	theEnd      = -1 // the value that generate sends on its channel steps when standard input is closed
)

func manyMeasures() []measure {
	return []measure{{name: "many/200", unit: "packets/s", run: runMany}}
}

// A crowd is the configuration of the generator, which sends as all the peers of one hub through a few sockets.
type crowd struct {
	Hub  wireguard.PublicKey
	Port uint16
	Keys [][32]byte // the peers' private keys

	Flood int  // if not zero, the generator only sends this many forged initiations per second to Port
	Relay bool // the hub forwards each peer's packets to another peer, and the generator counts the packets that it receives
}

// runMany measures one hub that receives packets of 200 bytes from 1,000 peers in turn. The peers are in another process, the
// generator, which has at most 1,024 packets in flight. For every 128 packets that the hub has delivered, this process writes one
// byte to the generator through a pipe.
func runMany(st *stage) (sample, error) {
	in := newFlow(200, addrA, addrB)
	in.unordered = true
	_, plain := newPlains(in, newFlow(200, addrB, addrA))
	key := wireguard.NewPrivateKey()
	hub, err := st.lib.node(st, nodeConfig{key: key, plain: plain})
	if err != nil {
		return sample{}, err
	}
	peers, keys := identities(min(manyPeers, st.Peers))
	for i := range peers {
		peers[i].endpoint = netip.AddrPortFrom(loopback, 9) // a placeholder; the peer's first message replaces it
	}
	if err := hub.plan(peers...)(); err != nil {
		return sample{}, err
	}
	c := crowd{Hub: key.Public(), Port: hub.port()}
	for _, k := range keys {
		c.Keys = append(c.Keys, k)
	}
	var stalls atomic.Int64
	to, ended, err := gather(st, c, byteCounter{&stalls})
	if err != nil {
		return sample{}, err
	}
	in.report.Store(&report{to: to, step: manyStep})
	if err := awaitFirst(&in.received, ended); err != nil {
		return sample{}, err
	}
	s, err := count(&in.received, st.Warm, st.Span)
	if err != nil {
		return sample{}, err
	}
	return sample{s.n / s.took.Seconds(), append([]aside{
		{Name: "processor time of the hub per packet", Unit: "µs", Value: s.cpu.Seconds() * 1e6 / s.n, Apart: true},
		{Name: "stalls after losses", Value: float64(stalls.Load())},
		mustBeZero("mangled", in.mangled.Load()),
	}, st.calls()...)}, nil
}

// gather starts the generator, whose standard output goes to out. It returns the generator's standard input (in), and a channel
// that delivers the reason when the generator ends (ended).
func gather(st *stage, c crowd, out io.Writer) (in io.Writer, ended <-chan error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), generatorEnv+"=1")
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	cmd.Stdout = out
	in, err = cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	st.atCut(func() { cmd.Process.Kill() })
	if _, err := in.Write(append(text, '\n')); err != nil {
		return nil, nil, err
	}
	done := make(chan error, 1)
	go func() {
		if err := cmd.Wait(); err != nil {
			done <- fmt.Errorf("%w: %s", err, bytes.TrimSpace(trouble.Bytes()))
			return
		}
		done <- errors.New("it ended before the first packet arrived")
	}()
	return in, done, nil
}

// awaitFirst waits until n is more than zero or the generator has ended.
func awaitFirst(n *atomic.Int64, ended <-chan error) error {
	for n.Load() == 0 {
		select {
		case err := <-ended:
			return fmt.Errorf("the generator: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// A byteCounter counts the bytes that are written to it.
type byteCounter struct{ n *atomic.Int64 }

func (c byteCounter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// A report tells another process how many packets of a flow have arrived. It writes one byte each time that step more packets
// have arrived.
type report struct {
	to   io.Writer
	step int64
	done int64 // bytes written so far
}

func (r *report) received(n int64) {
	if steps := n / r.step; steps > r.done {
		r.to.Write(make([]byte, steps-r.done))
		r.done = steps
	}
}

// generate is the main function of the generator. It sends as the peers until in, its standard input, is closed. Whenever it counts
// the packets in flight as lost, it writes a byte to out. If the hub relays, it also writes to out the reports of the type returns;
// see hub.go.
func generate(in io.Reader, out io.Writer) error {
	var c crowd
	d := json.NewDecoder(in)
	if err := d.Decode(&c); err != nil {
		return err
	}
	if c.Flood > 0 {
		return floodForged(c, in)
	}
	steps := make(chan int, 1<<16)
	go func() {
		defer func() { steps <- theEnd }()
		b := make([]byte, 256)
		r := io.MultiReader(d.Buffered(), in)
		for first := true; ; first = false {
			n, err := r.Read(b)
			if err != nil {
				return
			}
			if first && n > 0 && b[0] == '\n' {
				n--
			}
			if n > 0 {
				steps <- n
			}
		}
	}()
	sockets := make([]*nest, min(manySockets, len(c.Keys)))
	var back *returns
	if c.Relay {
		back = &returns{nests: len(sockets), steps: steps, out: out}
	}
	for i := range sockets {
		n, err := newNest(c.Port)
		if err != nil {
			return err
		}
		sockets[i] = n
	}
	for i, k := range c.Keys {
		n := sockets[i%len(sockets)]
		n.peers = append(n.peers, &initiator{index: uint32(i) + 1, remote: c.Hub, private: k})
	}
	shaken := make(chan error, len(sockets))
	for _, n := range sockets {
		go n.receive(back)
		go func() { shaken <- n.shakeAll(len(c.Keys), c.Relay) }()
	}
	for range sockets {
		if err := <-shaken; err != nil {
			return err
		}
	}
	patience := 20 * time.Millisecond
	if c.Relay { // packets are rarely lost here, and a slow hub must not receive more than the window
		patience = time.Second / 2
	}
	return flood(sockets, steps, out, patience)
}

// A nest is a group of peers that share one socket and so one address, as peers behind a NAT do. A nest sends trains of datagrams,
// so that the generator makes few system calls. As a result, the hub and not the generator limits the rate.
type nest struct {
	wireguard.Socket
	hub       wireguard.Endpoint
	responses chan []byte
	peers     []*initiator
	next      int // index of the peer that sends next
	trains    []wireguard.Train
}

func newNest(port uint16) (*nest, error) {
	s, err := (&udp.Bind{Address: loopback, Receivers: 1}).Listen(0)
	if err != nil {
		return nil, err
	}
	n := &nest{Socket: s, hub: wireguard.EndpointOf(netip.AddrPortFrom(loopback, port)), responses: make(chan []byte, 16)}
	for at := 0; at < manyStep; at += manyTrain {
		data := make([]byte, manyTrain*(manySize+32))
		n.trains = append(n.trains, wireguard.Train{Data: data, Size: manySize + 32, Endpoint: n.hub})
	}
	return n, nil
}

// receive reads the messages from the hub until the nest's socket is closed. If the hub relays, back counts the packets among
// them; otherwise back is nil.
func (n *nest) receive(back *returns) {
	for r := n.Receivers()[0]; ; {
		ts, err := r.Receive()
		if err != nil {
			return
		}
		for i := range ts {
			for m := range ts[i].Datagrams() {
				if len(m) == responseSize {
					n.responses <- bytes.Clone(m)
				}
			}
		}
		if back != nil {
			back.take(n, ts)
		}
	}
}

// shakeAll makes a handshake for each peer of the nest. A keepalive then confirms the session, so that the hub may send with it
// too. shakeAll also prepares the packet that the peer will send. If the hub does not relay, the packet's destination is addrB. If
// the hub relays, the destination is the peer whose number is larger by half of crowd (modulo crowd), where crowd is the number of
// peers in all nests.
func (n *nest) shakeAll(crowd int, relay bool) error {
	packet := newFlow(200, addrA, addrB)
	for _, p := range n.peers {
		if err := n.shake(p); err != nil {
			return fmt.Errorf("peer %d: %w", p.index, err)
		}
		keepalive := make([]byte, 32)
		p.seal(keepalive)
		t := []wireguard.Train{{Data: keepalive, Size: len(keepalive), Endpoint: n.hub}}
		if n.Send(t); t[0].Err != nil {
			return t[0].Err
		}
		i, to := int(p.index)-1, addrB
		if relay {
			to = inner((i + crowd/2) % crowd)
		}
		packet.address(inner(i), to)
		p.packet = append(bytes.Clone(packet.template), make([]byte, manySize-len(packet.template))...)
	}
	return nil
}

var errNoResponse = errors.New("the device did not answer five initiations")

// shake makes the handshake of peer p. It tries up to five times.
func (n *nest) shake(p *initiator) error {
	for range 5 {
		var ephemeral [32]byte
		rand.Read(ephemeral[:])
		m := p.initiation(ephemeral)
		t := []wireguard.Train{{Data: m, Size: len(m), Endpoint: n.hub}}
		if n.Send(t); t[0].Err != nil {
			return t[0].Err
		}
		for late := time.After(time.Second); ; {
			select {
			case m := <-n.responses:
				if m[0] != 2 || binary.LittleEndian.Uint32(m[8:]) != p.index {
					continue
				}
				q := *p
				if q.response(m) == nil {
					*p = q
					return nil
				}
				continue // a late response to the previous initiation
			case <-late:
			}
			break
		}
	}
	return errNoResponse
}

// send sends manyStep packets. The peers of the nest send in turn.
func (n *nest) send() error {
	for i := range n.trains {
		t := &n.trains[i]
		for at := 0; at < len(t.Data); at += t.Size {
			p := n.peers[n.next]
			n.next = (n.next + 1) % len(n.peers)
			p.seal(t.Data[at : at+t.Size])
		}
	}
	n.Send(n.trains)
	for i := range n.trains {
		if err := n.trains[i].Err; err != nil {
			return err
		}
	}
	return nil
}

// flood calls send of the nests in turn. Each call is a step of manyStep packets, and at most manyWindow steps are in flight. The
// channel steps delivers how many steps have arrived. If it delivers nothing for the duration patience, flood counts all packets
// in flight as lost.
func flood(nests []*nest, steps <-chan int, out io.Writer, patience time.Duration) error {
	stall := time.NewTimer(time.Hour)
	flying := 0
	for round := 0; ; round++ {
		for flying >= manyWindow {
			stall.Reset(patience)
			select {
			case n := <-steps:
				if n == theEnd {
					return nil
				}
				flying = max(0, flying-n)
			case <-stall.C:
				flying = 0
				out.Write([]byte{reportStall})
			}
		}
		if err := nests[round%len(nests)].send(); err != nil {
			return err
		}
		flying++
	}
}
