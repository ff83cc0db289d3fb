package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/crypto/blake2s"
)

var (
	_ wireguard.Bind    = (*Tenant)(nil)
	_ wireguard.Renewer = (*tenantSocket)(nil)
)

// share opens a Shared with n tenants, each of which has a socket. The Shared is closed when the test ends.
func share(t testing.TB, n int) (s *Shared, tenants []*Tenant, sockets []*tenantSocket) {
	t.Helper()
	s, err := (&Bind{Address: loopback(ipv4)}).Share(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for i := range n {
		tenant, err := s.Join(publicKey(i))
		if err != nil {
			t.Fatal(err)
		}
		socket, err := tenant.Listen(0)
		if err != nil {
			t.Fatal(err)
		}
		tenants, sockets = append(tenants, tenant), append(sockets, socket.(*tenantSocket))
	}
	return s, tenants, sockets
}

// publicKey returns a public key for tenant i. It need not be a point of the curve, because no test computes a shared secret
// with it.
func publicKey(i int) (k wireguard.PublicKey) {
	binary.BigEndian.PutUint32(k[28:], uint32(i)+1)
	return k
}

// messageFor makes a message of the given type and size. Its receiver index begins with the prefix of t.
func (t *Tenant) messageFor(kind, size int) []byte {
	m := numbered(int(t.seat), size)
	binary.LittleEndian.PutUint32(m, uint32(kind))
	at := 4
	if kind == typeResponse {
		at = 8
	}
	binary.LittleEndian.PutUint32(m[at:], uint32(t.seat)<<(32-tenantBits)|0x1234)
	return m
}

// initiationFor makes an initiation with a valid mac1 for the key.
func initiationFor(key wireguard.PublicKey) []byte {
	m := numbered(7, initiationSize)
	binary.LittleEndian.PutUint32(m, typeInitiation)
	k := blake2s.Sum256(append([]byte("mac1----"), key[:]...))
	h, _ := blake2s.New128(k[:])
	h.Write(m[:116])
	h.Sum(m[:116])
	return m
}

var somewhere = wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.1:1"))

// wantTrains checks that exactly these trains are in the mailbox of s.
func wantTrains(t *testing.T, s *tenantSocket, want ...wireguard.Train) {
	t.Helper()
	if waiting := len(s.box.parcels); waiting != len(want) {
		t.Fatalf("%d trains are in the mailbox of tenant %d, want %d", waiting, s.tenant.seat, len(want))
	}
	if len(want) == 0 {
		return
	}
	got, err := s.Receive()
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range want {
		if g := got[i]; !bytes.Equal(g.Data, w.Data) || g.Size != w.Size && g.Len() > 1 || g.Endpoint != w.Endpoint || g.TOS != w.TOS {
			t.Errorf("train %d of tenant %d: %+v, want %+v", i, s.tenant.seat, g, w)
		}
	}
}

// TestSharedDispatch checks that each datagram of a train reaches the tenant to which its index belongs, that consecutive
// datagrams for one tenant stay in one train, and that dispatch has copied the data when it returns.
func TestSharedDispatch(t *testing.T) {
	s, tenants, sockets := share(t, 3)
	a, b, c := tenants[0], tenants[1], tenants[2]
	nobody := (&Tenant{seat: 9}).messageFor(typeData, 64)
	data := bytes.Join([][]byte{
		a.messageFor(typeData, 64), a.messageFor(typeCookie, 64), b.messageFor(typeData, 64), nobody,
		b.messageFor(typeData, 64), make([]byte, 64), c.messageFor(typeData, 48),
	}, nil)
	train := wireguard.Train{Data: data, Size: 64, Endpoint: somewhere, TOS: 3}
	part := func(from, to int) wireguard.Train {
		return wireguard.Train{Data: bytes.Clone(data[from:to]), Size: 64, Endpoint: somewhere, TOS: 3}
	}
	want := [][]wireguard.Train{{part(0, 128)}, {part(128, 192), part(256, 320)}, {part(384, 432)}}
	s.dispatch(&train)
	clear(data)
	for i := range sockets {
		wantTrains(t, sockets[i], want[i]...)
	}
	if n := s.Stats().Unknown; n != 2 {
		t.Errorf("%d datagrams counted as unknown, want 2", n)
	}
	response := wireguard.Train{Data: b.messageFor(typeResponse, responseSize), Size: responseSize, Endpoint: somewhere}
	s.dispatch(&response)
	wantTrains(t, sockets[1], response)
	short := wireguard.Train{Data: b.messageFor(typeResponse, responseSize-1), Size: responseSize, Endpoint: somewhere}
	s.dispatch(&short)
	wantTrains(t, sockets[1])
}

// TestSharedInitiation checks that the Shared tries an initiation from an unknown address with all keys until it finds the
// tenant. After the tenant has answered, the address is known, and an initiation from this address reaches the tenant without
// being queued.
func TestSharedInitiation(t *testing.T) {
	s, tenants, sockets := share(t, 50)
	initiation := wireguard.Train{Data: initiationFor(publicKey(33)), Size: initiationSize, Endpoint: somewhere, TOS: 0x88}
	s.dispatch(&initiation)
	if _, err := sockets[33].Receive(); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Tried != 1 || st.Unclaimed != 0 {
		t.Errorf("%+v, want one initiation tried and none unclaimed", st)
	}
	answer := numbered(1, responseSize)
	binary.LittleEndian.PutUint32(answer, typeResponse)
	binary.LittleEndian.PutUint32(answer[4:], uint32(33)<<(32-tenantBits))
	sockets[33].Send([]wireguard.Train{{Data: answer, Size: responseSize, Endpoint: somewhere}})
	s.dispatch(&initiation)
	wantTrains(t, sockets[33], initiation)
	if st := s.Stats(); st.Tried != 1 {
		t.Errorf("%+v: an initiation from a known address was tried with all keys", st)
	}
	// The address is not known for another tenant.
	other := wireguard.Train{Data: initiationFor(publicKey(7)), Size: initiationSize, Endpoint: somewhere}
	s.dispatch(&other)
	if _, err := sockets[7].Receive(); err != nil {
		t.Fatal(err)
	}
	// An initiation for a tenant that has left fits no key.
	tenants[33].Leave()
	s.dispatch(&initiation)
	deadline := time.Now().Add(20 * time.Second)
	for s.Stats().Unclaimed == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%+v: after 20 s, the initiation for a tenant that left is not counted as unclaimed", s.Stats())
		}
		time.Sleep(time.Millisecond)
	}
}

// TestMailboxBounds checks that a device that does not call Receive fills only its own mailbox: other devices still receive
// datagrams. When the limit of all mailboxes together is reached, each mailbox can still hold one train.
func TestMailboxBounds(t *testing.T) {
	s, tenants, sockets := share(t, 3)
	slow, quick := tenants[0], tenants[1]
	size := 0
	for s.Stats().Overflow == 0 {
		s.dispatch(&wireguard.Train{Data: slow.messageFor(typeData, 1200), Size: 1200, Endpoint: somewhere})
		if size += 2 << 10; size > 2*maxMailbox {
			t.Fatal("a mailbox holds more than its limit")
		}
	}
	if got := sockets[0].box.bytes; got > maxMailbox {
		t.Errorf("%d bytes are in the mailbox of the slow device, want at most %d", got, maxMailbox)
	}
	s.dispatch(&wireguard.Train{Data: quick.messageFor(typeData, 1200), Size: 1200, Endpoint: somewhere})
	wantTrains(t, sockets[1], wireguard.Train{Data: quick.messageFor(typeData, 1200), Size: 1200, Endpoint: somewhere})

	s.held.Add(maxMailboxes) // as if other mailboxes held this much
	before := s.Stats().Overflow
	whole := wireguard.Train{Data: bytes.Repeat(tenants[2].messageFor(typeData, 1000), 60), Size: 1000, Endpoint: somewhere}
	s.dispatch(&whole)
	if s.Stats().Overflow != before {
		t.Error("an empty mailbox refused a train while the mailboxes together are full")
	}
	s.dispatch(&whole)
	if got := s.Stats().Overflow - before; got != 60 {
		t.Errorf("%d datagrams of the second train were dropped, want all 60", got)
	}
	wantTrains(t, sockets[2], whole)
	s.held.Add(-maxMailboxes)

	for i := range sockets {
		sockets[i].Close()
		sockets[i].Receive()
	}
	if n := s.held.Load(); n != 0 {
		t.Errorf("mailboxes hold %d bytes after all sockets were closed, want 0", n)
	}
}

// TestTenantRenew checks that no datagram is lost when a device replaces its socket. The old socket returns the datagrams in
// its mailbox and then ends. The new socket receives all later datagrams.
func TestTenantRenew(t *testing.T) {
	s, tenants, sockets := share(t, 1)
	post := func(n int) wireguard.Train {
		m := tenants[0].messageFor(typeData, 100)
		m[99] = byte(n)
		tr := wireguard.Train{Data: m, Size: 100, Endpoint: somewhere}
		s.dispatch(&tr)
		return tr
	}
	first := post(1)
	n, err := sockets[0].Renew()
	if err != nil {
		t.Fatal(err)
	}
	second := post(2)
	sockets[0].Retire()
	wantTrains(t, sockets[0], first)
	if _, err := sockets[0].Receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive on a retired socket that is empty: error %v, want net.ErrClosed", err)
	}
	wantTrains(t, n.(*tenantSocket), second)
	// If post finds the old socket, which accepts nothing any more, it tries again with the socket that tenant.open holds by
	// then.
	tenants[0].open.Store(sockets[0])
	go tenants[0].open.Store(n.(*tenantSocket))
	for third := post(3); ; third = post(3) {
		if s.Stats().Overflow == 0 {
			wantTrains(t, n.(*tenantSocket), third)
			break
		}
		s.counts.overflow.Store(0) // the goroutine above had not stored the new socket yet
	}
	sockets[0].Close() // this does not affect the new socket
	wantTrains(t, n.(*tenantSocket), post(4))
	n.Close()
	n.Close()
	if ts := []wireguard.Train{{Data: make([]byte, 32), Size: 32, Endpoint: somewhere}}; true {
		if n.Send(ts); !errors.Is(ts[0].Err, net.ErrClosed) {
			t.Errorf("Send on a closed socket: error %v, want net.ErrClosed", ts[0].Err)
		}
	}
}

func TestTenantErrors(t *testing.T) {
	s, tenants, sockets := share(t, 3)
	wants := func(what string, err error, part string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: error %v, want one that contains %q", what, err, part)
		}
	}
	_, err := tenants[0].Listen(s.Port() ^ 1)
	wants("Listen on another port", err, "cannot listen on port")
	if again, err := tenants[0].Listen(s.Port()); err != nil {
		t.Errorf("Listen on the port number of the Shared: %v", err)
	} else {
		again.Close()
	}
	_, err = s.Join(publicKey(1))
	wants("Join with the key of another tenant", err, "another tenant")
	wants("SetKey with the key of another tenant", tenants[0].SetKey(publicKey(1)), "another tenant")
	if err := tenants[0].SetKey(wireguard.PublicKey{}); err != nil {
		t.Errorf("SetKey with the zero key: %v", err)
	}
	wrong := numbered(1, initiationSize)
	binary.LittleEndian.PutUint32(wrong, typeInitiation)
	binary.LittleEndian.PutUint32(wrong[4:], 1<<31)
	to := wireguard.EndpointOf(netip.AddrPortFrom(loopback(ipv4), s.Port()))
	ts := []wireguard.Train{trainOf(1, 40, 40, to), {Data: wrong, Size: initiationSize, Endpoint: to}, trainOf(1, 40, 40, to)}
	sockets[1].Send(ts)
	wants("initiation of a device without the index prefix", ts[1].Err, "Config.IndexPrefix")
	if ts[0].Err != nil || ts[2].Err != nil || s.Stats().Socket.SentDatagrams != 2 {
		t.Errorf("trains before and after the refused one: errors %v and %v, %d datagrams sent; want no error and 2 sent", ts[0].Err, ts[2].Err, s.Stats().Socket.SentDatagrams)
	}
	tenants[1].Leave()
	tenants[1].Leave()
	_, err = tenants[1].Listen(0)
	wants("Listen of a tenant that left", err, "has left")
	wants("SetKey of a tenant that left", tenants[1].SetKey(publicKey(9)), "has left")
	if next, err := s.Join(publicKey(1)); err != nil || next.IndexPrefix() != tenants[1].IndexPrefix() {
		t.Errorf("Join did not reuse the index prefix and the key of a tenant that left: error %v", err)
	}
	for i := 3; i < maxTenants; i++ {
		if _, err := s.Join(wireguard.PublicKey{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.Join(publicKey(maxTenants))
	wants("too many tenants", err, "16384 tenants")
	if st := s.Stats(); st.Tenants != maxTenants {
		t.Errorf("%d tenants, want %d", st.Tenants, maxTenants)
	}
	s.Close()
	_, err = s.Join(publicKey(3))
	wants("Join after Close", err, "closed")
	wants("Wake after Close", s.Wake(), "closed")
	if _, err := sockets[2].Receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive of a tenant after Close of the Shared: error %v, want net.ErrClosed", err)
	}
	s.Close()
}

// TestKnownSourcesBound checks that the last 8 tenants that have sent handshake messages to a source are stored, the latest
// first. It also checks that the number of sources is limited, and that sources in use are not removed.
func TestKnownSourcesBound(t *testing.T) {
	var k knownSources
	here := sourceOf(netip.MustParseAddr("2001:db8::1"))
	if here != sourceOf(netip.MustParseAddr("2001:db8::ffff:1%eth0")) {
		t.Error("two addresses in one /64 network count as two sources, want one")
	}
	for seat := range uint16(10) {
		k.learn(here, seat)
	}
	k.learn(here, 5)
	want := []uint16{5, 9, 8, 7, 6, 4, 3, 2}
	got := k.of(here)
	for i, seat := range want {
		if int(got.n) != len(want) || got.seats[i] != seat {
			t.Fatalf("the source is known to the tenants %v, want %v", got.seats[:got.n], want)
		}
	}
	for i := range uint32(2*maxKnown + 1000) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], i)
		k.learn(netip.AddrFrom4(a), 1)
		if i%1000 == 0 {
			k.learn(here, uint16(i/1000%2))
		}
		if len(k.now) > maxKnown || len(k.old) > maxKnown {
			t.Fatalf("the maps hold %d and %d sources, want at most %d each", len(k.now), len(k.old), maxKnown)
		}
	}
	if got := k.of(here); got.n == 0 {
		t.Error("a source in use was forgotten")
	}
}

// TestStrangersBound checks that the queue limits the number of initiations in all and the number of initiations from one
// address.
func TestStrangersBound(t *testing.T) {
	var q strangers
	q.working = true // the worker never runs
	s := &Shared{}
	m := make([]byte, initiationSize)
	train := wireguard.Train{Data: m, Size: len(m), Endpoint: somewhere}
	taken := 0
	for i := range 2 * maxStrangers {
		a := netip.AddrFrom4([4]byte{byte(i % 15), 0, 0, 1})
		if q.push(s, a, m, &train) {
			taken++
		}
	}
	if taken != 15*maxOfOneSource {
		t.Errorf("the queue accepted %d initiations from 15 addresses, want %d per address", taken, maxOfOneSource)
	}
	for i := range 2 * maxStrangers {
		q.push(s, netip.AddrFrom4([4]byte{100, 0, byte(i >> 8), byte(i)}), m, &train)
	}
	if len(q.queue) != maxStrangers {
		t.Errorf("%d initiations are in the queue, want %d", len(q.queue), maxStrangers)
	}
	for range maxStrangers {
		if q.pop() == nil {
			t.Fatal("pop found the queue empty before all initiations were taken")
		}
	}
	if q.pop() != nil || q.waiting != nil || q.working {
		t.Error("the empty queue still has its memory or its worker")
	}
	q.close()
	if q.push(s, netip.Addr{}, m, &train) {
		t.Error("a closed queue accepted an initiation")
	}
}

func TestSharedNothingAllocated(t *testing.T) {
	if testkit.Race {
		t.Skip("under the race detector, sync.Pool drops objects at random")
	}
	s, tenants, sockets := share(t, 2)
	train := wireguard.Train{Data: bytes.Repeat(tenants[0].messageFor(typeData, 1000), 10), Size: 1000, Endpoint: somewhere}
	binary.LittleEndian.PutUint32(train.Data[5004:], uint32(1)<<(32-tenantBits))
	if n := testing.AllocsPerRun(1000, func() {
		s.dispatch(&train)
		for i := range sockets {
			if _, err := sockets[i].Receive(); err != nil {
				t.Fatal(err)
			}
		}
	}); n > 2 { // each of the two empty mailboxes has to allocate a list of parcels
		t.Errorf("%v allocations per train, want at most 2", n)
	}
}

// FuzzSharedDispatch checks that each datagram of an arbitrary train is either posted to the tenant to which its index belongs,
// or counted as unknown, overflowed or refused.
func FuzzSharedDispatch(f *testing.F) {
	s, tenants, sockets := share(f, 4)
	f.Add(bytes.Join([][]byte{tenants[0].messageFor(typeData, 40), tenants[3].messageFor(typeData, 40)}, nil), uint16(40))
	f.Add(initiationFor(publicKey(2)), uint16(initiationSize))
	f.Add(tenants[2].messageFor(typeResponse, responseSize), uint16(0))
	f.Add([]byte{}, uint16(1))
	s.strangers.closed = true // so that each initiation is counted as refused at once
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		if len(data) > slotSize {
			return
		}
		before := s.Stats()
		train := wireguard.Train{Data: data, Size: int(size), Endpoint: somewhere}
		s.dispatch(&train)
		after := s.Stats()
		n := int(after.Unknown - before.Unknown + after.Overflow - before.Overflow + after.Refused - before.Refused)
		for i, socket := range sockets {
			for len(socket.box.parcels) > 0 {
				ts, _ := socket.Receive()
				for _, got := range ts {
					n += got.Len()
					for m := range got.Datagrams() {
						at := 4
						if m[0] == typeResponse {
							at = 8
						}
						if index := binary.LittleEndian.Uint32(m[at:]); index>>(32-tenantBits) != uint32(i) {
							t.Errorf("tenant %d received a message with the index %#x, which belongs to another tenant", i, index)
						}
					}
				}
			}
		}
		if n != train.Len() {
			t.Errorf("%d of %d datagrams were posted or counted, want all", n, train.Len())
		}
	})
}
