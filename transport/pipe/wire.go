package pipe

import (
	"container/heap"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard"
)

const (
	maxWeight    = 64 << 20 // limit for the memory of all flights without a fate, in bytes
	flightWeight = 256      // bytes of memory that a flight is assumed to take in addition to its data
	spareFlights = 256      // maximum number of free flights that a network keeps
	spareMemory  = 2 << 10  // maximum size of the memory that a free flight keeps, in bytes
)

// A stage determines what move does next with a flight.
type stage uint8

const (
	stageFilter    stage = iota // the flight was just sent; next, the filters judge it
	stageLaunch                 // Network.Release has released the flight; next, the conditions apply
	stageArrive                 // it is on its way; at its time of arrival, it is delivered
	stageOverflown              // it is a duplicate that did not fit into the queue for Conditions.Rate
	stageBlocked                // the sender's NAT did not let it pass
)

// A flight is one datagram under way. While the flight is in a list of the network, n.mu guards it. At other times, only the
// goroutine that has the turn (see Network.turn) uses it.
type flight struct {
	Packet
	memory []byte // memory that is used again for other flights; Data is normally a part of it
	scope  *NAT   // set if sender and destination are behind the same NAT; nil means that the flight passes the public network
	stage  stage
	weight int

	due    time.Time
	number uint64
}

// size returns the size of the datagram's IP packet, in bytes.
func (f *flight) size() int { return len(f.Data) + headers(f.To.Addr()) }

func headers(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// flights is a heap for package heap. Its first element is the flight that is due first. Flights with equal times keep the order
// in which they were pushed.
type flights []*flight

func (h flights) Len() int { return len(h) }
func (h flights) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].number < h[j].number
}
func (h flights) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *flights) Push(f any)   { *h = append(*h, f.(*flight)) }
func (h *flights) Pop() any {
	last := len(*h) - 1
	f := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return f
}

// sendEach sends the datagrams of t as separate flights.
func (n *Network) sendEach(s *socket, t *wireguard.Train) error {
	n.mu.Lock()
	from, err := s.source(&t.Endpoint)
	if err != nil {
		n.mu.Unlock()
		return err
	}
	now := time.Now()
	for data := t.Data; len(data) > 0; {
		one := data[:min(t.Size, len(data))]
		data = data[len(one):]
		counts := countTrain(one, len(one))
		if n.weight > maxWeight {
			s.end.sent.add(&counts)
			n.sent.add(&counts)
			n.fates[FateOverflow].Add(1)
			continue
		}
		f := n.newFlight(one)
		f.From, f.To, f.TOS, f.Sender, f.Sent = from, t.Endpoint.Addr, t.TOS, s.end, now
		if !n.translate(f, s.end.behind, now) {
			f.stage = stageBlocked
		} else if n.refuses(f) {
			err = errTooBig
			n.land(f)
			n.keep(f)
			continue
		}
		s.end.sent.add(&counts)
		n.sent.add(&counts)
		n.inbox = append(n.inbox, f)
	}
	n.mu.Unlock()
	n.run()
	return err
}

func (n *Network) refuses(f *flight) bool {
	c := n.conditionsOf(pair{f.Sender, n.peek(f)})
	return c.RefuseTooBig && c.MTU > 0 && f.size() > c.MTU
}

// newFlight makes a flight with a copy of data. The caller holds n.mu.
func (n *Network) newFlight(data []byte) *flight {
	f := new(flight)
	if last := len(n.spare) - 1; last >= 0 {
		f, n.spare = n.spare[last], n.spare[:last]
	}
	f.memory = append(f.memory[:0], data...)
	f.Data = f.memory
	f.Type = TypeOf(data)
	f.weight = len(data) + flightWeight
	n.weight += f.weight
	n.flying++
	return f
}

// land subtracts f from the totals of flights without a fate. keep puts f, which nothing refers to any more, into n.spare, from
// which newFlight takes it. If n.spare is full, f is left to the garbage collector. The caller of either holds n.mu.
func (n *Network) land(f *flight) {
	n.weight -= f.weight
	n.flying--
}

func (n *Network) keep(f *flight) {
	memory := f.memory
	if cap(memory) > spareMemory {
		memory = nil
	}
	*f = flight{memory: memory}
	if len(n.spare) < spareFlights {
		n.spare = append(n.spare, f)
	}
}

// fly makes f arrive at the time at, which may be now. The caller holds n.mu.
func (n *Network) fly(f *flight, at time.Time) {
	n.number++
	f.stage, f.due, f.number = stageArrive, at, n.number
	heap.Push(&n.underWay, f)
}

// run processes, in order, all flights that do not have to wait for their arrival. If another goroutine has the turn (see
// Network.turn), that goroutine processes them instead.
func (n *Network) run() {
	n.mu.Lock()
	if n.turn {
		n.mu.Unlock() // the goroutine that has the turn checks inbox again before it clears turn
		return
	}
	n.turn = true
	done := false
	defer func() {
		if !done { // a filter or tap panicked, or ended this goroutine as testing.T.FailNow does
			n.mu.Lock()
			n.turn = false
			n.mu.Unlock()
		}
	}()
	for f := n.next(); f != nil; f = n.next() {
		n.mu.Unlock()
		n.move(f)
		n.mu.Lock()
	}
	n.turn, done = false, true
	n.arm()
	n.mu.Unlock()
}

// next returns the next flight to process, or nil if all flights must wait. The caller holds n.mu.
func (n *Network) next() (f *flight) {
	switch {
	case len(n.underWay) > 0 && !n.underWay[0].due.After(time.Now()):
		return heap.Pop(&n.underWay).(*flight)
	case len(n.inbox) > 0:
		f, n.inbox[0] = n.inbox[0], nil
		if n.inbox = n.inbox[1:]; len(n.inbox) == 0 {
			n.inbox = nil
		}
		return f
	}
	return nil
}

// arm sets the timer to the time of the next arrival. The caller holds n.mu.
func (n *Network) arm() {
	if len(n.underWay) == 0 {
		return
	}
	wait := max(time.Until(n.underWay[0].due), 0)
	if n.timer == nil {
		n.timer = time.AfterFunc(wait, n.run)
	} else {
		n.timer.Reset(wait)
	}
}

// move processes f according to its stage. The caller has the turn, but does not hold n.mu.
func (n *Network) move(f *flight) {
	switch f.stage {
	case stageFilter:
		n.filter(f)
	case stageLaunch:
		n.pass(f)
	case stageArrive:
		n.arrive(f)
	case stageOverflown:
		n.finish(f, FateOverflow)
	case stageBlocked:
		n.finish(f, FateBlocked)
	}
}

// pass applies the conditions of f's path to f.
func (n *Network) pass(f *flight) {
	n.mu.Lock()
	fate, gone := n.launch(f)
	n.mu.Unlock()
	if gone {
		n.finish(f, fate)
	}
}

// arrive delivers f to the socket that has f's destination address now.
func (n *Network) arrive(f *flight) {
	n.mu.Lock()
	to, at, blocked := n.route(f, time.Now())
	cut := to != nil && f.Sender != nil && n.isCut(pair{f.Sender, to.end})
	n.mu.Unlock()
	switch {
	case blocked:
		n.finish(f, FateBlocked)
	case to == nil:
		n.finish(f, FateNoSocket)
	case cut:
		n.finish(f, FateCut)
	default:
		n.deliver(f, to, at)
	}
}

func (n *Network) deliver(f *flight, to *socket, at netip.AddrPort) {
	t := wireguard.Train{
		Data:     f.Data,
		Size:     len(f.Data),
		Endpoint: wireguard.Endpoint{Addr: f.From, Source: at.Addr()},
		TOS:      f.TOS,
	}
	put, open := to.queue.put(&t, nil)
	switch {
	case put > 0:
		f.Receiver = to.end
		counts := countTrain(f.Data, len(f.Data))
		to.end.received.add(&counts)
		n.finish(f, FateDelivered)
	case open:
		n.finish(f, FateQueueFull)
	default:
		n.finish(f, FateNoSocket)
	}
}

// finish counts the fate of f, calls the taps, and makes f free for another datagram.
func (n *Network) finish(f *flight, fate Fate) {
	n.mu.Lock()
	n.fates[fate].Add(1)
	n.land(f)
	if taps := n.taps; len(taps) > 0 {
		f.Fate, f.Time = fate, time.Now()
		n.mu.Unlock()
		for _, t := range taps {
			t.see(f.Packet)
		}
		n.mu.Lock()
	}
	n.keep(f)
	n.mu.Unlock()
}
