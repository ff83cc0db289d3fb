package udp

import "sync/atomic"

// Stats is what a Socket did since it was opened. Calls count system calls that moved something; datagrams are
// counted one by one, however many of them crossed in a call.
type Stats struct {
	ReceiveCalls      uint64 // that got a datagram
	ReceivedDatagrams uint64 // each of a train by itself
	ReceivedBytes     uint64 // of UDP payload

	SendCalls     uint64 // that took a datagram
	SentDatagrams uint64 // each of a train by itself
	SentBytes     uint64 // of UDP payload

	// Dropped counts datagrams, or trains of them, that arrived empty or damaged: truncated, from another family,
	// without the control messages that say where a train's datagrams end.
	Dropped uint64

	// Refused counts trains that the system did not take in one call, and that went out datagram by datagram.
	Refused uint64
}

// traffic counts one direction.
type traffic struct {
	calls, datagrams, bytes, faults atomic.Uint64
}

func (t *traffic) add(datagrams, bytes int) {
	t.calls.Add(1)
	t.datagrams.Add(uint64(datagrams))
	t.bytes.Add(uint64(bytes))
}

// Stats returns the counters, each exact but not all of one instant. It may be called after Close.
func (s *Socket) Stats() Stats {
	var st Stats
	for _, p := range s.paths {
		if p == nil {
			continue
		}
		c := p.socket()
		st.ReceiveCalls += c.in.calls.Load()
		st.ReceivedDatagrams += c.in.datagrams.Load()
		st.ReceivedBytes += c.in.bytes.Load()
		st.Dropped += c.in.faults.Load()
		st.SendCalls += c.out.calls.Load()
		st.SentDatagrams += c.out.datagrams.Load()
		st.SentBytes += c.out.bytes.Load()
		st.Refused += c.out.faults.Load()
	}
	return st
}
