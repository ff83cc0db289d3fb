package deadlines

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A setAlarm is an alarm that records the time to which it is set.
type setAlarm struct {
	now *int64
	at  int64 // when it rings; 0 means that it is not set
}

func (a *setAlarm) Set(in time.Duration) { a.at = *a.now + int64(in) }
func (a *setAlarm) Wait() bool           { return false }
func (a *setAlarm) Close()               {}

// TestModel checks a Queue while parties are added and removed. Each party is due at its earliest deadline, and not before. The
// alarm never rings too late, nor twice within Interval.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now, rang := int64(1e9), int64(0)
		a := &setAlarm{now: &now}
		var q Queue[int]
		q.Use(a)
		if a.at != now {
			t.Fatal("Use did not set the new alarm to ring at once")
		}
		a.at = 0
		var places [5]int32
		var at [5]int64
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, len(at)-1).Draw(t, "party")
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				q.Remove(&places[i])
				at[i] = 0
			case 1:
				now += rapid.Int64Range(0, 2*Interval).Draw(t, "time")
				a.at, rang = 0, now // the alarm rang
				q.Ringing(now)
				for {
					i, ok := q.Due(now)
					if !ok {
						break
					}
					if at[i] == 0 || at[i] > now {
						t.Fatalf("Due returned party %d at %d, but its deadline is %d", i, now, at[i])
					}
					at[i] = 0
				}
			default:
				when := now + rapid.Int64Range(1, 3*Interval).Draw(t, "in")
				q.Put(i, &places[i], when, func() int64 { return now })
				if at[i] == 0 || when < at[i] {
					at[i] = when
				}
			}
			earliest := int64(0)
			for i, at := range at {
				if (at != 0) != (places[i] != 0) {
					t.Fatalf("party %d with the deadline %d has the place %d, want a place exactly if there is a deadline", i, at, places[i])
				}
				if at != 0 && (earliest == 0 || at < earliest) {
					earliest = at
				}
				if at != 0 && at <= rang {
					t.Fatalf("Due did not return party %d at %d, which is %d after its deadline", i, rang, rang-at)
				}
			}
			if earliest != 0 && (a.at == 0 || a.at > max(earliest, rang+Interval)) {
				t.Fatalf("the alarm is set to %d (0 means not set), too late for the earliest deadline, %d", a.at, earliest)
			}
			if a.at != 0 && a.at < rang+Interval {
				t.Fatalf("the alarm is set to %d, less than Interval after it rang at %d", a.at, rang)
			}
		}
		for i := range places {
			q.Remove(&places[i])
		}
		if q.entries != nil {
			t.Fatal("the queue keeps its memory, although no party has a deadline")
		}
	})
}

// TestNoAlarm checks that deadlines in a queue without an alarm wait until the queue gets one.
func TestNoAlarm(t *testing.T) {
	now := int64(1e9)
	var q Queue[int]
	var place int32
	q.Ring()
	q.Put(7, &place, now+1, func() int64 { return now })
	a := &setAlarm{now: &now}
	q.Use(a)
	q.Use(nil)
	a.at = 0
	q.Ring()
	if a.at != 0 {
		t.Error("Ring set an alarm that the queue no longer uses")
	}
	if i, ok := q.Due(now + 1); !ok || i != 7 || place != 0 {
		t.Errorf("Due returned %d, %v, and the place is %d; want 7, true and 0", i, ok, place)
	}
}
