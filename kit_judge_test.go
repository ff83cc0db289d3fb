package wireguard_test

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// A judge checks what the devices of a simulation do. The simulation tells it about every packet that it gives to a device, every
// message that a device sends, and every packet that a device delivers. The judge decrypts every data message with the keys of
// the responder of its session. So it knows from which message, session and device each delivered packet came:
//
//	handed ─▶ parcel ─▶ data, on the wire ─▶ exchange: its ends, keys and birth on each end's clock ─▶ delivered
type judge struct {
	orderly bool // the network does not reorder messages

	mu       sync.Mutex // guards all fields below
	wrong    []string
	parcels  map[uint64]*parcel
	calls    map[uint32]*life       // the device that sent an initiation, by the initiation's sender index
	sessions map[uint32][]*exchange // each session is in the map twice: by the index of its initiator and by that of its responder
	counters map[counterOf]uint64   // for each counter of a session, the hash of the message that used it
	sealed   map[lane]uint64        // for each lane, the id of the newest parcel that was sent
	arrived  map[lane]uint64        // for each lane, the id of the newest parcel that was delivered
	tables   []sources              // for each node, the addresses from which its peers may send
	fresh    map[[2]int]bool        // whether a parcel with an id of at least mark was delivered, by sender and receiver
	mark     uint64
}

// A life is a Device of a node of the simulation. When a node restarts, it gets a new Device, which is another life.
type life struct {
	node   int
	name   string
	number int
}

func (l *life) String() string {
	if l == nil {
		return "nobody"
	}
	return fmt.Sprintf("%s#%d", l.name, l.number)
}

// A parcel is a packet that the simulation gave to a device.
type parcel struct {
	from      *life
	to        int // the node to which the destination address belongs
	stream    int // the number of its stream; the parcels of one stream were given to the device one after the other
	packet    []byte
	message   *exchange // the session in which the parcel was sent, or nil if it was not sent
	delivered bool
}

// An exchange is the judge's record of a session.
type exchange struct {
	initiator, responder   *life
	toInitiator            uint32 // index of the session at the initiator
	toResponder            uint32
	bornAtInitiator        time.Duration // when the response arrived, on the initiator's clock; negative before that
	bornAtResponder        time.Duration
	used                   bool // whether the initiator has sent data in the session
	fromResponder, forResp cipher.AEAD
}

type counterOf struct {
	from    *life
	index   uint32
	counter uint64
}

// A lane is a sequence of parcels that must keep their order. The judge uses lanes as keys of maps.
type lane struct {
	from   *life
	to     int
	stream int
}

// sources are the allowed IPs of a node. The map now has the allowed IPs after the last change. While a change is being made, the
// map before has those from before the change; otherwise it is nil.
type sources struct{ now, before map[netip.Prefix]int }

// keyLife is the time after which a session must not be used (REJECT_AFTER_TIME).
const keyLife = 180 * time.Second

var messageSeed = maphash.MakeSeed()

func newJudge(nodes int, orderly bool) *judge {
	return &judge{
		orderly: orderly, parcels: make(map[uint64]*parcel), calls: make(map[uint32]*life),
		sessions: make(map[uint32][]*exchange), counters: make(map[counterOf]uint64), sealed: make(map[lane]uint64),
		arrived: make(map[lane]uint64), tables: make([]sources, nodes), fresh: make(map[[2]int]bool),
	}
}

func (j *judge) lock() func() { j.mu.Lock(); return j.mu.Unlock }

// say records a fault. The caller must hold mu.
func (j *judge) say(format string, args ...any) {
	if len(j.wrong) < 10 {
		j.wrong = append(j.wrong, fmt.Sprintf(format, args...))
	}
}

func (j *judge) verdict() []string { defer j.lock()(); return j.wrong }

// handed records that the simulation is about to give a packet to a device.
func (j *judge) handed(id uint64, p *parcel) { defer j.lock()(); j.parcels[id] = p }

// initiation records that a device (from) sent an initiation.
func (j *judge) initiation(from *life, sender uint32) { defer j.lock()(); j.calls[sender] = from }

// response records that a device (from) sent a response, at the time now of its clock. The parameters send and receive are the
// ciphers with which this device sends and receives in the new session.
func (j *judge) response(from *life, sender, receiver uint32, now time.Duration, send, receive cipher.AEAD) {
	defer j.lock()()
	if send == nil {
		j.say("%v sent a response with sender index %08x, but has no session with this index", from, sender)
		return
	}
	e := &exchange{
		initiator: j.calls[receiver], responder: from, toInitiator: receiver, toResponder: sender,
		bornAtInitiator: -1, bornAtResponder: now, fromResponder: send, forResp: receive,
	}
	j.sessions[sender] = append(j.sessions[sender], e)
	j.sessions[receiver] = append(j.sessions[receiver], e)
}

// answered records that a response arrived at a device (to), at the time now of its clock. The response has the indices sender
// and receiver. If several copies of the response arrive before the session is used, the device may have accepted any of them. So
// the judge records the time of the last copy.
func (j *judge) answered(to *life, sender, receiver uint32, now time.Duration) {
	defer j.lock()()
	for _, e := range j.sessions[receiver] {
		if e.initiator == to && e.toInitiator == receiver && e.toResponder == sender && !e.used {
			e.bornAtInitiator = now
		}
	}
}

// data records that a device (from) sent the data message m, at the time now of its clock.
func (j *judge) data(from *life, m []byte, now time.Duration) {
	defer j.lock()()
	index, counter := binary.LittleEndian.Uint32(m[4:]), binary.LittleEndian.Uint64(m[8:])
	hash := maphash.Bytes(messageSeed, m)
	of := counterOf{from, index, counter}
	if old, ok := j.counters[of]; ok && old != hash {
		j.say("%v used counter %d in the session with index %08x for two messages", from, counter, index)
	}
	j.counters[of] = hash
	e, packet := j.open(from, index, m)
	if e == nil {
		j.say("%v sent a message to index %08x with counter %d, but no session of this device can decrypt it", from, index, counter)
		return
	}
	born := e.bornAtResponder
	if from == e.initiator {
		e.used = true
		if born = e.bornAtInitiator; born < 0 {
			j.say("%v sends in session %08x before it has received the response", from, index)
		}
	}
	if age := now - born; age >= keyLife {
		j.say("%v sends under a key that is %v old", from, age)
	}
	if len(packet) > 0 {
		j.seal(from, e, packet)
	}
}

// open finds the session of a data message, and decrypts the message. It returns nil if there is no such session.
func (j *judge) open(from *life, index uint32, m []byte) (*exchange, []byte) {
	var nonce [12]byte
	copy(nonce[4:], m[8:16])
	for _, e := range j.sessions[index] {
		c := e.forResp
		if from == e.responder && index == e.toInitiator {
			c = e.fromResponder
		} else if from != e.initiator || index != e.toResponder {
			continue
		}
		if packet, err := c.Open(nil, nonce[:], m[16:], nil); err == nil {
			return e, packet
		}
	}
	return nil, nil
}

// seal records that a device (from) sent a parcel in the session e. The parameter packet is the parcel's packet with its padding.
func (j *judge) seal(from *life, e *exchange, packet []byte) {
	id, p := j.find(packet)
	switch {
	case p == nil || p.from != from:
		j.say("%v sent a packet that the simulation did not give to it: %x", from, packet)
		return
	case p.message != nil && p.message != e:
		j.say("%v sent packet %d in two sessions", from, id)
	case !bytes.HasPrefix(packet, p.packet) || len(packet)-len(p.packet) > 15 || len(bytes.Trim(packet[len(p.packet):], "\x00")) > 0:
		j.say("%v sent packet %d altered, or with wrong padding", from, id)
	}
	p.message = e
	l := lane{from, e.other(from).node, p.stream}
	if last := j.sealed[l]; id <= last {
		j.say("%v sent packet %d to %v after %d, want increasing numbers", from, id, e.other(from), last)
	}
	j.sealed[l] = id
}

func (e *exchange) other(l *life) *life {
	if l == e.initiator {
		return e.responder
	}
	return e.initiator
}

// delivered records that a device (to) delivered a packet, at the time now of its clock.
func (j *judge) delivered(to *life, packet []byte, now time.Duration) {
	defer j.lock()()
	id, p := j.find(packet)
	switch {
	case p == nil:
		if !j.unreachable(to, packet) {
			j.say("%v delivered a packet that nobody sent: %x", to, packet)
		}
		return
	case p.delivered:
		j.say("%v delivered packet %d from %v twice", to, id, p.from)
		return
	case !bytes.Equal(packet, p.packet):
		j.say("%v delivered packet %d from %v altered", to, id, p.from)
	case p.message == nil:
		j.say("%v delivered packet %d from %v that was never on the wire", to, id, p.from)
		return
	}
	p.delivered = true
	e := p.message
	if e.other(p.from) != to {
		j.say("%v delivered packet %d from %v that was sealed for %v", to, id, p.from, e.other(p.from))
	}
	born := e.bornAtResponder
	if to == e.initiator {
		born = e.bornAtInitiator
	}
	if age := now - born; age >= keyLife {
		j.say("%v delivered packet %d from %v under a key that is %v old", to, id, p.from, age)
	}
	if src := source(packet); !j.tables[to.node].allow(src, p.from.node) {
		j.say("%v delivered packet %d from %v with source %v, which is not of its allowed IPs", to, id, p.from, src)
	}
	l := lane{p.from, to.node, p.stream}
	if last := j.arrived[l]; j.orderly && id <= last {
		j.say("%v delivered packet %d from %v after %d, although the network keeps the order", to, id, p.from, last)
	}
	j.arrived[l] = id
	if id >= j.mark && p.to == to.node {
		j.fresh[[2]int{p.from.node, to.node}] = true
	}
}

// find returns the parcel whose id is in the packet's payload.
func (j *judge) find(packet []byte) (id uint64, p *parcel) {
	at := payloadAt(packet)
	if at < 0 || len(packet) < at+8 {
		return 0, nil
	}
	id = binary.BigEndian.Uint64(packet[at:])
	return id, j.parcels[id]
}

// payloadAt returns the offset at which the payload of a UDP packet begins, or a negative number if the packet is not UDP.
func payloadAt(packet []byte) int {
	switch {
	case len(packet) >= 28 && packet[0]>>4 == 4 && packet[9] == 17:
		return 28
	case len(packet) >= 48 && packet[0]>>4 == 6 && packet[6] == 17:
		return 48
	}
	return -1
}

func source(packet []byte) netip.Addr {
	if packet[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(packet[12:]))
	}
	return netip.AddrFrom16([16]byte(packet[8:]))
}

// unreachable reports whether packet is an ICMP error about a packet that the simulation gave to the same device.
func (j *judge) unreachable(to *life, packet []byte) bool {
	quote := 28
	if packet[0]>>4 == 6 {
		quote = 48
	}
	if len(packet) < quote || quote == 28 && packet[9] != 1 || quote == 48 && packet[6] != 58 {
		return false
	}
	_, p := j.find(packet[quote:])
	return p != nil && p.from == to && bytes.HasPrefix(p.packet, packet[quote:])
}

// allow reports whether the longest prefix that contains the address a belongs to the node, in the map now or in the map before.
func (s *sources) allow(a netip.Addr, node int) bool {
	return longest(s.now, a) == node || s.before != nil && longest(s.before, a) == node
}

func longest(t map[netip.Prefix]int, a netip.Addr) int {
	best, node := -1, -1
	for p, n := range t {
		if p.Contains(a) && p.Bits() > best {
			best, node = p.Bits(), n
		}
	}
	return node
}

// changing changes the allowed IPs of a node: the function change makes the change in the judge's table, and the function do
// makes the same change in the device. Until do returns, the judge accepts packets that either the old or the new allowed IPs
// allow.
func (j *judge) changing(node int, change func(t map[netip.Prefix]int), do func()) {
	unlock := j.lock()
	s := &j.tables[node]
	s.before, s.now = s.now, maps.Clone(s.now)
	if s.now == nil {
		s.now = make(map[netip.Prefix]int)
	}
	change(s.now)
	unlock()
	do()
	defer j.lock()()
	s.before = nil
}

// await makes the judge record, from now on, which nodes deliver parcels with the given id or a larger one.
func (j *judge) await(id uint64) {
	defer j.lock()()
	j.mark = id
	clear(j.fresh)
}

func (j *judge) hasFresh(from, to int) bool { defer j.lock()(); return j.fresh[[2]int{from, to}] }

// lost counts the parcels with the given id or a larger one that were not delivered, and describes the first of them.
func (j *judge) lost(id uint64) (n uint64, what string) {
	defer j.lock()()
	first := uint64(0)
	for i, p := range j.parcels {
		if i >= id && !p.delivered {
			if n++; first == 0 || i < first {
				first = i
			}
		}
	}
	if n == 0 {
		return 0, ""
	}
	p := j.parcels[first]
	return n, fmt.Sprintf("%d packets were lost, the first from %v to %c: packet %d of %d bytes (the device sent it: %v)",
		n, p.from, 'a'+p.to, first, len(p.packet), p.message != nil)
}
