package wgo

const (
	room = 16      // bytes in front of each packet that a tun.Device gets
	slot = 1 << 16 // bytes of each buffer of theirs, room included; no packet that came through UDP is larger
)

// newSlots makes n buffers, one after another in memory.
func newSlots(n int) (memory []byte, slots [][]byte) {
	memory, slots = make([]byte, n*slot), make([][]byte, n)
	for i := range slots {
		slots[i] = memory[i*slot : (i+1)*slot : (i+1)*slot]
	}
	return memory, slots
}

// A run is what one call of a foreign Write or Send gets: at most as many buffers as its batch size.
type run struct {
	bufs  [][]byte // the callee may change the elements
	slots [][]byte // memory for copies, made when first used
}

func newRun(batch int) *run { return &run{bufs: make([][]byte, 0, batch)} }

func (r *run) full() bool { return len(r.bufs) == cap(r.bufs) }

// add puts p itself into the run.
func (r *run) add(p []byte) { r.bufs = append(r.bufs, p) }

// copy puts a copy of p, with room in front and all of a slot behind, into the run. What does not fit is left out.
func (r *run) copy(p []byte, room int) {
	if room+len(p) > slot {
		return
	}
	i := len(r.bufs)
	for i >= len(r.slots) {
		r.slots = append(r.slots, make([]byte, slot))
	}
	r.add(r.slots[i][:room+copy(r.slots[i][room:], p)])
}

// reset empties the run and forgets what is not its own.
func (r *run) reset() {
	clear(r.bufs)
	r.bufs = r.bufs[:0]
}
