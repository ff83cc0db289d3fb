package capture

// Hold takes the lock of c, and returns a function that releases it.
func Hold(c *Capture) (release func()) {
	c.mu.Lock()
	return c.mu.Unlock
}
