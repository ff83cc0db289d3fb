package wireguard_test

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// wantAttempts asserts the numbers of the attempts to reach o that failed since the last call of wantAttempts. Each attempt must
// fail 5 s after it was sent, plus at most the jitter. The parameter first is the time at which the first of these attempts was
// sent.
func (n *node) wantAttempts(failed <-chan wireguard.Event, o *node, first time.Duration, numbers ...int) {
	n.w.Helper()
	n.w.settle()
	sent := n.clock.Wall().Add(first - n.w.now())
	for _, number := range numbers {
		if len(failed) == 0 {
			n.w.Fatalf("at %v: there is no event about the failure of attempt %d", n.w.now(), number)
		}
		e := <-failed
		after := e.Time.Sub(sent)
		if e.Attempt != number || e.Peer != o.pub() || e.Endpoint != o.at() || after < 5*time.Second || after > 5*time.Second+jitter {
			n.w.Fatalf("%v after the initiation: event %+v, want attempt %d", after, e, number)
		}
		sent = e.Time // the next attempt is sent when this one fails
	}
	if len(failed) != 0 {
		n.w.Fatalf("at %v: event %+v, want no more events", n.w.now(), <-failed)
	}
}

// counting returns the integers from the first argument up to and including the second.
func counting(from, to int) (numbers []int) {
	for i := from; i <= to; i++ {
		numbers = append(numbers, i)
	}
	return numbers
}

// Each initiation that goes unanswered causes an event. So a program learns after about 5 s that the first initiation failed. It
// need not wait for about 104 s until the device gives up. After a session has been made, the attempts are numbered from 1 again.
func TestEachAttemptIsAnEvent(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		failed := a.watch(wireguard.EventAttemptFailed)
		w.net.Cut(a.end, b.end)
		a.send(b, "one")
		w.advance(5*time.Second - 1)
		a.wantAttempts(failed, b, 0)
		w.advance(jitter + 1)
		a.wantAttempts(failed, b, 0, 1)
		w.advance(100*time.Second + 19*jitter)
		if len(failed) != 19 {
			w.Fatalf("%d more attempts failed, want 19", len(failed))
		}
		last := 2
		for len(failed) > 0 {
			if e := <-failed; e.Attempt != last {
				w.Fatalf("attempt %d, want %d", e.Attempt, last)
			}
			last++
		}
		a.wantEvents("the last failed attempt ends the series", wireguard.EventHandshakeFailed)

		w.advance(time.Hour)
		at := w.now()
		a.send(b, "two")
		w.advance(4 * time.Second)
		w.net.Mend(a.end, b.end)
		w.advance(2 * time.Second)
		a.wantSession(b, true, "b answered attempt 22")
		a.wantAttempts(failed, b, at, 21)

		w.advance(200 * time.Second) // b's keepalive arrives, and the session expires
		w.net.Cut(a.end, b.end)
		at = w.now()
		a.send(b, "three")
		w.advance(11 * time.Second)
		a.wantAttempts(failed, b, at, 1, 2)
	})
}

// The event of a failed attempt says why the attempt failed: no response arrived, the initiation could not be sent, or the
// response could not be opened.
func TestAttemptReasons(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		failed := a.watch(wireguard.EventAttemptFailed)
		want := func(why string, is error, text string) {
			w.Helper()
			w.advance(5*time.Second + jitter)
			if len(failed) != 1 {
				w.Fatalf("%d attempts failed, want 1: %s", len(failed), why)
			}
			err := (<-failed).Err
			if !contains(err, text) || is != nil && !errors.Is(err, is) || errors.Is(err, wireguard.ErrNoAnswer) != (is == wireguard.ErrNoAnswer) {
				w.Fatalf("the attempt failed with the error %q: %s", err, why)
			}
		}
		w.net.Cut(nil, nil)
		a.send(b, "x")
		want("no response arrives", wireguard.ErrNoAnswer, "no answer")
		w.net.SetConditions(pipe.Conditions{MTU: 60, RefuseTooBig: true})
		w.advance(5*time.Second + jitter)
		<-failed // this event is about the last attempt that was sent
		want("the initiation cannot be sent", syscall.EMSGSIZE, "send to "+b.at().String())
		w.net.SetConditions(pipe.Conditions{})
		w.net.Mend(nil, nil)
		a.update(b, wireguard.PeerChange{PresharedKey: ptr(wireguard.NewPresharedKey())})
		w.advance(5*time.Second + jitter)
		<-failed // this event is about the attempt that was not sent
		want("the response cannot be opened", nil, "preshared key")
		w.judge(func(m *message) pipe.Verdict { return pipe.Drop })
		w.advance(5*time.Second + jitter)
		<-failed // this event is about the attempt whose response could not be opened
		want("the response to an earlier initiation does not count", wireguard.ErrNoAnswer, "no answer")
	})
}

// If a program keeps sending packets, each packet restarts the series of initiations, but the attempts are still numbered without
// a gap.
func TestAttemptsUnderTraffic(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		failed := a.watch(wireguard.EventAttemptFailed)
		w.net.Cut(a.end, b.end)
		for range 300 {
			a.send(b, "again")
			w.advance(time.Second)
		}
		n := a.end.Sent().Initiations
		w.advance(5*time.Second + jitter) // until the last attempt fails
		a.wantAttempts(failed, b, 0, counting(1, int(n))...)
		a.wantEvents("one event for each 20 attempts", wireguard.EventHandshakeFailed, wireguard.EventHandshakeFailed)
	})
}

// If Renew replaces an initiation less than 5 s after it was sent, there is no event about this initiation, but its number is not
// used again.
func TestAttemptsReplaced(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		failed := a.watch(wireguard.EventAttemptFailed)
		w.net.Cut(nil, nil)
		a.send(b, "x")
		w.advance(2 * time.Second)
		b.move(elsewhere)
		a.update(b, wireguard.PeerChange{Endpoint: ptr(b.at())})
		go a.Renew(context.Background(), b.pub())
		w.advance(10*time.Second + 2*jitter)
		if n := a.end.Sent().Initiations; n != 4 {
			w.Fatalf("%d initiations, want one each at 0, 2, 7 and 12 s", n)
		}
		a.wantAttempts(failed, b, 2*time.Second, 2, 3)
	})
}

// An attempt fails at most once. There is no event about an attempt that was answered, nor about one that the device delayed
// because it had just sent a response. If the initiations of two devices cross, neither leads to a session, but there is only
// one event: the device that retries first reports its attempt as failed. The other device then answers, and does not retry.
func TestWhichAttemptsFail(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		failedA, failedB := a.watch(wireguard.EventAttemptFailed), b.watch(wireguard.EventAttemptFailed)
		w.connect(a, b)
		w.advance(10 * time.Minute)
		a.wantAttempts(failedA, b, 0)

		w.net.Cut(nil, nil)
		b.send(a, "in vain")
		w.advance(20 * (5*time.Second + jitter))
		if len(failedB) != 20 {
			w.Fatalf("%d attempts failed, want 20", len(failedB))
		}
		for range 20 {
			<-failedB
		}
		w.net.Mend(nil, nil)
		w.hold("a data", 1) // this message would have confirmed the session
		w.script()
		a.send(b, "x")
		w.want("a initiation, b response, a data", "b answers")
		w.advance(time.Second)
		b.send(a, "y")
		w.wantJittered(4*time.Second, "b initiation, a response, b data", "b delays its initiation until 5 s after its response")
		b.wantAttempts(failedB, a, 0)
		w.release()

		w.advance(10 * time.Minute)
		at := w.now()
		w.script()
		w.net.SetConditions(pipe.Conditions{Delay: time.Millisecond})
		a.send(b, "x")
		b.send(a, "y")
		w.want("a initiation, b initiation", "the initiations cross")
		w.advance(15 * time.Second)
		a.wantSession(b, true, "the retry makes a session")
		if len(failedA)+len(failedB) != 1 {
			w.Fatalf("%d attempts of a and %d attempts of b failed, want 1 in total", len(failedA), len(failedB))
		}
		for n, failed := range map[*node]<-chan wireguard.Event{a: failedA, b: failedB} {
			if o := map[*node]*node{a: b, b: a}[n]; len(failed) > 0 {
				n.wantAttempts(failed, o, at+2*time.Millisecond, 1)
			}
		}
	})
}

// A subscription that nobody reads delays nothing. It keeps the newest event of each kind until it is closed. Even after the
// device is closed, a program can still read the events that the subscription kept.
func TestSlowSubscriber(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		slow, closed := a.Subscribe(wireguard.EventHandshake, wireguard.EventEndpointMoved), a.Subscribe()
		for range 5 {
			w.connectAgain(a, b)
			w.advance(time.Second)
		}
		a.wantEvents("a subscriber that reads at once receives all events", wireguard.EventHandshake, wireguard.EventHandshake,
			wireguard.EventHandshake, wireguard.EventHandshake, wireguard.EventHandshake)
		sent := b.status(a).Timestamp
		b.move(elsewhere)
		b.send(a, "from elsewhere")
		closed.Close()
		a.Close()
		want := []wireguard.Event{
			{Kind: wireguard.EventHandshake, Merged: 4, SentTimestamp: sent},
			{Kind: wireguard.EventEndpointMoved, Endpoint: b.at()},
		}
		for e := range slow.Events(context.Background()) {
			if len(want) == 0 {
				w.Fatalf("event %+v, want no more events", e)
			}
			if e.Kind != want[0].Kind || e.Merged != want[0].Merged || e.SentTimestamp != want[0].SentTimestamp || e.Missed != 0 ||
				e.Kind == wireguard.EventEndpointMoved && e.Endpoint.Addr != b.at().Addr {
				w.Fatalf("event %+v, want %+v", e, want[0])
			}
			want = want[1:]
		}
		if len(want) != 0 {
			w.Fatalf("the events %+v are missing", want)
		}
		if e, err := closed.Next(context.Background()); !errors.Is(err, net.ErrClosed) {
			w.Fatalf("a closed subscription returned the event %+v and the error %v, want net.ErrClosed", e, err)
		}
	})
}

// A device limits how often it reports trouble, but separately for each peer and for the socket: an event about trouble with
// sending to one peer does not suppress an event about another peer or about the socket.
func TestTroublePerPeer(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		c := w.node("c")
		a.knows(c)
		c.knows(a)
		w.connect(a, b)
		w.connect(a, c)
		a.wantEvents("a has made two sessions", wireguard.EventHandshake, wireguard.EventHandshake)
		w.net.SetConditions(pipe.Conditions{MTU: 100, RefuseTooBig: true})
		big := string(make([]byte, 500))
		for range 10 {
			a.send(b, big)
			a.send(c, big)
		}
		es := a.wantEvents("there is one event for each peer", wireguard.EventBindTrouble, wireguard.EventBindTrouble)
		for i, o := range []*node{b, c} {
			if e := es[i]; e.Peer != o.pub() || !errors.Is(e.Err, syscall.EMSGSIZE) {
				w.Fatalf("event %+v, want the trouble with sending to %s", e, o.name)
			}
		}
		odd, busy := errors.New("recvmsg: network is down"), errors.New("no network")
		mood.set(func() { mood.moods = []error{odd} })
		b.send(a, "x") // the pending call of Receive returns this packet, and the next call fails
		if e := a.wantEvents("there is an event about the socket", wireguard.EventBindTrouble)[0]; e.Peer != (wireguard.PublicKey{}) || !errors.Is(e.Err, odd) {
			w.Fatalf("event %+v, want the error that the socket returned", e)
		}
		mood.set(func() { mood.fail = busy })
		a.Wake()
		if e := a.wantEvents("there is an event about Wake in the same second", wireguard.EventBindTrouble)[0]; !errors.Is(e.Err, busy) {
			w.Fatalf("event %+v, want the error with which Wake could not open the socket", e)
		}
	})
}
