package keylog

import (
	"errors"
	"testing"
)

type writer struct {
	text string
	err  error
	n    int
}

func (w *writer) Write(b []byte) (int, error) {
	w.n++
	w.text += string(b)
	return len(b), w.err
}

// TestWrite checks that each exchange is one Write of four lines. It also checks that only the first failed write returns an error,
// and that nothing is written after it.
func TestWrite(t *testing.T) {
	if err := new(Log).Write([32]byte{}, [32]byte{}, [32]byte{}, [32]byte{}); err != nil {
		t.Errorf("Write without a writer: error %v, want nil", err)
	}
	w := new(writer)
	l := Log{W: w}
	const zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	want := "LOCAL_STATIC_PRIVATE_KEY = AQ" + zeros + "\nREMOTE_STATIC_PUBLIC_KEY = Ag" + zeros +
		"\nLOCAL_EPHEMERAL_PRIVATE_KEY = Aw" + zeros + "\nPRESHARED_KEY = BA" + zeros + "\n"
	if err := l.Write([32]byte{1}, [32]byte{2}, [32]byte{3}, [32]byte{4}); err != nil || w.n != 1 || w.text != want {
		t.Errorf("%d writes, want 1; the text is\n%swant\n%s(error %v)", w.n, w.text, want, err)
	}
	w.err = errors.New("full")
	for i := range 3 {
		if err := l.Write([32]byte{1}, [32]byte{2}, [32]byte{3}, [32]byte{4}); (err != nil) != (i == 0) || w.n != 2 {
			t.Errorf("call %d after the writer failed: error %v, with %d writes so far; want an error only at call 0, and 2 writes", i, err, w.n)
		}
	}
}
