package wgo

const (
	room = 16      // bytes of room in front of each packet for a tun.Device
	slot = 1 << 16 // bytes of each buffer for wireguard-go, including room; no packet that arrived through UDP is larger
)

// newSlots makes n consecutive buffers.
func newSlots(n int) (memory []byte, slots [][]byte) {
	memory, slots = make([]byte, n*slot), make([][]byte, n)
	for i := range slots {
		slots[i] = memory[i*slot : (i+1)*slot : (i+1)*slot]
	}
	return memory, slots
}

// A run holds the buffers for one call of wireguard-go's Write or Send, at most as many as the batch size.
type run struct {
	bufs  [][]byte // the callee may change the elements
	slots [][]byte // memory for copies, allocated at the first use
}

func newRun(batch int) *run { return &run{bufs: make([][]byte, 0, batch)} }

func (r *run) full() bool { return len(r.bufs) == cap(r.bufs) }

// add puts p itself into the run.
func (r *run) add(p []byte) { r.bufs = append(r.bufs, p) }

// copy puts a copy of p into the run, with room in front and the rest of the slot behind. It leaves out a p that does
// not fit.
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

// reset empties the run and drops references to the caller's memory.
func (r *run) reset() {
	clear(r.bufs)
	r.bufs = r.bufs[:0]
}
