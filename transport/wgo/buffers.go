package wgo

const (
	room = 16      // bytes of space in front of each packet for a tun.Device
	slot = 1 << 16 // size in bytes of each buffer for wireguard-go, including room; any packet that arrived over UDP fits
)

// newSlots returns n buffers of slot bytes, which lie one after another in memory.
func newSlots(n int) (memory []byte, slots [][]byte) {
	memory, slots = make([]byte, n*slot), make([][]byte, n)
	for i := range slots {
		slots[i] = memory[i*slot : (i+1)*slot : (i+1)*slot]
	}
	return memory, slots
}

// A run holds the buffers for one call of Write of a tun.Device or of Send of a conn.Bind. It has at most as many buffers as
// the batch size.
type run struct {
	bufs  [][]byte // Write or Send may change the elements
	slots [][]byte // memory for copies, allocated at the first use
}

func newRun(batch int) *run { return &run{bufs: make([][]byte, 0, batch)} }

func (r *run) full() bool { return len(r.bufs) == cap(r.bufs) }

// add puts p itself into the run.
func (r *run) add(p []byte) { r.bufs = append(r.bufs, p) }

// copy adds a copy of p to the run, with room bytes of space in front of it and the rest of its slot as capacity. If p does not
// fit into a slot, copy does nothing.
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

// reset removes all buffers from the run, so that the run does not refer to the caller's memory.
func (r *run) reset() {
	clear(r.bufs)
	r.bufs = r.bufs[:0]
}
