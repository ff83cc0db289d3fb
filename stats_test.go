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
			t.Errorf("the drop reason %d is called %q, want lower-case words that no other reason has", r, s)
		}
		seen[s] = true
	}
	if dropReasons.String() != "unknown" || DropReason(255).String() != "unknown" {
		t.Error("a value that is not a drop reason has a name")
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
		t.Errorf("the counters add up to %d, want %d", d.Total(), want)
	}
}

func TestEventNames(t *testing.T) {
	seen := make(map[string]bool)
	for k := EventHandshake; k < eventKinds; k++ {
		if s := k.String(); s == "unknown event" || seen[s] {
			t.Errorf("the event kind %d is called %q, want a name that no other kind has", k, s)
		} else {
			seen[s] = true
		}
	}
	if EventKind(0).String() != "unknown event" || eventKinds.String() != "unknown event" {
		t.Error("a value that is not an event kind has a name")
	}
}

// TestStatusIsPlain checks that a status is a plain value: it has no pointers into the device and no secrets.
func TestStatusIsPlain(t *testing.T) {
	for _, v := range []any{Status{}, PeerStatus{}, Event{}} {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			if k := f.Type.Kind(); k == reflect.Pointer || k == reflect.Map || k == reflect.Chan || k == reflect.Func {
				t.Errorf("%T.%s is a %v, want a plain value", v, f.Name, k)
			}
			if f.Type == reflect.TypeFor[PrivateKey]() || f.Type == reflect.TypeFor[PresharedKey]() {
				t.Errorf("%T.%s is a secret key, want no secrets in a status", v, f.Name)
			}
		}
	}
}
