package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// manyZone contains names with several addresses.
var manyZone = zone{
	"many.test.": {
		recordAAAA("fd08::3"), recordAAAA("fd08::4"), recordAAAA("fd08::2"),
		recordA("10.8.0.3"), recordA("10.8.0.2"),
	},
	"silent.test.": {recordAAAA("fd08::3"), recordA("10.8.0.3")},
	"both.test.":   testZone["both.test."],
}

// A syns records the addresses to which SYNs were sent, and when each address got its first one. It ignores SYNs to name servers.
type syns struct {
	silent func(netip.Addr) bool // whether packets to the address are lost

	mu sync.Mutex
	to []netip.Addr
	at []time.Time
}

func (s *syns) tap(p []byte) (drop bool) {
	l3, to := 20, netip.Addr{}
	if p[0]>>4 == 6 {
		l3, to = 40, netip.AddrFrom16([16]byte(p[24:40]))
		if p[ip6Next] != protoTCP {
			return false
		}
	} else if to = netip.AddrFrom4([4]byte(p[16:20])); p[9] != protoTCP {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := header.TCP(p[l3:]); h.Flags() == header.TCPFlagSyn && h.DestinationPort() != 53 && !slices.Contains(s.to, to) {
		s.to, s.at = append(s.to, to), append(s.at, time.Now())
	}
	return s.silent != nil && s.silent(to)
}

func (s *syns) sent() ([]netip.Addr, []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.to), slices.Clone(s.at)
}

func (s *syns) String() string {
	to, _ := s.sent()
	return strings.Trim(fmt.Sprint(to), "[]")
}

// raceNets returns a Net for dialing, and the record of its SYNs. A second Net runs a name server with the records of z. If
// listens is true, the second Net also listens on port 80 of b4 and b6.
func raceNets(t *testing.T, z zone, listens bool, silent func(netip.Addr) bool) (*Net, *syns) {
	a, b, ab, _ := wired(t, 0)
	s := &syns{silent: silent}
	ab.tap = s.tap
	serveDNSAt(t, b, netip.Addr{}, answers(z, nil))
	if listens {
		echo(t, b, ":80")
	}
	return a, s
}

// elsewhere reports whether no Net has the address a.
func elsewhere(a netip.Addr) bool { return a != b4 && a != b6 }

// TestRaceStaggers dials a name whose first addresses do not answer. It checks the order and the times of the attempts.
func TestRaceStaggers(t *testing.T) {
	a, s := raceNets(t, manyZone, true, elsewhere)
	const delay = 100 * time.Millisecond
	begin := time.Now()
	c, err := (&Dialer{Net: a, FallbackDelay: delay}).Dial("tcp", "many.test:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, want := s.String(), "fd08::3 10.8.0.3 fd08::4 10.8.0.2"; !strings.HasPrefix(got, want) || c.RemoteAddr().String() != "10.8.0.2:80" {
		t.Errorf("the dial tried %s and connected to %v, want it to try %s and to connect to the last one", got, c.RemoteAddr(), want)
	}
	_, times := s.sent()
	for i, at := range times {
		if after := at.Sub(begin); after < time.Duration(i)*delay {
			t.Errorf("attempt %d began %v after the dial, want %v or more", i, after, time.Duration(i)*delay)
		}
	}
}

// TestRaceDelay checks how long a dial takes if IPv6 does not work. It repeats the dial up to 20 times, because a loaded machine
// may be slow.
func TestRaceDelay(t *testing.T) {
	a, _ := raceNets(t, testZone, true, netip.Addr.Is6)
	best := time.Hour
	for try := 0; try < 20 && best > 300*time.Millisecond; try++ {
		begin := time.Now()
		c, err := a.Dial("tcp", "both.test:80")
		took := time.Since(begin)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if took < fallbackDelay {
			t.Fatalf("the dial took %v, so it did not wait %v for IPv6 before it tried IPv4", took, fallbackDelay)
		}
		best = min(best, took)
	}
	if best > 300*time.Millisecond {
		t.Errorf("a broken IPv6 delays a dial by %v, want 250 to 300 ms", best)
	}
}

// TestRaceRefused checks that when an attempt fails, the next one begins at once.
func TestRaceRefused(t *testing.T) {
	a, b, ab, _ := wired(t, 0)
	s := &syns{}
	ab.tap = func(p []byte) bool {
		s.tap(p)
		return false
	}
	serveDNSAt(t, b, netip.Addr{}, answers(testZone, nil))
	echo(t, b, "10.8.0.2:80") // fd08::2 refuses connections
	d := &Dialer{Net: a, FallbackDelay: time.Hour}
	c, err := d.Dial("tcp", "both.test:80")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if got := s.String(); got != "fd08::2 10.8.0.2" {
		t.Errorf("the dial tried %s, want fd08::2 and then 10.8.0.2", got)
	}
	_, err = d.Dial("tcp", "both.test:81")
	wantOpError(t, "dial of a port that nobody listens on", err, syscall.ECONNREFUSED)
}

// TestRaceEnds dials a name whose addresses do not answer. It checks that the dial ends at its deadline, with the error of the
// first address.
func TestRaceEnds(t *testing.T) {
	a, s := raceNets(t, manyZone, false, elsewhere)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := (&Dialer{Net: a, FallbackDelay: time.Millisecond}).DialContext(ctx, "tcp", "silent.test:80")
	wantOpError(t, "dial", err, context.DeadlineExceeded)
	if op := err.(*net.OpError); op.Addr == nil || op.Addr.String() != "[fd08::3]:80" {
		t.Errorf("the dial returned %v, want the error of the first address", err)
	}
	if got := s.String(); got != "fd08::3 10.8.0.3" {
		t.Errorf("the dial tried %s, want fd08::3 and then 10.8.0.3", got)
	}
}

// TestRaceBound dials a name with more addresses than a dial tries at once.
func TestRaceBound(t *testing.T) {
	z := zone{}
	for i := range 200 {
		z["crowd.test."] = append(z["crowd.test."], recordA(fmt.Sprintf("10.9.0.%d", i)))
	}
	a, s := raceNets(t, z, false, elsewhere)
	ctx, cancel := context.WithCancel(t.Context())
	dialed := make(chan error, 1)
	go func() {
		_, err := (&Dialer{Net: a, FallbackDelay: 1}).DialContext(ctx, "tcp4", "crowd.test:80")
		dialed <- err
	}()
	attempts := func() int {
		to, _ := s.sent()
		return len(to)
	}
	testkit.Eventually(t, "the dial begins maxAttempts attempts", func() bool { return attempts() >= maxAttempts })
	time.Sleep(50 * time.Millisecond) // in this time, one attempt too many would begin
	if n := attempts(); n != maxAttempts {
		t.Errorf("the dial made %d attempts at the same time, want %d", n, maxAttempts)
	}
	cancel()
	if err := testkit.Next(t, dialed, "the dial returns"); err == nil {
		t.Error("the dial succeeded although no address answers, want an error after its context was canceled")
	}
}

// TestRaceOneWinner dials a name whose two addresses answer at the same time. It checks that the second connection is closed.
func TestRaceOneWinner(t *testing.T) {
	a, b := pair(t)
	serveDNS(t, b)
	l, err := b.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var accepted, ended, won atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			go func() {
				defer c.Close()
				if k, _ := c.Read(make([]byte, 1)); k == 1 {
					won.Add(1)
				}
				ended.Add(1)
			}()
		}
	}()
	const dials = 20
	for range dials {
		c, err := (&Dialer{Net: a, FallbackDelay: 1}).Dial("tcp", "both.test:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		write(t, c, "x")
	}
	testkit.Eventually(t, "each dial keeps one connection and closes all others", func() bool {
		return won.Load() == dials && ended.Load() == accepted.Load()
	})
	t.Logf("the server accepted %d connections for %d dials", accepted.Load(), dials)
}

// TestRaceLate checks dials if the name server answers the query for one family late or never.
func TestRaceLate(t *testing.T) {
	const never = time.Hour
	for _, x := range []struct {
		what         string
		wait4, wait6 time.Duration
		silent       func(netip.Addr) bool
		network      string
		want         string
	}{
		{"no answer about IPv6", 0, never, nil, "tcp", "10.8.0.2:80"},
		{"no answer about IPv4", never, 0, nil, "tcp", "[fd08::2]:80"},
		{"no answer about IPv6, for UDP", 0, never, nil, "udp", "10.8.0.2:80"},
		{"IPv4 late, IPv6 broken", 4 * resolutionDelay, 0, netip.Addr.Is6, "tcp", "10.8.0.2:80"},
		{"IPv6 late, IPv4 broken", 0, 4 * resolutionDelay, netip.Addr.Is4, "tcp", "[fd08::2]:80"},
	} {
		t.Run(x.what, func(t *testing.T) {
			a, b, ab, _ := wired(t, 0)
			ab.tap = (&syns{silent: x.silent}).tap
			gone := make(chan struct{})
			t.Cleanup(func() { close(gone) })
			serveDNSAt(t, b, netip.Addr{}, func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
				wait := x.wait4
				if q.Questions[0].Type == dnsmessage.TypeAAAA {
					wait = x.wait6
				}
				go func() {
					select {
					case <-time.After(wait):
						honest(q, overTCP, reply)
					case <-gone:
					}
				}()
			})
			echo(t, b, ":80")
			// A lookup that waited for the answers for both families would take DNSTimeout.
			ctx, cancel := context.WithTimeout(t.Context(), defaultDNSTimeout/2)
			defer cancel()
			c, err := a.DialContext(ctx, x.network, "both.test:80")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.RemoteAddr().String(); got != x.want {
				t.Errorf("the dial connected to %s, want %s", got, x.want)
			}
		})
	}
}

// TestRaceClose closes the Net while a dial tries several addresses.
func TestRaceClose(t *testing.T) {
	a, s := raceNets(t, manyZone, false, elsewhere)
	done := make(chan error, 1)
	go func() {
		_, err := (&Dialer{Net: a, FallbackDelay: time.Millisecond}).Dial("tcp", "silent.test:80")
		done <- err
	}()
	testkit.Eventually(t, "the dial begins two attempts", func() bool { return s.String() == "fd08::3 10.8.0.3" })
	_ = a.Close()
	if err := testkit.Next(t, done, "the dial returns"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the dial returned %v, want net.ErrClosed", err)
	}
}

func TestInterleave(t *testing.T) {
	for _, x := range []struct {
		remotes string
		first4  bool
		want    string
	}{
		{"", true, ""},
		{"a", false, "a"},
		{"6 4", false, "6 4"},
		{"6 4", true, "4 6"},
		{"6 7 8 4 5", false, "6 4 7 5 8"},
	} {
		toAddr := func(s string) netip.AddrPort {
			if s < "6" {
				return netip.MustParseAddrPort("10.8.0." + s + ":80")
			}
			return netip.MustParseAddrPort("[fd08::" + s + "]:80")
		}
		var remotes, want []netip.AddrPort
		for _, s := range strings.Fields(x.remotes) {
			remotes = append(remotes, toAddr(s))
		}
		for _, s := range strings.Fields(x.want) {
			want = append(want, toAddr(s))
		}
		if got := interleave(remotes, x.first4); !slices.Equal(got, want) {
			t.Errorf("interleave of %s, with IPv4 first %t: %v, want %v", x.remotes, x.first4, got, want)
		}
	}
}
