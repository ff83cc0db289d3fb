package boottime

import (
	"testing"
	"time"
)

func TestTimer(t *testing.T) { testAlarm(t, NewTimer()) }

func TestAlarm(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	testAlarm(t, a)
}

func testAlarm(t *testing.T, a Alarm) {
	a.Set(time.Hour)
	a.Set(-time.Second) // a deadline that has passed
	if !a.Wait() {
		t.Fatal("Wait returned false, although the alarm is set to a time that has passed")
	}
	a.Set(0)
	if !a.Wait() {
		t.Fatal("Wait returned false, although the alarm is set to ring now")
	}
	ended := make(chan bool)
	go func() { ended <- a.Wait() }()
	a.Close()
	a.Close()
	if <-ended {
		t.Error("Wait returned true, although the alarm is closed")
	}
	a.Set(0) // must not panic after Close
}

func TestClock(t *testing.T) {
	var c Clock
	last := c.Now()
	for range 1000 {
		now := c.Now()
		if now < last {
			t.Fatalf("the clock went back by %v", last-now)
		}
		last = now
	}
	if d := time.Since(c.Wall()); d < 0 || d > time.Minute {
		t.Errorf("the time since Wall is %v, want 0 to 1 min", d)
	}
}
