package wireguard_test

import (
	"context"
	"crypto/sha256"

	"encoding/binary"
	"flag"
	"fmt"
	"hash"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// The simulation runs whole devices in virtual time. A schedule says what happens to them and to the wire between them. It is made
// from a seed:
//
//	seed ─▶ schedule ─▶ steps (simulation_steps_test.go) ─▶ devices on a pipe.Network ─▶ judge (kit_judge_test.go)
//
// A schedule consists of episodes. In each episode, steps do harm. The last step undoes the harm, and asserts that every tunnel
// heals.
var (
	simSchedules = flag.Int("schedules", 0, "how many schedules TestSimulation plays; 0: 200, or 40 with -short")
	simSeed      = flag.Uint64("seed", 0, "the seed of the first schedule of TestSimulation, and of its only one unless -schedules is given; 0: begin with 1")
)

// healTime is the longest time from when the wire works again until a tunnel does. At worst, data goes unanswered for 15 s; then
// the initiation must wait until 5 s after an earlier one; and then it crosses an initiation of the other end.
const healTime = 30 * time.Second

// A schedule is what happens in one run. All of it follows from the seed.
type schedule struct {
	seed    uint64
	nodes   int
	orderly bool          // the wire keeps order
	crowded bool          // things happen at the same moment, on several processors
	awake   bool          // no machine sleeps, so that all clocks agree
	delay   time.Duration // the usual delay of the wire
	chatter time.Duration // about how long from one packet of the background traffic to the next; 0: no background traffic
	steps   []step
}

// A step is one thing that happens, when gap has passed since the last step. Its kind says what it does with i, j and x.
type step struct {
	gap  time.Duration
	kind *kind
	i, j int // two nodes
	x    uint64
}

func (st step) String() string {
	return fmt.Sprintf("+%-9v %s(%c, %c) %x", st.gap, st.kind.name, 'a'+st.i, 'a'+st.j, st.x)
}

func (st step) random() *rand.Rand { return rand.New(rand.NewPCG(st.x, 1)) }

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// newSchedule makes the schedule of a seed.
func newSchedule(seed uint64) *schedule {
	r := rand.New(rand.NewPCG(seed, 0))
	s := &schedule{
		seed: seed, nodes: pick(r, 2, 2, 2, 2, 2, 3, 3, 3, 4),
		orderly: r.IntN(2) == 0, awake: r.IntN(2) == 0, crowded: r.IntN(3) == 0,
		delay:   pick(r, 0, time.Millisecond, 20*time.Millisecond, 150*time.Millisecond),
		chatter: pick(r, 0, 300*time.Millisecond, 2*time.Second, 2*time.Second, 10*time.Second),
	}
	// Each schedule uses some of the kinds, so that a few kinds are also combined without the others.
	var some []*kind
	for _, k := range kinds {
		usable := !(k.reorders && s.orderly) && !(k.sleeps && s.awake) && !(k.crowds && !s.crowded)
		if use := r.IntN(2) == 0 || k.always; use && usable {
			for range k.weight {
				some = append(some, k)
			}
		}
	}
	add := func(gap time.Duration, k *kind) {
		i := r.IntN(s.nodes)
		j := (i + 1 + r.IntN(s.nodes-1)) % s.nodes
		s.steps = append(s.steps, step{gap, k, i, j, r.Uint64()})
	}
	for range 1 + r.IntN(3) {
		for range 3 + r.IntN(12) {
			most := pick(r, 0, 50*time.Millisecond, time.Second, 6*time.Second, 6*time.Second, 25*time.Second, 100*time.Second)
			add(time.Duration(r.Float64()*float64(most)), some[r.IntN(len(some))])
		}
		add(time.Duration(r.Float64()*float64(pick(r, time.Second, 20*time.Second))), heal)
	}
	return s
}

func (s *schedule) String() string {
	return fmt.Sprintf("%d nodes, orderly %v, awake %v, crowded %v, delay %v, chatter %v", s.nodes, s.orderly, s.awake, s.crowded, s.delay, s.chatter)
}

// A sim is a run of a schedule.
type sim struct {
	*world
	*schedule
	all      []*simNode
	judge    *judge
	random   *rand.Rand
	nat      *pipe.NAT
	natted   *simNode // the node behind the NAT
	played   int      // steps
	id       uint64   // of the last packet
	did      map[string]bool
	besieged bool      // strangers send forgeries
	seen     int       // messages on the wire
	samples  []message // some of them, to be replayed
	digest   hash.Hash
}

// A simNode is a node and what it knows of the others.
type simNode struct {
	*node
	i      int
	gen    int  // of its private key
	slept  bool // its machine slept, and Wake was not called
	life   *life
	random *rand.ChaCha8
	views  []view // of each node
}

// A view is what a node knows of another one.
type view struct {
	present  bool
	gen, psk int // the generations of the other's private key and of their preshared key
}

// newSim makes the devices of a schedule, and makes each of them a peer of the others.
func newSim(t *testing.T, sc *schedule) *sim {
	w := &world{TB: t, net: pipe.NewNetwork(pipe.Config{Seed: sc.seed}), start: time.Now()}
	s := &sim{
		world: w, schedule: sc, judge: newJudge(sc.nodes, sc.orderly), random: rand.New(rand.NewPCG(sc.seed, 2)),
		did: make(map[string]bool), digest: sha256.New(),
	}
	s.nat = w.net.NewNAT(pipe.NATConfig{Addrs: []netip.Addr{elsewhere}})
	s.calmWire()
	w.net.Filter(s.sent)
	w.net.Tap(s.met)
	for i := range sc.nodes {
		n := &simNode{i: i, life: &life{node: i, name: string(rune('a' + i))}, views: make([]view, sc.nodes)}
		n.node = w.nodeDown(n.life.name, s.attach(n), func(c *wireguard.Config) { c.PrivateKey = s.key(i, 0) })
		var seed [32]byte
		binary.LittleEndian.PutUint64(seed[:], sc.seed)
		seed[8] = byte(1 + i)
		n.random = rand.NewChaCha8(seed)
		s.all = append(s.all, n)
	}
	for _, n := range s.all {
		s.must(n.Up())
		for _, o := range s.others(n) {
			s.learn(n, o, o.at())
		}
	}
	w.settle()
	return s
}

// attach returns a function that gives a node's configuration a Tunnel whose packets the judge sees.
func (s *sim) attach(n *simNode) func(c *wireguard.Config) {
	return func(c *wireguard.Config) {
		l := n.life
		c.Tunnel = judgedTunnel{c.Tunnel.(scribblingTunnel), func(p []byte) { s.judge.delivered(l, p, n.clock.Now()) }}
	}
}

// A judgedTunnel passes each delivered packet to see, and then overwrites it instead of queueing it.
type judgedTunnel struct {
	scribblingTunnel
	see func(packet []byte)
}

func (t judgedTunnel) WritePackets(pkts [][]byte) (int, error) {
	for _, p := range pkts {
		t.see(p)
		scribble(p)
	}
	return len(pkts), nil
}

func (s *sim) must(err error) {
	s.Helper()
	if err != nil {
		s.fail(err.Error())
	}
}

func (s *sim) others(n *simNode) (all []*simNode) {
	for _, o := range s.all {
		if o != n {
			all = append(all, o)
		}
	}
	return all
}

func (s *sim) of(e *pipe.End) *simNode {
	i := slices.IndexFunc(s.all, func(n *simNode) bool { return n.end == e })
	if i < 0 {
		return nil
	}
	return s.all[i]
}

// sent is the wire's filter. It tells the judge what a device put on the wire.
func (s *sim) sent(p *pipe.Packet) pipe.Verdict {
	n := s.of(p.Sender)
	le := binary.LittleEndian
	switch p.Type {
	case pipe.TypeInitiation:
		s.judge.initiation(n.life, le.Uint32(p.Data[4:]))
	case pipe.TypeResponse:
		index := le.Uint32(p.Data[4:])
		send, receive := wireguard.Ciphers(n.Device, index)
		s.judge.response(n.life, index, le.Uint32(p.Data[8:]), n.clock.Now(), send, receive)
	case pipe.TypeData, pipe.TypeKeepalive:
		s.judge.data(n.life, p.Data, n.clock.Now())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(s.digest, s.now(), n.i, p.To, p.TOS, p.Data)
	if s.seen++; s.seen%5 == 1 && len(s.samples) < 100 {
		s.samples = append(s.samples, message{src: p.From, dst: p.To, data: slices.Clone(p.Data)})
	}
	return pipe.Pass
}

// met is the wire's tap. It tells the judge which responses were delivered.
func (s *sim) met(p pipe.Packet) {
	if p.Fate == pipe.FateDelivered && p.Type == pipe.TypeResponse {
		n, le := s.of(p.Receiver), binary.LittleEndian
		s.judge.answered(n.life, le.Uint32(p.Data[4:]), le.Uint32(p.Data[8:]), n.clock.Now())
	}
}

// parcel returns a new packet from n to o. Each packet has a different payload. Its source is one of n's own addresses.
func (s *sim) parcel(n, o *simNode, stream, size int, r *rand.Rand) []byte {
	return s.parcelFrom(n, n, o, stream, size, r)
}

// parcelFrom is like parcel, but the source is an address of the node src.
func (s *sim) parcelFrom(n, src, o *simNode, stream, size int, r *rand.Rand) []byte {
	s.id++
	payload := make([]byte, 8+size)
	binary.BigEndian.PutUint64(payload, s.id)
	for i := range size {
		payload[8+i] = byte(uint64(i)*(s.id|1)>>3 + s.id)
	}
	inner := inner4
	if r.IntN(3) == 0 {
		inner = inner6
	}
	from := netip.AddrPortFrom(inner(src.i, r.IntN(2)), uint16(1000+stream))
	p := pipe.UDPPacket(from, netip.AddrPortFrom(inner(o.i, r.IntN(2)), 7), payload)
	s.judge.handed(s.id, &parcel{from: n.life, to: o.i, stream: stream, packet: p})
	return p
}

// Node i has 10.i.0.0/16 and fd00:i::/32 inside the tunnel, and in each of them two subnets with one host.
func inner4(i, subnet int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i), byte(subnet), 1}) }
func inner6(i, subnet int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: byte(i), 5: byte(subnet), 15: 1})
}

func (n *simNode) networks() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(inner4(n.i, 0), 16).Masked(), netip.PrefixFrom(inner6(n.i, 0), 32).Masked()}
}

func (n *simNode) subnets() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(inner4(n.i, 1), 24).Masked(), netip.PrefixFrom(inner6(n.i, 1), 48).Masked()}
}

// These are the streams. The device reads the packets of stream tunnel from its Tunnel. Those of the others go to Device.Send.
const (
	tunnel = 0
	push   = 1 // each stream from push on has its own goroutine
)

// say hands packets of a stream to n. It ignores errors.
func (s *sim) say(n *simNode, stream int, packets ...[]byte) {
	s.tick()
	if stream == tunnel {
		n.tun.TrySend(packets...)
		return
	}
	b := n.NewBatch()
	for _, p := range packets {
		if !b.Append(p) {
			n.Send(b)
			b.Append(p)
		}
	}
	n.Send(b) // the error of a device that is down does not matter
}

// tick lets a little time pass between the acts of different devices, unless the schedule is crowded. In a crowded schedule they
// act at the same moment, and the seed does not determine in which order their messages are put on the wire.
func (s *sim) tick() {
	if !s.crowded {
		s.advance(time.Duration(1 + s.random.IntN(1000)))
	}
}

// pass lets time pass, and sends the packets of the background traffic meanwhile.
func (s *sim) pass(d time.Duration) {
	if s.chatter > 0 {
		every := max(s.chatter, d/50)
		for gap := s.between(every); gap < d; gap = s.between(every) {
			s.advance(gap)
			d -= gap
			n := pick(s.random, s.all...)
			s.say(n, s.random.IntN(2), s.parcel(n, pick(s.random, s.others(n)...), 9, s.random.IntN(200), s.random))
		}
	}
	s.advance(d)
}

func (s *sim) between(every time.Duration) time.Duration {
	return time.Duration((0.5 + s.random.Float64()) * float64(every))
}

// play plays the schedule to its end and closes the devices.
func (s *sim) play() {
	for _, st := range s.steps {
		s.pass(st.gap)
		s.did[st.kind.name] = true
		st.kind.do(s, s.all[st.i], s.all[st.j], st.random())
		s.played++
		s.settle()
		s.verify()
	}
	for _, n := range s.all { // in a crowded schedule, the devices close while these packets are under way
		s.say(n, tunnel, s.parcel(n, s.others(n)[0], tunnel, 1000, s.random))
	}
	s.tick()
	for _, n := range s.all {
		s.end(n)
	}
	s.verify()
}

// end closes a node's device. It checks that the device leaves nothing behind. If the device counted drops with a reason in
// dropCauses, it checks that a step of the schedule may have caused them.
func (s *sim) end(n *simNode) {
	s.must(n.Close())
	if b, i, c := wireguard.StagedBytes(n.Device), wireguard.SessionIndices(n.Device), wireguard.Waiters(n.Device); b != 0 || i != 0 || c != 0 {
		s.fail(fmt.Sprintf("%v is closed, and has %d bytes staged, %d session indices, %d calls of Handshake", n.life, b, i, c))
	}
	for r, count := range n.Status().Drops {
		if causes, ok := dropCauses[wireguard.DropReason(r)]; ok && count != 0 && !slices.ContainsFunc(causes, func(c string) bool { return s.did[c] }) {
			s.fail(fmt.Sprintf("%v dropped %d with reason %q, and nothing in the schedule makes that happen", n.life, count, wireguard.DropReason(r)))
		}
	}
}

// dropCauses says which steps may cause drops with a reason. A drop without such a step is a fault of the library. Drops with
// reasons that are not in the map may happen in any schedule.
var dropCauses = map[wireguard.DropReason][]string{
	wireguard.DropMalformed:        nil,
	wireguard.DropStagedBytes:      nil,
	wireguard.DropUnknownMessage:   nil,
	wireguard.DropInnerMalformed:   nil,
	wireguard.DropSinkFull:         nil,
	wireguard.DropQueueFull:        nil,
	wireguard.DropNoIdentity:       nil,
	wireguard.DropLowOrder:         nil,
	wireguard.DropLookupFull:       nil,
	wireguard.DropIndexFull:        nil,
	wireguard.DropTooBig:           nil,
	wireguard.DropForged:           {"preshared", "strangers"},
	wireguard.DropReplayed:         {"weather", "path", "replay"},
	wireguard.DropBadMAC:           {"rekey", "replay", "strangers"},
	wireguard.DropUnknownPeer:      {"rekey", "remove", "replay", "strangers"},
	wireguard.DropCookieRequired:   {"load"},
	wireguard.DropRateLimited:      {"load"},
	wireguard.DropBadCookie:        {"load", "strangers"},
	wireguard.DropOldTimestamp:     {"weather", "path", "replay", "restart", "rekey", "remove", "down", "sleep", "flap"},
	wireguard.DropSourceNotAllowed: {"spoof", "allowed", "remove", "rekey", "greedy"},
}

// verify fails if the judge has seen a fault.
func (s *sim) verify() {
	s.Helper()
	if wrong := s.judge.verdict(); len(wrong) > 0 {
		s.fail(strings.Join(wrong, "\n"))
	}
}

// fail ends the test. It shows what is wrong, the command that reproduces it, and the steps that led to it.
func (s *sim) fail(why string) {
	s.Helper()
	var b strings.Builder
	for _, n := range s.all {
		fmt.Fprintf(&b, "%v dropped", n.life)
		for r, count := range n.Status().Drops {
			if count > 0 {
				fmt.Fprintf(&b, ", %d %v", count, wireguard.DropReason(r))
			}
		}
		b.WriteByte('\n')
	}
	fmt.Fprintln(&b, s.schedule)
	for i, st := range s.steps[:min(s.played+1, len(s.steps))] {
		fmt.Fprintf(&b, "%3d %v\n", i, st)
	}
	s.Fatalf("at %v: %s\n\ngo test -run '^TestSimulation$' -seed %d .\n\n%s", s.now(), why, s.seed, b.String())
}

// simulate plays the schedule of a seed, and returns a digest of everything that was put on the wire.
func simulate(t *testing.T, seed uint64) (digest string) {
	if !newSchedule(seed).crowded {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that each run of the seed is the same
	}
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, newSchedule(seed))
		s.play()
		digest = fmt.Sprintf("%x", s.digest.Sum(nil))
	})
	return digest
}

// Whatever happens to a wire and to the devices on it, no packet is delivered twice, altered, from a source that its sender
// may not use, or under a key that is too old. No counter is used twice. Packets keep their order if the wire does. Tunnels heal
// within 30 s, and closed devices leave nothing behind.
func TestSimulation(t *testing.T) {
	n := *simSchedules
	switch {
	case n > 0:
	case *simSeed != 0:
		n = 1
	case testkit.OneThread:
		n = 10
	case testing.Short():
		n = 40
	default:
		n = 200
	}
	first := max(*simSeed, 1)
	for seed := first; seed < first+uint64(n); seed++ {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { simulate(t, seed) }) && n <= 1000 {
			t.FailNow() // one failure is enough to read
		}
	}
}

// ask calls Handshake on a new goroutine, with a deadline.
func (s *sim) ask(n, o *simNode, within time.Duration) {
	d, key := n.Device, s.key(o.i, n.views[o.i].gen).Public()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	go func() {
		defer cancel()
		d.Handshake(ctx, key)
	}()
}

// Two runs of one seed put the same bytes on the wire, if the schedule is not crowded. That holds as long as the goroutines of a
// device that become ready at the same moment run in the same order. On a busy machine they may not, so each seed runs up to six
// times until two runs are the same.
func TestSimulationIsReplayed(t *testing.T) {
	last := uint64(12)
	if testkit.OneThread {
		last = 4
	}
	for seed := uint64(1); seed <= last; seed++ {
		if newSchedule(seed).crowded {
			continue
		}
		seen := make(map[string]bool)
		for d := simulate(t, seed); !seen[d]; d = simulate(t, seed) {
			if seen[d] = true; len(seen) == 6 {
				t.Fatalf("seed %d went six ways", seed)
			}
		}
	}
}
