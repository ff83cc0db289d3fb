package wireguard

import (
	"bytes"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// Who may send to a peer at the moment, and what the others do.

// TestTurn: who finds the turn taken leaves its packets, and the holder sends them before it gives the turn back, in
// order.
func TestTurn(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	sent := e.line.sent
	nested := false
	e.line.send = func(ts []Train) {
		for i := range ts {
			for at := 0; at < len(ts[i].Data); at += ts[i].Size {
				sent <- datagram{b: bytes.Clone(ts[i].Data[at:min(at+ts[i].Size, len(ts[i].Data))])}
			}
		}
		if !nested {
			nested = true
			e.send(t, r.numbered(2), r.numbered(3)) // another sender, while the first one's batch is at the socket
			select {
			case <-sent:
			default:
				t.Error("the first batch was not sent yet")
			}
			if p := e.peer(r); p.staged.n != 2 {
				t.Errorf("%d packets are left to the holder of the turn, want 2", p.staged.n)
			}
		}
	}
	e.send(t, r.numbered(0), r.numbered(1))
	for i := 1; i < 4; i++ { // packet 0 was taken above
		p, _, ok := packet.Unpad(r.open(t, e.line.next(t, "all are sent").b))
		if !ok || !bytes.Equal(p, r.numbered(i)) {
			t.Errorf("packet %d is another, or out of order", i)
		}
	}
	if p := e.peer(r); p.turn != nil || p.staged.n != 0 || p.current.counter != 4 {
		t.Errorf("the turn is %p, %d packets are staged, %d were numbered", p.turn, p.staged.n, p.current.counter)
	}
}

// TestAwaitTurnEnds: a source waits for the packets that it left to be sent, and not for what others go on leaving there.
func TestAwaitTurnEnds(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	p, b := e.peer(r), e.NewBatch()
	holder := new(lane)
	p.turn = holder
	for i := range 3 {
		b.Append(r.numbered(i))
	}
	e.Device.Send(b)
	waits := make(chan struct{})
	go func() { e.awaitTurn(b); close(waits) }()
	for i := range 3 {
		eventually(t, "it does not wait", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.turnFree != nil })
		select {
		case <-waits:
			t.Fatalf("it waited for %d packets of 3", i)
		case <-time.After(5 * time.Millisecond):
		}
		p.mu.Lock() // the holder sends one, while others leave two, and has the turn again before anyone looks
		e.unstage(p.popStaged())
		e.stage(p, r.numbered(0), maxStaged)
		e.stage(p, r.numbered(0), maxStaged)
		p.endTurn()
		p.turn = holder
		p.mu.Unlock()
	}
	select {
	case <-waits:
	case <-time.After(patience):
		t.Fatal("it waits for packets of others")
	}
}
