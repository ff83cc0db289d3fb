package idle

import (
	"runtime"
	"testing"
	"time"
)

// TestIdleWanted checks that a goroutine asks for help as long as its requests are useful. After a few useless requests in a row,
// it asks only once in a while. If there is only one core, it never asks.
func TestIdleWanted(t *testing.T) {
	const rounds = 10
	for _, c := range []struct {
		name   string
		cores  int
		helped bool
		want   int
	}{
		{"helped", 2, true, rounds * lookAgain},
		{"in vain", 2, false, rounds * inVain},
		{"one core", 1, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(c.cores))
			var a Helpers
			asked := 0
			for range rounds * lookAgain {
				if a.Wanted() {
					asked++
					a.Brought(c.helped)
				}
			}
			if asked != c.want {
				t.Errorf("help was wanted %d times of %d, want %d", asked, rounds*lookAgain, c.want)
			}
		})
	}
	t.Run("help comes again", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
		var a Helpers
		for i := range 3 * lookAgain {
			if asks := a.Wanted(); asks {
				a.Brought(i >= lookAgain)
			} else if i >= lookAgain {
				t.Fatalf("help is not wanted at round %d, although earlier help was useful", i)
			}
		}
	})
}

// TestIdleLinger checks that a helper looks for more work many times before it ends. If it finds none, the next two helpers
// (lingerPause) look only once.
func TestIdleLinger(t *testing.T) {
	var a Helpers
	looks := 0
	never := func() bool { looks++; return false }
	for i, want := range []int{lingerLooks, 1, 1, lingerLooks, 1} {
		looks = 0
		if a.Linger(never) || looks != want {
			t.Errorf("helper %d looked for work %d times, want %d", i, looks, want)
		}
	}
	if !a.Linger(func() bool { return true }) {
		t.Error("Linger returned false, although there is work")
	}
}

// TestHelpersLimit checks that there are at most Limit helpers at one time.
func TestHelpersLimit(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for _, c := range []struct{ limit, most int }{{0, 3}, {1, 1}, {2, 2}, {5, 3}, {-1, 0}} {
		h := Helpers{Limit: c.limit}
		wanted, started := h.Wanted(), 0
		for h.Start() {
			started++
		}
		if wanted != (c.most > 0) || started != c.most {
			t.Errorf("limit %d: Wanted is %v, and %d helpers start; want %d helpers", c.limit, wanted, started, c.most)
		}
		if h.End(); c.most > 0 && !h.Start() {
			t.Errorf("limit %d: no helper starts after one has ended", c.limit)
		}
	}
}

// TestRelay checks that one goroutine at a time has the source, and that Await blocks this goroutine while too many loads are
// under way.
func TestRelay(t *testing.T) {
	r := NewRelay(1)
	if !r.Take() {
		t.Fatal("Take returned false for a free source")
	}
	r.Begin()
	r.Begin()
	let := make(chan int, 2)
	go func() {
		r.Await(1)
		let <- 1
		r.Await(0)
		let <- 0
	}()
	for want := 1; want >= 0; want-- {
		time.Sleep(5 * time.Millisecond)
		if len(let) != 0 {
			t.Fatalf("Await(%d) returned with %d loads under way", want, r.UnderWay())
		}
		r.Sent()
		if got := <-let; got != want || r.UnderWay() != want {
			t.Fatalf("Await(%d) returned, want Await(%d); %d loads are under way", got, want, r.UnderWay())
		}
	}
	if r.Take() {
		t.Error("Take returned true for a source that is taken")
	}
	r.Wanted()
	r.Offer()
	if !r.Take() {
		t.Error("Take returned false for an offered source")
	}
}
