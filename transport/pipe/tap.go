package pipe

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// A Packet is a datagram as an observer in the public network sees it, with the addresses that it has outside of NATs. A Packet
// may be copied, but Data is valid only for a limited time.
type Packet struct {
	From, To netip.AddrPort // source and destination
	Data     []byte         // without UDP and IP headers; valid until the Tap or Filter returns
	Type     MessageType    // the result of TypeOf(Data)
	TOS      uint8          // IPv4 type of service or IPv6 traffic class: DSCP and ECN

	Sender   *End // the end that sent it; nil for a datagram from Inject
	Receiver *End // the end that it was delivered to; nil if it was not delivered, and in a Filter

	Sent time.Time // when it was sent
	Time time.Time // when Fate was decided; zero in a Filter
	Fate Fate      // what happened to it; without meaning in a Filter

	// Delay is added to the delays of the datagram's path. A Filter may set it.
	Delay time.Duration
}

// A Verdict is the decision of a filter about a datagram.
type Verdict uint8

// These are the verdicts of a filter.
const (
	Pass Verdict = iota // the datagram continues, with the changes that the filter made
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

// Filter adds a filter to the network: from then on, the network calls judge for each datagram that a socket sends, before the
// conditions of the datagram's path apply. judge may change the bytes of p.Data, assign another slice to p.Data, and set p.TOS and
// p.Delay. Other changes have no effect. If judge makes p.Data empty or longer than 65507 bytes, the datagram is dropped. Several
// filters are called in the order in which they were added, until one does not return Pass.
//
// Filters and taps are called one at a time, in the order of events, on the goroutines of senders and timers. They must not
// wait. They may use the network, but datagrams that they send or inject are processed only after they return. remove removes
// the filter, and may be called again. A call of judge may still run when remove returns.
func (n *Network) Filter(judge func(p *Packet) Verdict) (remove func()) {
	return add(n, &n.filters, &filter{judge})
}

// Tap makes the network call the function see once for each datagram, at the time when the datagram's fate is decided. This
// includes lost, duplicated and injected datagrams. There is one exception: datagrams that are sent while 64 MiB are under way
// are dropped with FateOverflow, and see is not called for them. The rules for judge and remove in the documentation of Filter
// also apply to see and remove here.
func (n *Network) Tap(see func(p Packet)) (remove func()) {
	return add(n, &n.taps, &tap{see})
}

// add appends v to a list of n, and remove removes v from it. Other goroutines read the list without locking n.mu, so add and
// remove replace the list and do not change it in place.
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

// filter calls the filters for f and applies their verdicts. The caller has the turn (see Network.turn), but does not hold n.mu.
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

// Release lets the datagrams that filters hold continue, in the order in which they were sent. No filter is called for them
// again.
func (n *Network) Release() {
	n.mu.Lock()
	n.inbox = append(n.inbox, n.held...)
	n.held = nil
	n.mu.Unlock()
	n.run()
}

// Inject delivers a forged or replayed datagram to its destination. Filters, conditions and cuts do not apply to it, but a NAT
// of the destination does. Inject copies data.
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
