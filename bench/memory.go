package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/seed-86b749af/wireguard"
)

func memoryMeasures() []measure {
	return []measure{
		{name: "memory/device", unit: "KiB heap", lower: true, run: runDeviceMemory},
		{name: "memory/after", unit: "MiB resident", lower: true, run: runMemoryAfter},
		{name: "memory/netstack", unit: "MiB resident", lower: true, run: runNetstackMemory},
		{name: "memory/peer", unit: "bytes", lower: true, run: runPeerMemory, rounds: 5},
		{name: "goroutines/device", unit: "goroutines", lower: true, run: runDeviceGoroutines},
		{name: "goroutines/peer", unit: "goroutines", lower: true, run: runPeerGoroutines},
	}
}

// A footprint is the memory that this process uses.
type footprint struct {
	heap, stack float64 // bytes in use after garbage collection
	resident    float64 // bytes of memory in RAM
	goroutines  int
}

// weigh collects all garbage, returns free memory to the system, and then reads the footprint of this process.
func weigh() (footprint, error) {
	for range 3 { // freeing the contents of a sync.Pool takes two collections
		runtime.GC()
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	resident, err := residentBytes("VmRSS")
	return footprint{float64(m.HeapAlloc), float64(m.StackInuse), resident, runtime.NumGoroutine()}, err
}

// lone brings up one device without peers at one end of a wire, and returns how much the footprint of this process grows.
func lone(st *stage) (node, footprint, error) {
	w := newWire(st, st.lib.landings())
	p, _ := newPlains(newFlow(64, addrA, addrB), newFlow(64, addrB, addrA))
	key := wireguard.NewPrivateKey()
	before, err := weigh()
	if err != nil {
		return nil, before, err
	}
	n, err := st.lib.node(st, nodeConfig{key: key, plain: p, end: &w.ends[0]})
	if err != nil {
		return nil, before, err
	}
	time.Sleep(st.Warm) // until the device's goroutines have started
	after, err := weigh()
	runtime.KeepAlive(w)
	return n, footprint{
		after.heap - before.heap, after.stack - before.stack, after.resident - before.resident,
		after.goroutines - before.goroutines,
	}, err
}

func runDeviceMemory(st *stage) (sample, error) {
	_, f, err := lone(st)
	return sample{f.heap / 1024, []aside{
		{Name: "resident growth", Unit: "KiB", Value: f.resident / 1024},
		{Name: "stacks", Unit: "KiB", Value: f.stack / 1024},
		{Name: "goroutines", Value: float64(f.goroutines)},
	}}, err
}

func runDeviceGoroutines(st *stage) (sample, error) {
	_, f, err := lone(st)
	return sample{Value: float64(f.goroutines)}, err
}

// runMemoryAfter measures the resident memory of this process half a minute after a bulk transfer. The process contains both
// devices and the bench itself. The bench requests no garbage collection.
func runMemoryAfter(st *stage) (sample, error) {
	before, err := residentBytes("VmRSS")
	if err != nil {
		return sample{}, err
	}
	ab, ba := newFlow(mtu, addrA, addrB), newFlow(mtu, addrB, addrA)
	if err := tunnel(st, newWire(st, st.lib.landings()), ab, ba); err != nil {
		return sample{}, err
	}
	ab.open(0)
	time.Sleep(st.Span)
	ab.stop()
	if err := ab.drain(patience); err != nil {
		return sample{}, err
	}
	peak, err := residentBytes("VmHWM")
	if err != nil {
		return sample{}, err
	}
	st.rest()
	time.Sleep(st.Settle)
	after, err := residentBytes("VmRSS")
	return sample{after / (1 << 20), []aside{
		{Name: "peak during the run", Unit: "MiB", Value: peak / (1 << 20)},
		{Name: "before the devices", Unit: "MiB", Value: before / (1 << 20)},
	}}, err
}

// runNetstackMemory measures the resident memory of this process while four TCP connections send from one in-process stack to
// another. The figure is the mean of several readings during the measured span.
func runNetstackMemory(st *stage) (sample, error) {
	s, err := joinByTunnel(st)
	if err != nil {
		return sample{}, err
	}
	weighed := meanResident(st)
	bulk, err := runBulk(st, s, 4)
	if err != nil {
		return sample{}, err
	}
	w := <-weighed
	return sample{w.mean / (1 << 20), []aside{{Name: "meanwhile", Unit: "Gbit/s", Value: bulk.Value}}}, w.err
}

// A weight is the mean of several readings of the resident memory, in bytes.
type weight struct {
	mean float64
	err  error
}

// meanResident starts to read the resident memory of this process during the measured span. The channel delivers the mean.
func meanResident(st *stage) <-chan weight {
	during := st.Span
	weighed := make(chan weight, 1)
	go func() {
		time.Sleep(st.Warm)
		var w weight
		const looks = 20
		for range looks {
			time.Sleep(during / (looks + 2))
			var r float64
			if r, w.err = residentBytes("VmRSS"); w.err != nil {
				break
			}
			w.mean += r / looks
		}
		weighed <- w
	}()
	return weighed
}

// identities makes n peers, each with a prefix and an endpoint, and returns them with their private keys.
func identities(n int) (peers []peer, keys []wireguard.PrivateKey) {
	for i := range n {
		key := wireguard.NewPrivateKey()
		keys = append(keys, key)
		peers = append(peers, peer{
			key:      key.Public(),
			endpoint: netip.AddrPortFrom(loopback, uint16(2000+i%60000)),
			prefix:   netip.PrefixFrom(inner(i), 32),
		})
	}
	return peers, keys
}

// inner returns the address of peer i inside the tunnel.
func inner(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 1 + byte(i>>16), byte(i >> 8), byte(i)})
}

// A hub is a device with many peers. A second device, the visitor, acts as one of these peers at a time: it uses the peer's
// private key.
type hub struct {
	node, visitor node
	key           wireguard.PrivateKey
	peers         []peer
	keys          []wireguard.PrivateKey
	in, out       *flow // in leads from the visitor to the hub, and out leads back
}

// newHub brings up the hub and the visitor. The hub has no peers yet, and the visitor's only peer is the hub.
func newHub(st *stage, peers int) (*hub, error) {
	w := newWire(st, st.lib.landings())
	h := &hub{key: wireguard.NewPrivateKey(), in: newFlow(64, addrA, addrB), out: newFlow(64, addrB, addrA)}
	h.peers, h.keys = identities(peers)
	visitor, plain := newPlains(h.in, h.out)
	var err error
	h.node, err = st.lib.node(st, nodeConfig{key: h.key, plain: plain, end: &w.ends[0], byHand: true})
	if err != nil {
		return nil, err
	}
	h.visitor, err = st.lib.node(st, nodeConfig{key: h.keys[0], plain: visitor, end: &w.ends[1]})
	if err != nil {
		return nil, err
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	return h, h.visitor.plan(peer{h.key.Public(), w.ends[0].addr, all})()
}

// use lets the visitor act as each of the first n peers in turn. For each, the visitor makes a handshake and sends a packet, the
// hub sends a packet, and the visitor sends another one. Because of that last packet, the hub does not wait for an answer from a
// peer when the visitor already acts as the next one.
func (h *hub) use(n int) error {
	for i := range n {
		if err := h.visitor.become(h.keys[i]); err != nil {
			return err
		}
		h.in.address(inner(i), addrB)
		h.out.address(addrB, inner(i))
		for _, f := range []*flow{h.in, h.out, h.in} {
			f.allow(f.received.Load() + 1)
			if err := f.drain(10 * time.Second); err != nil {
				return fmt.Errorf("peer %d: %w", i, err)
			}
		}
	}
	return nil
}

// runPeerMemory measures the bytes of heap and stacks per peer. The figure is the larger of two: the bytes per peer that was never
// used, and the bytes per peer that had a session whose state was then erased by node.wipe.
func runPeerMemory(st *stage) (sample, error) {
	h, err := newHub(st, st.Peers)
	if err != nil {
		return sample{}, err
	}
	add := h.node.plan(h.peers...)
	before, err := weigh()
	if err != nil {
		return sample{}, err
	}
	if err := add(); err != nil {
		return sample{}, err
	}
	fresh, err := weigh()
	if err != nil {
		return sample{}, err
	}
	used := st.lib.used(st)
	if err := h.use(used); err != nil {
		return sample{}, err
	}
	session, err := weigh()
	if err != nil {
		return sample{}, err
	}
	if err := h.node.wipe(h.peers[:used]); err != nil {
		return sample{}, err
	}
	wiped, err := weigh()
	if err != nil {
		return sample{}, err
	}
	n := float64(st.Peers)
	never := (fresh.heap + fresh.stack - before.heap - before.stack) / n
	grown := func(f footprint) float64 {
		return never + (f.heap+f.stack-fresh.heap-fresh.stack)/float64(used)
	}
	runtime.KeepAlive(h)
	runtime.KeepAlive(add)
	return sample{max(never, grown(wiped)), []aside{
		{Name: "never used", Unit: "bytes", Value: never},
		{Name: "with a session", Unit: "bytes", Value: grown(session)},
		{Name: "used and wiped", Unit: "bytes", Value: grown(wiped)},
		{Name: "peers used", Value: float64(used)},
		{Name: "resident growth, never used", Unit: "bytes", Value: (fresh.resident - before.resident) / n},
	}}, nil
}

func runPeerGoroutines(st *stage) (sample, error) {
	n, _, err := lone(st)
	if err != nil {
		return sample{}, err
	}
	peers, _ := identities(max(st.Peers/10, 1))
	before := runtime.NumGoroutine()
	if err := n.plan(peers...)(); err != nil {
		return sample{}, err
	}
	time.Sleep(st.Warm)
	return sample{Value: float64(runtime.NumGoroutine()-before) / float64(len(peers))}, nil
}
