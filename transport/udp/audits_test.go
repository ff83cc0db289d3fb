package udp

import (
	"errors"
	"testing"
)

// TestTwoSocketsNeverShareAPort checks that Listen fails on the port of another socket. If SO_REUSEADDR or SO_REUSEPORT let two
// devices have the same port, each device would receive some of the other's datagrams. This has happened in another
// implementation (finding 20 of ARCHITECTURE.md).
func TestTwoSocketsNeverShareAPort(t *testing.T) {
	for _, v := range variants {
		x, y := v.listen(t), v.listen(t)
		if x.Port() == y.Port() {
			t.Errorf("%s: two sockets have port %d", v.name, x.Port())
		}
		s, err := v.bind.Listen(x.Port())
		if err == nil {
			s.Close()
			t.Fatalf("%s: two sockets listen on port %d", v.name, x.Port())
		}
		if !errors.Is(err, errnoInUse) {
			t.Errorf("%s: Listen on port %d, which has a socket already: error %v, want one that says that the port is in use", v.name, x.Port(), err)
		}
	}
}
