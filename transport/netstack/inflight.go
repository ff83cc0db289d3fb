package netstack

import (
	"encoding/binary"
	"math"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// gVisor's slow start ends in one of two ways, and both are bad on a long path:
//
//   - A queue on the path overflows. By then gVisor has sent far more than the path and the queue hold. It loses hundreds of
//     segments at once, and some of those that it sends again. It waits until a timeout for the segments that were lost twice,
//     and then sends everything again.
//   - HyStart mistakes a delay for the beginning of a queue. Acknowledgements that arrive late, in a train, or evenly look the
//     same to it. From then on, the congestion window grows by only a few segments a second.
//
// So an inFlight measures what the path holds, and bounds what is in flight: to 11/8 of the most that the path has delivered
// within a round trip without queues. It lowers the window of the acknowledgements that gVisor sees, so gVisor sends less; the
// peer sees nothing of that. In slow start, what the path delivers grows by 11/8 in each round trip, and so does the bound. At
// the end, a queue holds three eighths of what the path holds. That is less than most queues have room for, and most of the time
// no segment is lost.
//
// HyStart is then not needed. It is given only one measurement per round trip, which is too few for it to compare.
//
// After a loss the bound is lower by 3/10, like the window of CUBIC (RFC 9438, section 4.6). It then grows again with what is
// delivered. While a segment is missing, the segments that arrived after it are not acknowledged, although they are no longer in
// flight. So the bound counts from the end of the newest of them.

// An inFlight is what is known of a connection's path. The zero value is ready.
type inFlight struct {
	mu sync.Mutex // guards all below; taken last

	probe  uint32        // a round trip ends when this number is acknowledged
	probed time.Time     // when the byte before it was sent; zero if no round trip is measured
	trip   time.Duration // the latest round trip, at least shortestTrip; 0 before the first one

	rate  float64 // the most bytes per second that were delivered; rises of less than a sixteenth are ignored
	path  int64   // how many bytes the path holds at that rate, without a queue; 0 until that is known
	bound int64   // the most bytes in flight while no segment is missing
	slow  slowdown
	marks [inFlightMarks]inFlightMark
	mark  int       // the newest mark's place in marks
	begun time.Time // when the newest mark was begun

	lost    bool   // a segment was missing, or sent again
	missing bool   // a segment is missing
	repeats int    // acknowledgements since that segment is missing
	end     uint32 // the number after the newest byte that arrived beyond that segment
}

// An inFlightMark says how far was acknowledged at a time.
type inFlightMark struct {
	at  time.Time
	ack uint32
}

const (
	// Marks are at least a twelfth of a round trip apart, so that the oldest is older than a round trip. A mark is the last
	// acknowledgement of its twelfth. So acknowledgements that were held up and arrive in a train count before the mark, where
	// they belong.
	inFlightMarks = 16
	marksPerTrip  = 12

	// leastBound is how many bytes may always be in flight. That is too few to overflow the queue of a path on which a bound is
	// of use.
	leastBound = 256 << 10

	// sameWindows is for how many acknowledgements the bound stays the same after a segment goes missing. gVisor counts an
	// acknowledgement as a repetition only if it has the same window as the previous one. It learns from three repetitions that a
	// segment is missing; others may be lost.
	sameWindows = 8
)

// send notes that the bytes before the number n are sent. again says that they were sent before; otherwise n is beyond the
// numbers of all earlier calls.
func (f *inFlight) send(n uint32, again bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = f.lost || again
	if !again && f.probed.IsZero() {
		f.probe, f.probed = n, time.Now()
	}
}

// hear notes an acknowledgement, whose header is tcp. Until the first loss, it hides all timestamps but one per round trip from
// HyStart. It returns how many bytes after ack may be sent; 0 means any number.
func (f *inFlight) hear(ack uint32, tcp []byte) (bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	end, missing := selectiveEnd(tcp)
	if !f.probed.IsZero() && int32(ack-f.probe) >= 0 {
		f.measure(ack, max(now.Sub(f.probed), shortestTrip), now)
		f.probed = time.Time{}
	} else if f.trip > 0 && !f.lost && !missing {
		hideEcho(tcp)
	}
	if f.trip == 0 {
		return 0
	}
	f.count(ack, now)
	switch {
	case !missing:
		f.missing = false
		if f.path > 0 {
			f.bound = max(f.path*11/8, leastBound)
		}
		return f.bound
	case !f.missing:
		f.lost, f.missing, f.repeats, f.end = true, true, 0, end
		f.rate, f.path = f.rate*7/10, f.path*7/10
		f.marks = [inFlightMarks]inFlightMark{}
	case int32(end-f.end) > 0:
		f.end = end
	}
	if f.repeats++; f.repeats <= sameWindows || f.bound == 0 {
		return f.bound
	}
	return int64(int32(f.end-ack)) + max(f.path, leastBound/2)
}

// count learns from an acknowledgement how much the path delivers within a round trip.
func (f *inFlight) count(ack uint32, now time.Time) {
	if now.Sub(f.begun) >= f.trip/marksPerTrip {
		f.begun, f.mark = now, (f.mark+1)%inFlightMarks
		f.marks[f.mark] = inFlightMark{now, ack}
	} else if m := &f.marks[f.mark]; int32(ack-m.ack) > 0 {
		*m = inFlightMark{now, ack}
	}
	for i := range inFlightMarks { // from the newest to the oldest
		m := &f.marks[(f.mark+inFlightMarks-i)%inFlightMarks]
		if m.at.IsZero() {
			return
		}
		if passed := now.Sub(m.at); passed >= f.trip {
			f.deliver(float64(int32(ack-m.ack)) / passed.Seconds())
			return
		}
	}
}

// deliver notes that the path delivers rate.
func (f *inFlight) deliver(rate float64) {
	if rate < f.rate*17/16 {
		return
	}
	path := rate * f.trip.Seconds()
	if f.path > 0 {
		path = min(path, float64(f.path)*math.Pow(rate/f.rate, 1.25))
	}
	f.rate, f.path = rate, max(f.path, int64(path))
}

// measure notes a round trip.
func (f *inFlight) measure(ack uint32, trip time.Duration, now time.Time) {
	f.trip = trip
	if rate, is := f.slow.is(ack, now, f.rate); is {
		f.rate, f.path = rate, f.path*11/8
	}
}

// A slowdown detects that a path delivers less than before: because it has become longer, or because others use it too.
type slowdown struct {
	begun time.Time
	ack   uint32
	rate  float64 // the best rate that was known then
}

// is reports whether the path has delivered less than three quarters of the best rate for longerAfter or more, and how much it
// delivers. rate is the best rate now.
func (s *slowdown) is(ack uint32, now time.Time, rate float64) (present float64, is bool) {
	passed := now.Sub(s.begun)
	if passed < longerAfter {
		return 0, false
	}
	present = float64(int32(ack-s.ack)) / passed.Seconds()
	is = !s.begun.IsZero() && present < s.rate*3/4
	s.begun, s.ack, s.rate = now, ack, rate
	return present, is
}

// bareOptions is the length of a header whose only option is the timestamp, with two bytes of padding in front.
const bareOptions = header.TCPMinimumSize + 12

// hideEcho clears the timestamp that tcp echoes. gVisor then does not measure a round trip.
func hideEcho(tcp []byte) {
	if len(tcp) == bareOptions && tcp[header.TCPMinimumSize+2] == header.TCPOptionTS {
		clear(tcp[bareOptions-4:])
	}
}

// selectiveEnd returns the number after the newest byte that tcp acknowledges selectively.
func selectiveEnd(tcp []byte) (end uint32, is bool) {
	for o := tcp[header.TCPMinimumSize:]; len(tcp) > bareOptions && len(o) >= 2; {
		n := int(o[1])
		switch {
		case o[0] == header.TCPOptionNOP:
			n = 1
		case o[0] == header.TCPOptionEOL || n < 2 || n > len(o):
			return end, is
		case o[0] == header.TCPOptionSACK:
			for b := o[2:n]; len(b) >= 8; b = b[8:] {
				if e := binary.BigEndian.Uint32(b[4:]); !is || int32(e-end) > 0 {
					end, is = e, true
				}
			}
		}
		o = o[n:]
	}
	return end, is
}
