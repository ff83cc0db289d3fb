package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/uapi"
)

// tableMeasures returns measures of a device with many peers or prefixes and little traffic.
func tableMeasures() []measure {
	return []measure{
		{name: "load/table", unit: "µs", lower: true, alone: true, rounds: 3, goal: 50, quick: true, run: runTableMove},
		{name: "load/table-peer", unit: "ms", lower: true, alone: true, rounds: 3, goal: 1, quick: true, run: runTablePeer},
		{name: "load/table-first", unit: "ms", lower: true, alone: true, rounds: 3, goal: 1, quick: true, run: runTableFirst},
		{name: "load/keepalives", unit: "% of a core", lower: true, alone: true, rounds: 1, spans: 3, goal: 4, run: runKeepalives},
		{name: "load/keepalives-wakes", unit: "1/s", lower: true, alone: true, rounds: 1, spans: 3, goal: 200, run: runKeepaliveWakes},
		{name: "load/show", unit: "s", lower: true, alone: true, rounds: 3, goal: 1, run: runShow},
		{name: "load/show-memory", unit: "MiB", lower: true, alone: true, rounds: 3, goal: 10, run: runShowMemory},
	}
}

// million is 100 times st.Peers, which is 1,000,000 with the full effort.
func million(st *stage) int { return 100 * st.Peers }

// madeUpKey returns an invented public key for peer number i. Nobody knows its private key.
func madeUpKey(i int) (key wireguard.PublicKey) {
	binary.BigEndian.PutUint64(key[:], uint64(i+1)*0x9e3779b97f4a7c15) // spreads the keys evenly, as real keys are
	key[31] = 1
	return key
}

// still makes a device and does not bring it up.
func still(st *stage, c wireguard.Config) (*wireguard.Device, error) {
	c.PrivateKey, c.Tunnel, c.Bind = wireguard.NewPrivateKey(), new(loadTunnel), countedBind{st: st}
	d, err := wireguard.New(c)
	if err == nil {
		st.atClose(func() { d.Close() })
	}
	return d, err
}

// prefixes returns n different prefixes, each of which contains one address.
func prefixes(n int) []netip.Prefix {
	all := make([]netip.Prefix, n)
	for i := range all {
		all[i] = netip.PrefixFrom(inner(i), 32)
	}
	return all
}

// mean1000 calls the function do 1,000 times, and returns the mean time of a call in seconds.
func mean1000(do func(i int) error) (float64, error) {
	t := time.Now()
	for i := range 1000 {
		if err := do(i); err != nil {
			return 0, err
		}
	}
	return time.Since(t).Seconds() / 1000, nil
}

// runTableMove measures how long a change takes that moves one of 1,000,000 prefixes from one peer to another. The asides are the
// times of a change that removes such a prefix, and of a change that adds it.
func runTableMove(st *stage) (sample, error) {
	all := prefixes(million(st))
	d, err := still(st, wireguard.Config{Peers: []wireguard.PeerConfig{{PublicKey: madeUpKey(1), AllowedIPs: all}, {PublicKey: madeUpKey(2)}}})
	if err != nil {
		return sample{}, err
	}
	if _, err := weigh(); err != nil { // otherwise the garbage of wireguard.New would be collected during the measurement
		return sample{}, err
	}
	nth := func(i int) []netip.Prefix { i *= 997; return all[i%len(all):][:1] }
	change := func(c wireguard.PeerChange) error {
		return d.Configure(wireguard.Change{Peers: []wireguard.PeerChange{c}})
	}
	move, err := mean1000(func(i int) error {
		return change(wireguard.PeerChange{PublicKey: madeUpKey(2), AllowedIPs: nth(i)})
	})
	if err != nil {
		return sample{}, err
	}
	remove, err := mean1000(func(i int) error {
		return change(wireguard.PeerChange{PublicKey: madeUpKey(2), RemoveAllowedIPs: nth(i)})
	})
	if err != nil {
		return sample{}, err
	}
	add, err := mean1000(func(i int) error {
		return change(wireguard.PeerChange{PublicKey: madeUpKey(2), AllowedIPs: nth(i)})
	})
	return sample{move * 1e6, []aside{
		{Name: "remove", Unit: "µs", Value: remove * 1e6},
		{Name: "add", Unit: "µs", Value: add * 1e6},
	}}, err
}

// runTablePeer measures how long Device.Peer takes for a peer with 1,000,000 prefixes.
func runTablePeer(st *stage) (sample, error) {
	d, err := still(st, wireguard.Config{Peers: []wireguard.PeerConfig{{PublicKey: madeUpKey(1), AllowedIPs: prefixes(million(st))}}})
	if err != nil {
		return sample{}, err
	}
	took, err := mean1000(func(int) error {
		if s, ok := d.Peer(madeUpKey(1)); !ok || s.AllowedIPs != million(st) {
			return fmt.Errorf("the peer has %d prefixes, want %d", s.AllowedIPs, million(st))
		}
		return nil
	})
	return sample{took * 1e3, nil}, err
}

// runTableFirst measures how long a loop over Device.PeersAfter takes until it has the first of 1,000,000 peers. The aside is the
// time for 100 peers from the middle.
func runTableFirst(st *stage) (sample, error) {
	c := wireguard.Config{Peers: make([]wireguard.PeerConfig, million(st))}
	for i := range c.Peers {
		c.Peers[i] = wireguard.PeerConfig{PublicKey: madeUpKey(i)}
	}
	d, err := still(st, c)
	if err != nil {
		return sample{}, err
	}
	read := func(after wireguard.PublicKey, page int) func(int) error {
		return func(int) error {
			n := 0
			for range d.PeersAfter(after) {
				if n++; n == page {
					return nil
				}
			}
			return fmt.Errorf("only %d peers were listed", n)
		}
	}
	first, err := mean1000(read(wireguard.PublicKey{}, 1))
	if err != nil {
		return sample{}, err
	}
	page, err := mean1000(read(wireguard.PublicKey{0x80}, 100))
	return sample{first * 1e3, []aside{{Name: "a page of 100", Unit: "ms", Value: page * 1e3}}}, err
}

// showPeers is the number of peers of load/show: 65,000 with the full effort.
func showPeers(st *stage) int { return 65 * st.Peers / 10 }

// runShow measures the processor time that this process, which contains a device and a uapi.Server, uses while it serves one run of
// "wg show".
func runShow(st *stage) (sample, error) {
	cpu, memory, err := show(st)
	return sample{cpu, []aside{{Name: "memory above rest", Unit: "MiB", Value: memory}}}, err
}

// runShowMemory measures by how much the resident memory of this process grows, at its peak, while the process serves one run of
// "wg show".
func runShowMemory(st *stage) (sample, error) {
	cpu, memory, err := show(st)
	return sample{memory, []aside{{Name: "cpu", Unit: "s", Value: cpu}}}, err
}

// show runs wg(8) on the control socket of a device with 65,000 peers. The device is in this process, and the results are this
// process's processor time and the growth of its resident memory. show collects garbage before it runs wg.
func show(st *stage) (cpu, memory float64, err error) {
	c := wireguard.Config{Peers: make([]wireguard.PeerConfig, showPeers(st))}
	for i := range c.Peers {
		c.Peers[i] = wireguard.PeerConfig{
			PublicKey: madeUpKey(i), Endpoint: wireguard.EndpointOf(netip.AddrPortFrom(inner(i), 51820)),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(inner(i), 32)}, PersistentKeepalive: keptAlive,
		}
	}
	d, err := still(st, c)
	if err != nil {
		return 0, 0, err
	}
	name := fmt.Sprintf("bench%d", os.Getpid())
	l, err := uapi.Listen(name)
	if err != nil {
		return 0, 0, err
	}
	s := &uapi.Server{Device: d}
	go s.Serve(l)
	st.atClose(func() { s.Close() })
	if _, err := weigh(); err != nil {
		return 0, 0, err
	}
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // resets VmHWM to VmRSS
		return 0, 0, fmt.Errorf("reset the peak of the resident memory: %w", err)
	}
	before, err := residentBytes("VmHWM")
	if err != nil {
		return 0, 0, err
	}
	out, err := os.CreateTemp("", "wg-show")
	if err != nil {
		return 0, 0, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	c0 := cpuTime()
	cmd := exec.Command("wg", "show", name)
	cmd.Stdout = out // wg writes to the file directly, so this process does not copy the output
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("wg show: %w", err)
	}
	cpu = (cpuTime() - c0).Seconds()
	peak, err := residentBytes("VmHWM")
	if err != nil {
		return 0, 0, err
	}
	text, err := os.ReadFile(out.Name())
	if n := bytes.Count(text, []byte("peer: ")); err == nil && n != len(c.Peers) {
		err = fmt.Errorf("wg show printed %d peers, want %d", n, len(c.Peers))
	}
	return cpu, (peak - before) / (1 << 20), err
}
