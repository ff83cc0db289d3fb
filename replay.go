package wireguard

const (
	windowBits = 8192 // the size of the bitmap: one bit for each counter
	windowSize = windowBits - wordBits
	wordBits   = 64
)

// A window remembers which counters a keypair has received: "the receiver keeps a sliding window of received counters" (whitepaper,
// section 5.4.6; RFC 6479 is the algorithm). The zero value has received nothing. Only counters of authentic messages may be passed
// to accept.
type window struct {
	top  uint64 // one more than the greatest counter accepted; 0 means none yet
	seen [windowBits / wordBits]uint64
}

// accept reports whether counter is new, and remembers it. It refuses a counter that was accepted before, that is more than 8128
// behind the greatest one, or that exceeds the limit of messages for one key.
func (w *window) accept(counter uint64) bool {
	if counter >= rejectAfterMessages {
		return false
	}
	place := counter + 1
	if place+windowSize < w.top {
		return false
	}
	word := place / wordBits
	if place > w.top {
		// The window moves by whole words, so one word of the memory cannot be used.
		from := w.top / wordBits
		for i := range min(word-from, uint64(len(w.seen))) {
			w.seen[(from+1+i)%uint64(len(w.seen))] = 0
		}
		w.top = place
	}
	at, bit := &w.seen[word%uint64(len(w.seen))], uint64(1)<<(place%wordBits)
	fresh := *at&bit == 0
	*at |= bit
	return fresh
}
