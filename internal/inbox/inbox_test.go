package inbox

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

var errOver = errors.New("over")

func newest(newer, older string) string { return newer }

// TestEachReaderWakes checks that each waiting reader gets a value if as many values are published at once as readers wait. It
// also checks that each waiting reader returns after Close.
func TestEachReaderWakes(t *testing.T) {
	for name, end := range map[string]func(b *Inbox[int, int, string]){
		"values": func(b *Inbox[int, int, string]) {
			b.in.mu.Lock() // otherwise readers would take the values one by one
			defer b.in.mu.Unlock()
			for party := range 8 {
				b.add(1, party, "", newest)
			}
		},
		"values about one party": func(b *Inbox[int, int, string]) {
			b.in.mu.Lock()
			defer b.in.mu.Unlock()
			for kind := range 8 {
				b.add(kind, 1, "", newest)
			}
		},
		"Close":         func(b *Inbox[int, int, string]) { b.Close(errOver) },
		"Inboxes.Close": func(b *Inbox[int, int, string]) { b.in.Close(errOver) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, ended := new(Inboxes[int, int, string]).Open(nil), make(chan struct{}, 8)
				for range 8 {
					go func() {
						b.Next(context.Background())
						ended <- struct{}{}
					}()
				}
				synctest.Wait()
				if len(ended) != 0 {
					t.Fatal("Next returned, although no value was published")
				}
				end(b)
				synctest.Wait()
				if n := len(ended); n != 8 {
					t.Errorf("%d of 8 waiting readers returned, want all", n)
				}
				b.Close(errOver)
			})
		})
	}
}

// TestReady checks that a goroutine that is about to wait finds a token as long as there is a value or an error to return. This
// also holds if another goroutine took the previous value and the token for it.
func TestReady(t *testing.T) {
	var in Inboxes[int, int, string]
	b := in.Open(nil)
	const n = 8
	in.Publish(1, 1, "", newest)
	for kind := 1; kind < n; kind++ {
		in.Publish(kind, 2, "", newest)
	}
	for i := range n + 3 {
		if i == n {
			in.Close(errOver)
		}
		select {
		case <-b.ready:
		default:
			t.Fatalf("there is no token after %d calls of Take", i)
		}
		if v, _, ok, err := b.Take(); ok != (i < n) || (err == nil) != ok {
			t.Fatalf("call %d of Take returned %q, ok %v, error %v; want 8 values and then the error", i+1, v, ok, err)
		}
	}
}

// TestMerge checks that a value is merged with the unread value of the same kind and party, and that the result moves behind the
// other values of that party. A value is lost, and counted, if Max other parties have an unread value of its kind.
func TestMerge(t *testing.T) {
	var in Inboxes[int, int, string]
	b := in.Open([]int{1, 2})
	join := func(newer, older string) string { return older + newer }
	in.Publish(1, 7, "a", join)
	in.Publish(2, 7, "b", join)
	in.Publish(3, 7, "nobody asked", join)
	in.Publish(1, 7, "c", join)
	for party := range Max + 3 {
		in.Publish(1, party+8, "", join)
	}
	want := []string{"b", "ac"}
	for i, want := range want {
		if v, missed, err := b.Next(t.Context()); v != want || err != nil || missed != 4*i {
			t.Errorf("Next returned %q, missed %d, error %v; want %q, missed %d", v, missed, err, want, 4*i)
		}
	}
}
