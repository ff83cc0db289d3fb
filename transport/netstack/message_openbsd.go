package netstack

// putTOS4 writes nothing, because OpenBSD does not report the type of service.
func (m *received) putTOS4(*controlWriter) {}
