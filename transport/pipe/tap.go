package pipe

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// A Packet is a datagram as an observer on the wire sees it: its addresses are those outside of a NAT. A Packet may be
// copied, but Data is borrowed.
type Packet struct {
	From, To netip.AddrPort // source and destination
	Data     []byte         // without UDP and IP headers; valid until the Tap or Filter returns
	Type     MessageType    // what TypeOf(Data) says
	TOS      uint8          // IPv4 type of service or IPv6 traffic class: DSCP and ECN

	Sender   *End // the end that sent it; nil for a datagram from Inject
	Receiver *End // the end that it was delivered to; nil for any other Fate and for a Filter

	Sent time.Time // when it was put on the wire
	Time time.Time // when Fate was decided; zero for a Filter
	Fate Fate      // what became of it; meaningless for a Filter

	// Delay is how long the datagram is under way in addition to the delay of its path. A Filter may set it.
	Delay time.Duration
}

// A Verdict says what a Filter does with a datagram.
type Verdict uint8

// The verdicts of a Filter.
const (
	Pass Verdict = iota // the datagram is sent on as the Filter left it
	Drop                // the datagram is dropped
	Hold                // the datagram waits for Network.Release
)

// String returns the verdict in lower-case letters.
func (v Verdict) String() string {
	if names := [...]string{"pass", "drop", "hold"}; int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("Verdict(%d)", uint8(v))
}

type filter struct{ judge func(p *Packet) Verdict }
type tap struct{ see func(p Packet) }

// Filter calls judge for each datagram that a socket sends, before the conditions of its path apply. judge may change the
// bytes of p.Data, make p.Data shorter or another slice, and set p.TOS and p.Delay; other changes have no effect. An
// empty p.Data drops the datagram. Several filters judge in the order in which they were added, until one does not pass
// the datagram.
//
// Filters and taps are called one at a time, in the order of events, on goroutines of senders and timers, and must not
// wait. They may use the network: what they send or inject moves on after they return. remove undoes Filter, and may be
// called again; a call of judge may still be going on when remove returns.
func (n *Network) Filter(judge func(p *Packet) Verdict) (remove func()) {
	return add(n, &n.filters, &filter{judge})
}

// Tap calls see for each datagram once, when its fate is decided: for lost ones as well as for delivered ones, and for
// duplicates and injected ones. Datagrams that are sent while 64 MiB are under way overflow, and no Tap sees them. See
// Filter for how see is called, and for remove.
func (n *Network) Tap(see func(p Packet)) (remove func()) {
	return add(n, &n.taps, &tap{see})
}

// add appends v to a list of n, and remove takes v out. The list is read without the lock, so add and remove replace it
// and never change it in place.
func add[T comparable](n *Network, list *[]T, v T) (remove func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*list = append(slices.Clip(*list), v)
	n.settle()
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		*list = slices.DeleteFunc(slices.Clone(*list), func(u T) bool { return u == v })
		n.settle()
	}
}

// filter applies the verdicts of the filters to f. The caller holds the turn, but not n.mu.
func (n *Network) filter(f *flight) {
	n.mu.RLock()
	filters := n.filters
	n.mu.RUnlock()
	for _, judge := range filters {
		p := f.Packet
		verdict := judge.judge(&p)
		if len(p.Data) == 0 || len(p.Data) > maxDatagram {
			verdict = Drop
		}
		f.memory = append(f.memory[:0], p.Data...) // p.Data may be a part of f.memory
		f.Data, f.Type, f.TOS, f.Delay = f.memory, TypeOf(f.memory), p.TOS, p.Delay
		switch verdict {
		case Drop:
			n.finish(f, FateFiltered)
			return
		case Hold:
			n.mu.Lock()
			f.stage = stageLaunch
			n.held = append(n.held, f)
			n.mu.Unlock()
			return
		}
	}
	n.pass(f)
}

// Release sends on what filters held, in the order in which it was sent. Later filters do not see it.
func (n *Network) Release() {
	n.mu.Lock()
	n.inbox = append(n.inbox, n.held...)
	n.held = nil
	n.mu.Unlock()
	n.run()
}

// Inject puts a forged or replayed datagram on the wire, right in front of its destination. Filters, conditions and cuts
// do not apply, but a NAT there does. It copies data.
func (n *Network) Inject(from, to netip.AddrPort, data []byte) error {
	switch {
	case !from.IsValid() || !to.IsValid():
		return errors.New("pipe: inject: want a source and a destination, each with an address and a port")
	case len(data) == 0 || len(data) > maxDatagram:
		return fmt.Errorf("pipe: inject: %d bytes; want 1 to %d: %w", len(data), maxDatagram, syscall.EMSGSIZE)
	}
	n.mu.Lock()
	f := n.newFlight(data)
	f.From, f.To, f.Sent = from, to, time.Now()
	f.stage = stageArrive
	n.injected.Add(1)
	n.inbox = append(n.inbox, f)
	n.mu.Unlock()
	n.run()
	return nil
}
