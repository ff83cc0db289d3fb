package udp

import "sync/atomic"

// Stats counts what a Socket did since it was opened. It is a comparable value. ReceiveCalls and SendCalls are system
// calls that moved a datagram. Each datagram counts as one, however many of them one call moved.
type Stats struct {
	ReceiveCalls      uint64 // system calls that returned a datagram
	ReceivedDatagrams uint64 // datagrams received
	ReceivedBytes     uint64 // bytes of their UDP payload

	SendCalls     uint64 // system calls that took a datagram
	SentDatagrams uint64 // datagrams sent
	SentBytes     uint64 // bytes of their UDP payload

	// Dropped counts datagrams, or trains of them, that arrived empty, truncated, from another family, or without the
	// control message that says where the datagrams of a train end.
	Dropped uint64

	// Refused counts messages of several datagrams that the system refused. The datagrams were then sent one by one. A train
	// takes one message, unless it exceeds 64 datagrams or the largest UDP payload.
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

// Stats returns the counters. Each is exact, but they are not of one instant. It may be called after Close.
func (s *Socket) Stats() Stats {
	var st Stats
	for _, p := range s.all() {
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
