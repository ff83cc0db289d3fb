package wireguard

import (
	"reflect"
	"regexp"
	"testing"
)

func TestDropNames(t *testing.T) {
	seen := make(map[string]bool)
	words := regexp.MustCompile(`^[a-z0-9]+( [a-z0-9]+)*$`)
	for r := range dropReasons {
		s := r.String()
		if !words.MatchString(s) || seen[s] {
			t.Errorf("reason %d is called %q: want lower-case words, once", r, s)
		}
		seen[s] = true
	}
	if dropReasons.String() != "unknown" || DropReason(255).String() != "unknown" {
		t.Error("what is no reason has a name")
	}
}

func TestDropsTotal(t *testing.T) {
	var c dropCounters
	want := uint64(0)
	for r := range dropReasons {
		c.add(r, int(r)+1)
		want += uint64(r) + 1
	}
	d := c.load()
	if d.Total() != want || d[DropReplayed] != uint64(DropReplayed)+1 {
		t.Errorf("counters add up to %d, want %d", d.Total(), want)
	}
}

func TestEventNames(t *testing.T) {
	seen := make(map[string]bool)
	for k := EventHandshake; k <= EventPeerForgotten; k++ {
		if s := k.String(); s == "unknown event" || seen[s] {
			t.Errorf("event %d is called %q", k, s)
		} else {
			seen[s] = true
		}
	}
	if EventKind(0).String() != "unknown event" || (EventPeerForgotten+1).String() != "unknown event" {
		t.Error("what is no event has a name")
	}
}

// TestStatusIsPlain: a status is a value. Nothing in it leads back into the device, except what is copied, and it holds no
// secrets.
func TestStatusIsPlain(t *testing.T) {
	for _, v := range []any{Status{}, PeerStatus{}, Event{}} {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			if k := f.Type.Kind(); k == reflect.Pointer || k == reflect.Map || k == reflect.Chan || k == reflect.Func {
				t.Errorf("%T.%s is a %v", v, f.Name, k)
			}
			if f.Type == reflect.TypeFor[PrivateKey]() || f.Type == reflect.TypeFor[PresharedKey]() {
				t.Errorf("%T.%s is a secret", v, f.Name)
			}
		}
	}
}

func TestSubscribers(t *testing.T) {
	var d Device
	fast, cancelFast := d.Subscribe(10)
	slow, cancelSlow := d.Subscribe(0)
	for k := range EventKind(4) {
		d.subscribers.publish(Event{Kind: k + 1})
	}
	for k := range EventKind(4) {
		if e := <-fast; e.Kind != k+1 || e.Missed != 0 {
			t.Errorf("event %d is %+v", k, e)
		}
	}
	if e := <-slow; e.Kind != 1 || e.Missed != 0 {
		t.Errorf("the first event is %+v", e)
	}
	d.subscribers.publish(Event{Kind: 5})
	if e := <-slow; e.Kind != 5 || e.Missed != 3 {
		t.Errorf("after three that were missed, the event is %+v", e)
	}
	d.subscribers.publish(Event{Kind: 6})
	if e := <-slow; e.Missed != 0 {
		t.Error("events missed are told twice")
	}
	cancelSlow()
	cancelSlow()
	if _, ok := <-slow; ok {
		t.Error("a channel is open after cancel")
	}
	d.subscribers.publish(Event{Kind: 7})
	d.subscribers.close()
	d.subscribers.close()
	cancelFast()
	kinds := []EventKind{}
	for e := range fast {
		kinds = append(kinds, e.Kind)
	}
	if !reflect.DeepEqual(kinds, []EventKind{5, 6, 7}) {
		t.Errorf("what was told before the close is %v", kinds)
	}
	late, cancel := d.Subscribe(1)
	if _, ok := <-late; ok {
		t.Error("a closed device tells something")
	}
	cancel()
}
