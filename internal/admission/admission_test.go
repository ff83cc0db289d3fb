package admission

import "testing"

// TestDesk checks Put with requests that wait, join an older request, are stale, or find no room.
func TestDesk(t *testing.T) {
	d := Desk[string, int]{Max: 16, MaxAdmitted: 18}
	newer := func(r int) func(int) bool { return func(waiting int) bool { return r > waiting } }
	put := func(key string, r int, want Outcome) {
		t.Helper()
		if takes := d.Takes(key); takes == (want == Full) {
			t.Errorf("Takes(%q) returned %v, want the opposite", key, takes)
		}
		if got := d.Put(key, r, newer(r)); got != want {
			t.Errorf("Put of request %d of %q returned outcome %d, want %d", r, key, got, want)
		}
	}
	if d.Crowded() || d.Waiting("a") != 0 || d.End("a") != 0 {
		t.Error("a new Desk is crowded or has a request")
	}
	put("a", 5, Asks)
	if d.Crowded() {
		t.Error("the Desk is crowded with one question, which is less than an eighth of 16")
	}
	put("a", 5, Stale)
	put("a", 4, Stale)
	put("a", 6, Joins)
	put("b", 1, Asks)
	if !d.Crowded() || d.Waiting("a") != 6 || d.Len() != 2 {
		t.Errorf("crowded is %v, the request of a is %d, and there are %d questions; want true, 6 and 2", d.Crowded(), d.Waiting("a"), d.Len())
	}
	for i := range 14 {
		put(string(rune('c'+i)), 1, Asks)
	}
	put("z", 1, Full)
	put("a", 7, Joins)
	if d.End("a") != 7 || d.End("a") != 0 {
		t.Error("End does not return the newest request once, and then nothing")
	}
	put("z", 1, Asks)
	d.Admit(3) // a peer is admitted while its request waits
	d.End("z")
	put("y", 1, Full)
	d.Admit(-1)
	put("y", 1, Asks)
}
