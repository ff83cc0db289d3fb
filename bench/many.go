package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/net/ipv4"
)

// generatorEnv names the variable that makes a process the peers of many/200.
const generatorEnv = "WIREGUARD_BENCH_PEERS"

const (
	manyPeers   = 1000
	manySockets = 16
	manySize    = 208 // 200 bytes and more, padded: as large before sealing as behind it
	manyStep    = 128 // packets that the hub reports at a time, and that the generator sends at a time
	manyWindow  = window / manyStep
)

func manyMeasures() []measure {
	return []measure{{name: "many/200", unit: "packets/s", run: runMany}}
}

// A crowd is what the generator has to know: it is 1,000 peers of one hub, on a few sockets.
type crowd struct {
	Hub  wireguard.PublicKey
	Port uint16
	Keys [][32]byte // private ones
}

// runMany measures one hub, alone in its process, that receives packets of 200 bytes from 1,000 peers in turn. The
// generator has at most 1,024 packets in flight; for each 128 that the hub delivered it gets a byte through a pipe.
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
		peers[i].endpoint = netip.AddrPortFrom(loopback, 9) // until the peer is heard from
	}
	if err := hub.plan(peers...)(); err != nil {
		return sample{}, err
	}
	c := crowd{Hub: key.Public(), Port: hub.port()}
	for _, k := range keys {
		c.Keys = append(c.Keys, k)
	}
	ended, err := gather(st, c, in)
	if err != nil {
		return sample{}, err
	}
	for in.received.Load() == 0 {
		select {
		case err := <-ended:
			return sample{}, fmt.Errorf("the generator: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
	s, err := count(&in.received, st.Warm, st.Span)
	if err != nil {
		return sample{}, err
	}
	return sample{s.n / s.took.Seconds(), append([]aside{
		{Name: "processor time of the hub a packet", Unit: "µs", Value: s.cpu.Seconds() * 1e6 / s.n, Apart: true},
		mustBeZero("mangled", in.mangled.Load()),
	}, st.calls()...)}, nil
}

// gather starts the generator and reports to it what flow has received. Its end comes through the channel.
func gather(st *stage, c crowd, f *flow) (ended <-chan error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), generatorEnv+"=1")
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	st.atCut(func() { cmd.Process.Kill() })
	if _, err := in.Write(append(text, '\n')); err != nil {
		return nil, err
	}
	f.report.Store(&report{to: in, step: manyStep})
	done := make(chan error, 1)
	go func() {
		if err := cmd.Wait(); err != nil {
			done <- fmt.Errorf("%w: %s", err, bytes.TrimSpace(trouble.Bytes()))
			return
		}
		done <- errors.New("it ended")
	}()
	return done, nil
}

// A report tells another process how far a flow is: one byte for each step packets.
type report struct {
	to   io.Writer
	step int64
	done int64 // steps
}

func (r *report) received(n int64) {
	if steps := n / r.step; steps > r.done {
		r.to.Write(make([]byte, steps-r.done))
		r.done = steps
	}
}

// generate plays the peers until its standard input is closed.
func generate(in io.Reader) error {
	var c crowd
	d := json.NewDecoder(in)
	if err := d.Decode(&c); err != nil {
		return err
	}
	steps := make(chan int, 1<<16)
	go func() {
		defer close(steps)
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
	sockets := make([]*net.UDPConn, manySockets)
	for i := range sockets {
		s, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, c.Port)))
		if err != nil {
			return err
		}
		defer s.Close()
		sockets[i] = s
	}
	peers := make([]initiator, len(c.Keys))
	for i := range peers {
		peers[i] = initiator{index: uint32(i) + 1, remote: c.Hub, private: c.Keys[i]}
		if err := shake(&peers[i], sockets[i%manySockets]); err != nil {
			return fmt.Errorf("peer %d: %w", i, err)
		}
	}
	return flood(peers, sockets, steps)
}

var errNoResponse = errors.New("no response to five initiations")

// shake makes the handshake of one peer.
func shake(n *initiator, s *net.UDPConn) error {
	b := make([]byte, 2048)
	for range 5 {
		var ephemeral [32]byte
		rand.Read(ephemeral[:])
		if _, err := s.Write(n.initiation(ephemeral)); err != nil {
			return err
		}
		s.SetReadDeadline(time.Now().Add(time.Second))
		for {
			got, err := s.Read(b)
			if err != nil {
				break
			}
			if got == responseSize && b[0] == 2 && binary.LittleEndian.Uint32(b[8:]) == n.index {
				return n.response(b[:got])
			}
		}
		time.Sleep(30 * time.Millisecond) // a device accepts one initiation each 20 ms
	}
	return errNoResponse
}

// flood sends packets of all peers in turn, manyStep at a time through one socket after the other, as the window lets it.
// If nothing is reported for a while, what is in flight counts as lost.
func flood(peers []initiator, sockets []*net.UDPConn, steps <-chan int) error {
	packet := newFlow(200, addrA, addrB)
	messages := make([]ipv4.Message, manyStep)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, manySize+32)}
	}
	plain := make([]byte, manySize)
	batches := make([]*ipv4.PacketConn, len(sockets))
	next := make([]int, len(sockets)) // the peer whose turn it is, of those of each socket
	for i, s := range sockets {
		batches[i], next[i] = ipv4.NewPacketConn(s), i
	}
	stall := time.NewTimer(time.Hour)
	flying := 0
	for round := 0; ; round++ {
		for flying >= manyWindow {
			stall.Reset(20 * time.Millisecond)
			select {
			case n, ok := <-steps:
				if !ok {
					return nil
				}
				flying = max(0, flying-n)
			case <-stall.C:
				flying = 0
			}
		}
		at := round % len(sockets)
		for i := range messages {
			who := next[at]
			if next[at] += len(sockets); next[at] >= len(peers) {
				next[at] = at
			}
			packet.address(inner(who), addrB)
			copy(plain, packet.template)
			peers[who].seal(messages[i].Buffers[0], plain)
		}
		for rest := messages; len(rest) > 0; {
			n, err := batches[at].WriteBatch(rest, 0)
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
		flying++
	}
}
