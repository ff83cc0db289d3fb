package wireguard_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A message is a datagram that a device put on the wire, whether or not it arrived.
type message struct {
	at       time.Duration // since the start of the world
	from     *node
	src, dst netip.AddrPort // src as seen outside of a NAT
	kind     pipe.MessageType
	tos      uint8
	data     []byte
}

func (m *message) String() string { return m.from.name + " " + m.kind.String() }

// record is the filter that sees every datagram that devices send.
func (w *world) record(p *pipe.Packet) pipe.Verdict {
	m := message{
		at: w.now(), src: p.From, dst: p.To, kind: p.Type, tos: p.TOS, data: append([]byte(nil), p.Data...),
	}
	for _, n := range w.nodes {
		if n.end == p.Sender {
			m.from = n
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, m)
	if w.rule != nil {
		return w.rule(&m)
	}
	return pipe.Pass
}

// script returns what devices put on the wire since its last call, in order: "a initiation, b response, a data x3".
func (w *world) script() string {
	w.settle()
	w.mu.Lock()
	defer w.mu.Unlock()
	var parts []string
	last, n := "", 0
	flush := func() {
		switch {
		case n == 1:
			parts = append(parts, last)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%s x%d", last, n))
		}
	}
	for i := range w.log {
		if s := w.log[i].String(); s != last {
			flush()
			last, n = s, 0
		}
		n++
	}
	flush()
	w.past, w.log = append(w.past, w.log...), nil
	return strings.Join(parts, ", ")
}

// want asserts that script is what was put on the wire since the last want.
func (w *world) want(script, why string) {
	w.Helper()
	if got := w.script(); got != script {
		w.Fatalf("at %v: on the wire: %q, want %q: %s", w.now(), got, script, why)
	}
}

// wantIdle asserts that nothing is put on the wire for d.
func (w *world) wantIdle(d time.Duration, why string) {
	w.Helper()
	w.advance(d)
	w.want("", why)
}

// wantAt asserts that nothing is put on the wire until d has passed, and that script is put on it at that moment.
func (w *world) wantAt(d time.Duration, script, why string) {
	w.Helper()
	w.wantIdle(d-1, "before: "+why)
	w.advance(1)
	w.want(script, why)
}

// jitter is the most that is added to REKEY_TIMEOUT.
const jitter = time.Second / 3

// wantJittered is like wantAt, but script may be put on the wire up to jitter later.
func (w *world) wantJittered(d time.Duration, script, why string) {
	w.Helper()
	w.wantIdle(d-1, "before: "+why)
	w.advance(jitter + 1)
	w.want(script, why)
}

// last returns the newest message of a kind, for example "a initiation", that was put on the wire.
func (w *world) last(kind string) message {
	w.Helper()
	w.settle()
	w.mu.Lock()
	defer w.mu.Unlock()
	all := append(w.past, w.log...)
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].String() == kind {
			return all[i]
		}
	}
	w.Fatalf("at %v: no %s was sent", w.now(), kind)
	return message{}
}

// replay injects a message once more, from its source or another one.
func (w *world) replay(m message, from ...netip.AddrPort) {
	w.Helper()
	src := m.src
	if len(from) > 0 {
		src = from[0]
	}
	if err := w.net.Inject(src, m.dst, m.data); err != nil {
		w.Fatal(err)
	}
	w.settle()
}

// judge lets rule decide on each message until the next call of judge. If rule is nil, every message passes.
func (w *world) judge(rule func(m *message) pipe.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rule = rule
}

// lose drops the next n messages of a kind.
func (w *world) lose(kind string, n int) { w.meet(pipe.Drop, kind, n) }

// hold keeps the next n messages of a kind back until release.
func (w *world) hold(kind string, n int) { w.meet(pipe.Hold, kind, n) }

func (w *world) meet(v pipe.Verdict, kind string, n int) {
	w.judge(func(m *message) pipe.Verdict {
		if n > 0 && m.String() == kind {
			n--
			return v
		}
		return pipe.Pass
	})
}

// release lets the messages go on that were held, and ends the rule.
func (w *world) release() {
	w.judge(nil)
	w.net.Release()
	w.settle()
}

// mac2 is the last field of a handshake message.
func mac2(m message) []byte { return m.data[len(m.data)-16:] }

// numbered returns the payloads "0", "1", … from one number up to another.
func numbered(from, to int) (s []string) {
	for i := from; i < to; i++ {
		s = append(s, strconv.Itoa(i))
	}
	return s
}

// traffic sends n packets in each direction, one per gap, and returns the payloads that arrived at b and at a.
func traffic(w *world, a, b *node, n int, gap time.Duration) (atB, atA []string) {
	for i := range n {
		a.send(b, strconv.Itoa(i))
		b.send(a, strconv.Itoa(i))
		w.advance(gap)
		atB, atA = append(atB, b.arrived()...), append(atA, a.arrived()...)
	}
	w.advance(time.Second)
	return append(atB, b.arrived()...), append(atA, a.arrived()...)
}

// wantOnceInOrder asserts that the payloads arrived in order, none of them twice, and that at least atLeast arrived.
func wantOnceInOrder(w *world, got []string, atLeast int) {
	w.Helper()
	last := -1
	for _, s := range got {
		i, err := strconv.Atoi(s)
		if err != nil || i <= last {
			w.Fatalf("%q arrived after %d", s, last)
		}
		last = i
	}
	if len(got) < atLeast {
		w.Fatalf("%d packets arrived, want %d at least", len(got), atLeast)
	}
}
