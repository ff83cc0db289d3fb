package proxy

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/internal/sockets"
)

// flows is the table of the flows on one UDP socket of a Forward.
//
//	clients ── UDP ──▶ socket ─ one flow per client's address ─▶ a connection each ── UDP ──▶ target
type flows struct {
	server *Server
	target string
	socket sockets.Datagrams

	mu       sync.Mutex // guards the rest
	byClient map[netip.AddrPort]*flow
	clients  map[netip.Prefix]int // how many flows each client has
	order    *list.List           // of *flow, by the time of the client's last datagram; the oldest is first
}

// A flow carries the datagrams between one client address (IP address and port) and the target.
type flow struct {
	*session
	from   netip.AddrPort
	place  *list.Element
	cancel context.CancelFunc // ends the dial

	sending sync.Mutex // locked during a send; guards the fields below
	conn    net.Conn   // nil until the dial has succeeded
	waiting [][]byte   // copies of the datagrams that wait for the dial
	held    int        // bytes of the datagrams in the field waiting
}

// While a flow waits for its dial, it keeps at most this many datagrams and bytes, and drops further datagrams.
const (
	maxWaiting = 16       // datagrams
	maxHeld    = 64 << 10 // bytes
)

func (p Forward) servePackets(s *Server, c net.PacketConn) error {
	t := &flows{server: s, target: p.Target, socket: sockets.DatagramsOf(c), byClient: make(map[netip.AddrPort]*flow),
		clients: make(map[netip.Prefix]int), order: list.New()}
	defer t.close()
	return each(t.socket, sockets.Waiter(t.socket), t.take)
}

// take handles a client's datagram. It never waits for a dial.
func (t *flows) take(b []byte, from netip.AddrPort) {
	f := t.find(from)
	if f == nil {
		return
	}
	f.sending.Lock()
	defer f.sending.Unlock()
	switch {
	case f.conn != nil:
		f.send(b)
	case len(f.waiting) < maxWaiting && f.held+len(b) <= maxHeld:
		f.waiting, f.held = append(f.waiting, bytes.Clone(b)), f.held+len(b)
	}
}

// send sends a client's datagram to the target. The flow continues after an error, because a connected socket reports an ICMP
// error about an earlier datagram as the error of this send. The caller holds f.sending.
func (f *flow) send(b []byte) {
	f.moved.Add(1) // b may be empty
	if n, err := f.conn.Write(b); err == nil {
		f.sent.Add(int64(n))
	}
}

// find returns the flow of a client's address, and opens one if there is none. It returns nil if the server is closed.
func (t *flows) find(from netip.AddrPort) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.byClient[from]; f != nil {
		t.order.MoveToBack(f.place)
		return f
	}
	client := net.UDPAddrFromAddrPort(from)
	n := &session{server: t.server, client: clientOf(client), report: Report{Client: client, Target: t.target, Start: time.Now()}}
	f := &flow{session: n, from: from}
	if !t.server.register(n) {
		return nil
	}
	t.makeRoom(n.client)
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(t.server.context)
	f.place = t.order.PushBack(f)
	t.byClient[from] = f
	t.clients[n.client]++
	go t.run(ctx, f)
	return f
}

// makeRoom evicts a flow if one more flow would exceed a limit. If the client has reached MaxConnsPerClient, makeRoom evicts the
// client's flow whose last datagram is oldest. If only MaxConns is reached, it chooses among the flows of all clients. The caller
// holds mu.
func (t *flows) makeRoom(client netip.Prefix) {
	full, share := len(t.byClient) >= t.server.maxConns(), t.clients[client] >= t.server.maxConnsPerClient()
	if !full && !share {
		return
	}
	for e := t.order.Front(); e != nil; e = e.Next() {
		if f := e.Value.(*flow); !share || f.client == client {
			t.remove(f)
			f.cancel()
			f.fail(ErrLimit)
			return
		}
	}
}

// remove takes a flow out of the table, if the table contains it. The caller holds mu.
func (t *flows) remove(f *flow) {
	if t.byClient[f.from] != f {
		return
	}
	delete(t.byClient, f.from)
	t.order.Remove(f.place)
	if t.clients[f.client]--; t.clients[f.client] == 0 {
		delete(t.clients, f.client)
	}
}

// run dials the target, and sends the target's datagrams to the client until the flow ends.
func (t *flows) run(ctx context.Context, f *flow) {
	err := t.open(ctx, f)
	if err == nil {
		err = each(connected{f.conn}, sockets.Waiter(f.conn), func(b []byte, _ netip.AddrPort) {
			f.moved.Add(1)
			if _, err := t.socket.WriteToUDPAddrPort(b, f.from); err == nil {
				f.received.Add(int64(len(b)))
			}
		})
	}
	f.cancel()
	t.mu.Lock()
	t.remove(f)
	t.mu.Unlock()
	f.end(err)
}

// open dials the target, and then sends the datagrams that waited for the dial.
func (t *flows) open(ctx context.Context, f *flow) error {
	c, err := t.server.dial(ctx, "udp", t.target)
	if err != nil {
		return fmt.Errorf("proxy: dial %s: %w", t.target, err)
	}
	f.own(c)
	f.watch(t.server.idleUDP())
	f.sending.Lock()
	defer f.sending.Unlock()
	f.conn = c
	for _, b := range f.waiting {
		f.send(b)
	}
	f.waiting = nil
	return nil
}

// close ends all flows.
func (t *flows) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.byClient {
		f.cancel()
		f.fail(errClosed)
	}
}

// connected turns a dialed UDP connection into a datagramReader.
type connected struct{ net.Conn }

func (c connected) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, err := c.Read(b)
	return n, netip.AddrPort{}, err
}
