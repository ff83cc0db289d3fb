package page

import "time"

// Looker returns a function that does what the handler does once per interval, and returns the size of the message. If fresh
// is true, every peer has changed.
func Looker(h *Handler) func(fresh bool) int {
	return func(fresh bool) int {
		h.hub.mu.Lock()
		defer h.hub.mu.Unlock()
		if fresh {
			for _, d := range h.hub.devices {
				for _, seen := range d.rows {
					seen.Sent++
				}
			}
		}
		return len(message("changes", h.hub.look(time.Now())))
	}
}
