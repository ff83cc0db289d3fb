package netstack

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A line is a path in virtual time with a queue at its entrance, and a sender that always has more to send than f lets it. In its
// slow start it sends two bytes for each byte that is acknowledged, and an initial window of 14 KiB.
type line struct {
	f         *inFlight
	trip      time.Duration
	rate      int // bytes per millisecond
	sent      uint32
	acked     uint32
	left      uint32 // bytes that have left the queue
	leave     []lineMark
	most      int // the most bytes that were in flight lately
	mayDouble int // bytes that slow start allows in flight
}

// A lineMark says how many bytes had left the queue at a time.
type lineMark struct {
	at   time.Time
	left uint32
}

// run lets time pass.
func (l *line) run(during time.Duration) {
	l.most = 0
	if l.mayDouble == 0 {
		l.mayDouble = 14 << 10
	}
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(time.Millisecond) {
		l.left += uint32(min(l.rate, int(l.sent-l.left)))
		l.leave = append(l.leave, lineMark{time.Now(), l.left})
		bound := int64(0)
		for len(l.leave) > 0 && time.Since(l.leave[0].at) >= l.trip {
			if ack := l.leave[0].left; ack != l.acked {
				l.mayDouble += int(ack - l.acked)
				l.acked = ack
				bound = l.f.hear(ack, make([]byte, bareOptions))
			}
			l.leave = l.leave[1:]
		}
		if bound == 0 {
			bound = l.f.bound
		}
		may := l.mayDouble
		if bound > 0 {
			may = min(may, int(bound))
		}
		if more := may - int(l.sent-l.acked); more > 0 {
			l.sent += uint32(more)
			l.f.send(l.sent, false)
		}
		l.most = max(l.most, int(l.sent-l.acked))
	}
}

// holds returns how many bytes the path holds without a queue.
func (l *line) holds() int { return l.rate * int(l.trip/time.Millisecond) }

// What is in flight fills the path, and a queue of at most half of that.
func TestInFlight(t *testing.T) {
	for _, c := range []struct {
		trip time.Duration
		rate int
	}{
		{100 * time.Millisecond, 12_500}, {150 * time.Millisecond, 6_250}, {30 * time.Millisecond, 62_500}, {200 * time.Millisecond, 125_000},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := line{f: new(inFlight), trip: c.trip, rate: c.rate}
			l.run(25 * c.trip)
			if most := l.most * 100 / l.holds(); most < 110 || most > 165 {
				t.Errorf("%v, %d bytes per ms: in slow start, %d %% of what the path holds is in flight; want 110 to 165", c.trip, c.rate, most)
			}
			l.run(60 * time.Second)
			if most := l.most * 100 / l.holds(); most < 110 || most > 165 {
				t.Errorf("%v, %d bytes per ms: %d %% of what the path holds is in flight; want 110 to 165", c.trip, c.rate, most)
			}
		})
	}
}

// The path becomes faster, and later ten times as long. Each time, what is in flight follows.
func TestInFlightFollowsThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{f: new(inFlight), trip: 50 * time.Millisecond, rate: 12_500}
		l.run(5 * time.Second)
		l.rate *= 4
		l.run(5 * time.Second)
		if l.most < l.holds() {
			t.Errorf("the path is faster: %d bytes are in flight, want the %d that it holds", l.most, l.holds())
		}
		l.trip *= 10
		l.run(30 * time.Second)
		if l.most < l.holds() {
			t.Errorf("the path is longer: %d bytes are in flight, want the %d that it holds", l.most, l.holds())
		}
	})
}

// Round trips on the path vary, so that most are twice as long as the shortest. The sender still uses the path.
func TestInFlightOnAnUnsteadyPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{f: new(inFlight), trip: 30 * time.Millisecond, rate: 12_500}
		l.run(60 * time.Millisecond) // the first round trips
		l.trip = 60 * time.Millisecond
		l.run(10 * time.Second)
		if l.most < l.holds() {
			t.Errorf("%d bytes are in flight, want the %d that the path holds", l.most, l.holds())
		}
	})
}

// selective returns the header of an acknowledgement with blocks of selective acknowledgements.
func selective(blocks ...uint32) []byte {
	tcp := append(make([]byte, bareOptions), 1, 1, 5, byte(2+4*len(blocks)))
	copy(tcp[20:], []byte{1, 1, 8, 10})
	for _, b := range blocks {
		tcp = binary.BigEndian.AppendUint32(tcp, b)
	}
	return tcp
}

// While a segment is missing, the bound first stays as it is, because gVisor compares windows. Then it counts from the end of
// what arrived. After the loss, the bound is lower by 3/10, and grows again.
func TestInFlightAfterALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{f: new(inFlight), trip: 100 * time.Millisecond, rate: 12_500}
		l.run(5 * time.Second)
		before, path := l.f.bound, l.f.path
		ack := l.acked
		for i := range uint32(sameWindows) {
			if b := l.f.hear(ack, selective(ack+3000, ack+6000+1000*i)); b != before {
				t.Fatalf("repeated acknowledgement %d allows %d bytes, want %d as before", i+1, b, before)
			}
		}
		end := uint32(700_000)
		if b, want := l.f.hear(ack, selective(ack+3000, ack+5000, ack+9000, ack+end)), int64(end)+path*7/10; b != want {
			t.Errorf("when %d bytes arrived after the missing ones, %d bytes are allowed; want %d", end, b, want)
		}
		if b, want := l.f.hear(ack, selective(ack+3000, ack+5000)), int64(end)+path*7/10; b != want {
			t.Errorf("an older report allows %d bytes, want %d", b, want)
		}
		l.acked += end
		if b := l.f.hear(l.acked, make([]byte, bareOptions)); b > before*3/4 {
			t.Errorf("after the loss, %d bytes are allowed; want at most 3/4 of %d", b, before)
		}
		l.left, l.sent, l.leave = l.acked, l.acked, nil
		l.run(5 * time.Second)
		if l.f.bound < before*8/10 {
			t.Errorf("5 s after the loss, %d bytes are allowed; want about %d as before", l.f.bound, before)
		}
	})
}

// Before a loss, HyStart gets one timestamp per round trip; afterwards gVisor gets all of them.
func TestInFlightHidesEchoes(t *testing.T) {
	echo := func() []byte {
		tcp := make([]byte, bareOptions)
		copy(tcp[20:], []byte{1, 1, 8, 10, 1, 1, 1, 1, 2, 2, 2, 2})
		return tcp
	}
	synctest.Test(t, func(t *testing.T) {
		var f inFlight
		count := func() (n int) {
			ack := uint32(1000)
			for range 20 { // round trips
				ack += 1000
				f.send(ack, false)
				time.Sleep(50 * time.Millisecond)
				for i := range uint32(10) {
					tcp := echo()
					if f.hear(ack+i-9, tcp); tcp[31] != 0 {
						n++
					}
				}
			}
			return n
		}
		if n := count(); n < 20 || n > 30 { // the first round trip shows all of its timestamps
			t.Errorf("%d of 200 timestamps were shown, want one of each round trip", n)
		}
		f.send(1000, true)
		if n := count(); n != 200 {
			t.Errorf("after a loss, %d of 200 timestamps were shown", n)
		}
	})
}

// Malformed options end the search.
func TestSelectiveEnd(t *testing.T) {
	for _, c := range []struct {
		options []byte
		want    uint32
	}{
		{[]byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0}, 9},
		{[]byte{1, 1, 5, 18, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 2, 0, 0, 0, 5}, 5}, // the numbers pass 0
		{[]byte{5, 200, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0}, 0},
		{[]byte{0, 0, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0}, 0},
		{[]byte{1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5, 0}, 0},
		{[]byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5}, 0},
		{[]byte{3, 3, 9, 1, 5, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0},
	} {
		end, is := selectiveEnd(append(make([]byte, header.TCPMinimumSize), c.options...))
		if end != c.want || is != (c.want != 0) {
			t.Errorf("%v: %d, %t; want %d", c.options, end, is, c.want)
		}
	}
}
