package wireguard

import (
	"errors"
	"net"
	"runtime"
	"testing"
	"time"
	"weak"
)

// atSink is an end with a receiver that is in the sink, on its first socket, and a Configure that waits for it.
func atSink(t *testing.T) (e *end, leave, configured chan struct{}) {
	r := newRemote(1, testKey(1).Public())
	e = up(t, testKey(1), r.config())
	e.connect(t, r)
	there := make(chan struct{})
	leave, configured = make(chan struct{}), make(chan struct{})
	e.tunnel.write = func(pkts [][]byte) int {
		close(there)
		<-leave
		return len(pkts)
	}
	go e.line.receive(r.train(r.data(packet4(100, r.addr, here))))
	<-there
	go func() {
		defer close(configured)
		port := uint16(41000)
		e.Configure(Change{ListenPort: &port})
	}()
	eventually(t, "the new socket is not opened", func() bool { return e.Status().ListenPort == 41000 })
	return e, leave, configured
}

// TestReceiversOfReplacedSocket: Down and Close wait for the receivers of the sockets before, too, which Configure waits
// for at the time; and Close for those that a Down of the same moment waits for.
func TestReceiversOfReplacedSocket(t *testing.T) {
	for name, ending := range map[string]func(e *end){
		"Down":            func(e *end) { e.Down() },
		"Close":           func(e *end) { e.Close() },
		"Close, Down too": func(e *end) { go e.Down(); eventually(t, "down", func() bool { return !e.Status().Up }); e.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			e, leave, configured := atSink(t)
			ended := make(chan struct{})
			go func() { ending(e); close(ended) }()
			eventually(t, "the device is not down", func() bool { return !e.Status().Up })
			select {
			case <-ended:
				t.Error("it returned while a receiver is in the sink")
			case <-configured:
				t.Error("Configure returned while a receiver is in the sink")
			case <-time.After(20 * time.Millisecond): // it would have returned by now
			}
			close(leave)
			<-ended
			<-configured
		})
	}
}

// TestSocketClosedByItself: a receiver that ends although the device did not close its socket is trouble to tell of; Wake
// mends it. One that the device closed is none.
func TestSocketClosedByItself(t *testing.T) {
	e := up(t, testKey(1))
	events, cancel := e.Subscribe(8)
	defer cancel()
	e.Wake()
	e.Down()
	e.Up()
	if len(events) != 0 {
		t.Fatalf("event %+v of sockets that the device closed", <-events)
	}
	e.line.socket.Close()
	select {
	case ev := <-events:
		if ev.Kind != EventBindTrouble || !errors.Is(ev.Err, net.ErrClosed) {
			t.Fatalf("event %+v", ev)
		}
	case <-time.After(patience):
		t.Fatal("a device that hears nothing any more says nothing")
	}
	if err := e.Wake(); err != nil {
		t.Fatal(err)
	}
	r := newRemote(1, testKey(1).Public())
	if err := e.AddPeer(r.config()); err != nil {
		t.Fatal(err)
	}
	e.connect(t, r)
}

// TestWakeKeepsPort: also where a closed socket has no port any more.
func TestWakeKeepsPort(t *testing.T) {
	e := newEnd(t, testKey(1))
	port := uint16(41000)
	if err := errors.Join(e.Configure(Change{ListenPort: &port}), e.Up()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := e.Wake(); err != nil || e.Status().ListenPort != port {
			t.Fatalf("port %d (%v), want %d", e.Status().ListenPort, err, port)
		}
	}
}

// TestSinkReturnsAnyNumber: what a sink did not take is counted, and nothing else, whatever it returns.
func TestSinkReturnsAnyNumber(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	for n, want := range map[int]uint64{-7: 3, -1: 3, 0: 3, 2: 1, 3: 0, 4: 0, 1 << 30: 0} {
		e.tunnel.write = func([][]byte) int { return n }
		before := e.drops.load()
		var ts []Train
		for range 3 {
			ts = append(ts, r.train(r.data(packet4(100, r.addr, here))))
		}
		e.line.receive(ts...)
		e.wantDrops(t, before, DropSinkFull, want, "a sink that returned any number")
	}
}

// TestIdleDeviceKeepsNoOldTable: neither a receiver that waits nor a batch that is used again keeps what is gone alive.
func TestIdleDeviceKeepsNoOldTable(t *testing.T) {
	r, other := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	old := weak.Make(e.allowed.table.Load())
	if err := e.AddPeer(other.config()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the table before the last change is kept", func() bool { runtime.GC(); return old.Value() == nil })

	p, b := e.peer(r), e.NewBatch()
	p.mu.Lock()
	p.turn = new(lane)
	p.mu.Unlock()
	b.Append(packet4(100, here, r.addr))
	e.Device.Send(b)
	if b.out.contended != p {
		t.Fatal("the turn is another's, and the batch does not know")
	}
	b.Append(packet4(100, here, here)) // to nobody
	e.Device.Send(b)
	if b.out.contended != nil {
		t.Error("the batch keeps a peer that it has nothing to do with any more")
	}
}

// TestStatusFromInsideSink: what a sink may ask, it may ask also while the device ends.
func TestStatusFromInsideSink(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	there := make(chan struct{})
	e.tunnel.write = func(pkts [][]byte) int {
		close(there)
		eventually(t, "the device is not down", func() bool { return !e.Status().Up })
		if _, ok := e.Peer(r.id.public); !ok {
			t.Error("the peer is gone")
		}
		return len(pkts)
	}
	go e.line.receive(r.train(r.data(packet4(100, r.addr, here))))
	<-there
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
