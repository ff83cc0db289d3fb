package page

import "time"

// Looker returns a function that does the handler's work of one interval, and returns the size of the message. If fresh is true,
// every peer counts as changed.
func Looker(h *Handler) func(fresh bool) int {
	return func(fresh bool) int {
		h.hub.mu.Lock()
		defer h.hub.mu.Unlock()
		return len(h.hub.lookAt(fresh))
	}
}

// Sender returns a function that does the work that Looker describes, and also sends the message to the open pages of the
// handler. At each call, every peer counts as changed.
func Sender(h *Handler) func() int {
	return func() int {
		h.hub.mu.Lock()
		defer h.hub.mu.Unlock()
		b := h.hub.lookAt(true)
		h.hub.broadcast(b)
		return len(b)
	}
}

func (h *hub) lookAt(fresh bool) []byte {
	if fresh {
		for _, d := range h.devices {
			for _, seen := range d.rows {
				seen.Sent++
			}
		}
	}
	return message("changes", h.look(time.Now()))
}
