package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// floodRate is the number of forged initiations per second.
const floodRate = 40000

// forgeries makes n initiations to the device with the public key hub. Only their mac1 is valid.
func forgeries(hub wireguard.PublicKey, n int) [][]byte {
	macKey := sum([]byte("mac1----"), hub[:])
	pool := make([][]byte, n)
	for i := range pool {
		m := make([]byte, initiationSize)
		rand.Read(m[4 : initiationSize-32])
		binary.LittleEndian.PutUint32(m, 1)
		mac1 := keyed(macKey[:], m[:initiationSize-32])
		copy(m[initiationSize-32:], mac1[:])
		pool[i] = m
	}
	return pool
}

// floodForged runs in the generator's process. It sends forged initiations from many addresses until in, its standard input, is
// closed.
func floodForged(c crowd, in io.Reader) error {
	s, err := new(udp.Bind).Listen(0)
	if err != nil {
		return err
	}
	go func() {
		io.Copy(io.Discard, in)
		s.Close()
	}()
	pool := forgeries(c.Hub, 1024)
	to := wireguard.EndpointOf(netip.AddrPortFrom(loopback, c.Port))
	var ts []wireguard.Train
	for begin, sent := time.Now(), 0; ; time.Sleep(time.Millisecond) {
		ts = ts[:0]
		for due := int(time.Since(begin).Seconds() * float64(c.Flood)); sent < due && len(ts) < 1000; sent++ {
			to.Source = netip.AddrFrom4([4]byte{127, 64 + byte(sent>>16)&63, byte(sent >> 8), byte(sent)})
			ts = append(ts, wireguard.Train{Data: pool[sent%len(pool)], Size: initiationSize, Endpoint: to})
		}
		s.Send(ts)
		if len(ts) > 0 && ts[0].Err != nil {
			return ts[0].Err
		}
	}
}

// flooded calls the function do while forged initiations to the device with the public key hub arrive at the given UDP port.
func flooded(st *stage, hub wireguard.PublicKey, port uint16, do func() error) error {
	in, ended, err := gather(st, crowd{Hub: hub, Port: port, Flood: floodRate}, io.Discard)
	if err != nil {
		return err
	}
	time.Sleep(st.Warm) // until the generator has started and the device is under load
	err = do()
	in.(io.Closer).Close()
	<-ended
	return err
}

// runFlood measures how much a flood of forged initiations slows a tunnel down. It measures the throughput of packets of 1,420
// bytes between two devices while the flood arrives at the receiving device. It divides this by the throughput while the same flood
// arrives at a socket that nobody reads. The source always has more packets of 1,420 bytes to send.
func runFlood(st *stage) (sample, error) {
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return sample{}, err
	}
	st.atClose(func() { other.Close() })
	ab, ba := newFlow(mtu, addrA, addrB), newFlow(mtu, addrB, addrA)
	a, b := newPlains(ab, ba)
	keys := [2]wireguard.PrivateKey{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	na, err := st.lib.node(st, nodeConfig{key: keys[0], plain: a})
	if err != nil {
		return sample{}, err
	}
	nb, err := st.lib.node(st, nodeConfig{key: keys[1], plain: b})
	if err != nil {
		return sample{}, err
	}
	if err := introduce(na, nb, keys[0], keys[1]); err != nil {
		return sample{}, err
	}
	ab.allow(1)
	if err := ab.drain(10 * time.Second); err != nil {
		return sample{}, err
	}
	ports := [2]uint16{uint16(other.LocalAddr().(*net.UDPAddr).Port), nb.port()}
	var rates [2][]float64
	for range 3 {
		for i, port := range ports {
			err := flooded(st, keys[1].Public(), port, func() error {
				ab.open(0)
				defer ab.stop()
				c, err := count(&ab.received, st.Warm, st.Span)
				rates[i] = append(rates[i], c.n/c.took.Seconds())
				return err
			})
			if err != nil {
				return sample{}, err
			}
		}
	}
	control, under := median(rates[0]), median(rates[1])
	return sample{under / control, []aside{
		{Name: "control", Unit: "packets/s", Value: control},
		{Name: "under the flood", Unit: "packets/s", Value: under},
	}}, nil
}

// runFloodPing measures the 99th percentile of the round trips of pings while forged initiations arrive at the device that
// answers. It waits 2 ms between an answer and the next ping. A ping without an answer counts as 1 s.
func runFloodPing(st *stage) (sample, error) {
	keys := [2]wireguard.PrivateKey{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	na, a, err := st.lib.stack(st, keys[0], addrA, nil)
	if err != nil {
		return sample{}, err
	}
	nb, _, err := st.lib.stack(st, keys[1], addrB, nil)
	if err != nil {
		return sample{}, err
	}
	if err := introduce(na, nb, keys[0], keys[1]); err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := a.ping(ctx, addrB); err != nil {
		return sample{}, err
	}
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return sample{}, err
	}
	st.atClose(func() { other.Close() })
	ports := [2]uint16{nb.port(), uint16(other.LocalAddr().(*net.UDPAddr).Port)}
	var trips [2][]float64
	for i, port := range ports {
		err = flooded(st, keys[1].Public(), port, func() error {
			for begin := time.Now(); len(trips[i]) < min(st.Echoes, 2000) && time.Since(begin) < 15*time.Second; {
				one, cancel := context.WithTimeout(context.Background(), time.Second)
				took, err := a.ping(one, addrB)
				if cancel(); err != nil {
					took = time.Second // the ping was lost
				}
				trips[i] = append(trips[i], took.Seconds()*1000)
				time.Sleep(2 * time.Millisecond)
			}
			return nil
		})
		if err != nil {
			return sample{}, err
		}
		slices.Sort(trips[i])
	}
	p99 := func(trips []float64) float64 { return trips[len(trips)*99/100] }
	return sample{p99(trips[0]), []aside{
		{Name: "median", Unit: "ms", Value: median(trips[0])},
		{Name: "control: median", Unit: "ms", Value: median(trips[1])},
		{Name: "p99", Unit: "ms", Value: p99(trips[1])},
	}}, nil
}
