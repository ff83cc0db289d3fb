package admission

import "testing"

// TestDesk checks Put with requests that wait, join an older request, are stale, or find no room.
func TestDesk(t *testing.T) {
	d := Desk[string, int]{Max: 16, MaxAdmitted: 18}
	newer := func(r int) func(int) bool { return func(waiting int) bool { return r > waiting } }
	put := func(key string, r int, want Outcome) {
		t.Helper()
		if takes := d.Takes(key); takes == (want == Full) {
			t.Errorf("Takes(%q) is %v", key, takes)
		}
		if got := d.Put(key, r, newer(r)); got != want {
			t.Errorf("request %d of %q: outcome %d, want %d", r, key, got, want)
		}
	}
	if d.Crowded() || d.Waiting("a") != 0 || d.End("a") != 0 {
		t.Error("a new desk has questions")
	}
	put("a", 5, Asks)
	if d.Crowded() {
		t.Error("one of 16 questions is an eighth")
	}
	put("a", 5, Stale)
	put("a", 4, Stale)
	put("a", 6, Joins)
	put("b", 1, Asks)
	if !d.Crowded() || d.Waiting("a") != 6 || d.Len() != 2 {
		t.Errorf("crowded %v, waiting %d, %d questions", d.Crowded(), d.Waiting("a"), d.Len())
	}
	for i := range 14 {
		put(string(rune('c'+i)), 1, Asks)
	}
	put("z", 1, Full)
	put("a", 7, Joins)
	if d.End("a") != 7 || d.End("a") != 0 {
		t.Error("End does not return the newest request, once")
	}
	put("z", 1, Asks)
	d.Admit(3) // a peer is admitted while its request waits
	d.End("z")
	put("y", 1, Full)
	d.Admit(-1)
	put("y", 1, Asks)
}
