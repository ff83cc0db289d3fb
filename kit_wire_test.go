package wireguard_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A message is a datagram that a device has sent, whether or not it has arrived.
type message struct {
	at       time.Duration // when the message was sent, as the time since the start of the world
	from     *node
	src, dst netip.AddrPort // if there is a NAT, src is the address outside of it
	kind     pipe.MessageType
	tos      uint8
	data     []byte
}

func (m *message) String() string { return m.from.name + " " + m.kind.String() }

// record is the filter of the network. It records every datagram that a device sends, and applies the world's rule to it.
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

// script returns the messages that the devices have sent since the last call of script or want, in order, for example "a
// initiation, b response, a data x3".
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

// want asserts that the devices have sent exactly the messages in script since the last call of want or script.
func (w *world) want(script, why string) {
	w.Helper()
	if got := w.script(); got != script {
		w.Fatalf("at %v: the devices sent %q, want %q: %s", w.now(), got, script, why)
	}
}

// wantIdle asserts that no device sends a message for the time d.
func (w *world) wantIdle(d time.Duration, why string) {
	w.Helper()
	w.advance(d)
	w.want("", why)
}

// wantAt asserts that no device sends a message until the time d has passed, and that the devices then send the messages in
// script.
func (w *world) wantAt(d time.Duration, script, why string) {
	w.Helper()
	w.wantIdle(d-1, "too early: "+why)
	w.advance(1)
	w.want(script, why)
}

// jitter is the maximum random time that a device adds to REKEY_TIMEOUT.
const jitter = time.Second / 3

// wantJittered is like wantAt, but the devices may send the messages up to jitter later.
func (w *world) wantJittered(d time.Duration, script, why string) {
	w.Helper()
	w.wantIdle(d-1, "too early: "+why)
	w.advance(jitter + 1)
	w.want(script, why)
}

// last returns the newest message of a kind that was sent. A kind is, for example, "a initiation".
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
	w.Fatalf("at %v: no such message was sent: %s", w.now(), kind)
	return message{}
}

// replay injects a message again, from its own source address or from another one.
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

// judge makes the function rule decide for each message whether the network passes, drops or holds the message. If rule is nil,
// all messages pass. The rule applies until judge is called again.
func (w *world) judge(rule func(m *message) pipe.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rule = rule
}

// lose drops the next n messages of a kind.
func (w *world) lose(kind string, n int) { w.meet(pipe.Drop, kind, n) }

// hold keeps back the next n messages of a kind until release is called.
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

// release delivers the messages that were held back, and removes the rule.
func (w *world) release() {
	w.judge(nil)
	w.net.Release()
	w.settle()
}

// mac2 returns the mac2 of a handshake message, which is its last field.
func mac2(m message) []byte { return m.data[len(m.data)-16:] }

// numbered returns payloads that are decimal numbers: those from the first argument up to but not including the second.
func numbered(from, to int) (s []string) {
	for i := from; i < to; i++ {
		s = append(s, strconv.Itoa(i))
	}
	return s
}

// traffic sends n packets in each direction, waits for the time gap after each pair of packets, and returns the payloads that
// arrived at b and at a.
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
		w.Fatalf("%d packets arrived, want at least %d", len(got), atLeast)
	}
}
