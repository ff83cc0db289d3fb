package pipe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A host is an end with one open socket, on port 1000.
type host struct {
	*End
	t  testing.TB
	s  wireguard.Socket
	rx wireguard.Receiver
}

func newHost(t testing.TB, e *End) *host {
	t.Helper()
	s, err := e.Listen(1000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &host{e, t, s, s.Receivers()[0]}
}

func twoHosts(t testing.TB, c Config) (*Network, *host, *host) {
	n := NewNetwork(c)
	return n, newHost(t, n.NewEnd()), newHost(t, n.NewEnd())
}

// send sends datagrams to another host, each as a separate train, and fails the test if there is an error.
func (h *host) send(to *host, datagrams ...string) {
	h.t.Helper()
	if err := h.trySend(to.Endpoint(1000), datagrams...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) trySend(to wireguard.Endpoint, datagrams ...string) error {
	var errs []error
	for _, d := range datagrams {
		ts := []wireguard.Train{{Data: []byte(d), Size: max(len(d), 1), Endpoint: to}}
		h.s.Send(ts)
		clear(ts[0].Data) // Send has copied the data, so this changes nothing
		errs = append(errs, ts[0].Err)
	}
	return errors.Join(errs...)
}

// queued receives the datagrams that are in the queue now. It never waits.
func (h *host) queued() (datagrams []string) {
	h.t.Helper()
	q := h.rx.(*queue)
	for {
		q.mu.Lock()
		empty := len(q.chunks) == 0
		q.mu.Unlock()
		if empty {
			return datagrams
		}
		ts, err := h.rx.Receive()
		if err != nil {
			h.t.Fatal(err)
		}
		for _, t := range ts {
			for d := t.Data; len(d) > 0; d = d[min(t.Size, len(d)):] {
				datagrams = append(datagrams, string(d[:min(t.Size, len(d))]))
			}
		}
	}
}

// want checks that exactly these datagrams are in the queue now.
func (h *host) want(why string, datagrams ...string) {
	h.t.Helper()
	if got := h.queued(); fmt.Sprint(got) != fmt.Sprint(datagrams) {
		h.t.Errorf("the datagrams %q arrived, want %q: %s", got, datagrams, why)
	}
}

func (n *Network) wantBalance(t testing.TB) {
	t.Helper()
	s := n.Stats()
	if in, out := s.Sent.Total()+s.Duplicated+s.Injected, s.Fates.Total()+uint64(s.UnderWay); in != out {
		t.Errorf("%d datagrams were sent, duplicated or injected, but %d have a fate or are under way: %+v", in, out, s)
	}
}

func (n *Network) wantFate(t testing.TB, f Fate, count uint64, why string) {
	t.Helper()
	if got := n.Stats().Fates[f]; got != count {
		t.Errorf("%d datagrams have the fate %q, want %d: %s", got, f, count, why)
	}
}

func TestTrainArrivesWhole(t *testing.T) {
	_, a, b := twoHosts(t, Config{})
	data := bytes.Repeat([]byte("0123456789"), 10)
	ts := []wireguard.Train{{Data: data[:95], Size: 10, TOS: 0x88, Endpoint: b.Endpoint(1000)}}
	a.s.Send(ts)
	got, err := b.rx.Receive()
	if err != nil || ts[0].Err != nil {
		t.Fatal(err, ts[0].Err)
	}
	if len(got) != 1 || !bytes.Equal(got[0].Data, data[:95]) || got[0].Size != 10 || got[0].TOS != 0x88 {
		t.Errorf("received %+v, want one train with the same data, size and TOS", got)
	}
	want := wireguard.Endpoint{Addr: a.Endpoint(1000).Addr, Source: b.Addrs()[0]}
	if got[0].Endpoint != want {
		t.Errorf("endpoint %+v, want %+v", got[0].Endpoint, want)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		n.SetConditions(Conditions{Delay: 20 * time.Millisecond})
		a.send(b, "one", "two")
		time.Sleep(20*time.Millisecond - 1)
		synctest.Wait()
		b.want("the delay is not over")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		b.want("the delay is over", "one", "two")
		n.wantBalance(t)
	})
}

func TestClosedReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, _ := twoHosts(t, Config{})
		errs := make(chan error)
		go func() { _, err := a.rx.Receive(); errs <- err }()
		synctest.Wait()
		a.s.Close()
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive: %v, want net.ErrClosed", err)
		}
		if err := a.trySend(a.Endpoint(1000), "x"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send: %v, want net.ErrClosed", err)
		}
	})
}

func numbered(i, size int) string {
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, uint32(i))
	return string(b)
}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
