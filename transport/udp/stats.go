package udp

import "sync/atomic"

// Stats counts what a Socket has done since it was opened. Stats is a comparable type. ReceiveCalls and SendCalls count system
// calls, each of which may have passed many datagrams. The other counters, except Refused, count datagrams or bytes.
type Stats struct {
	ReceiveCalls      uint64 // system calls that returned at least one datagram
	ReceivedDatagrams uint64 // datagrams received
	ReceivedBytes     uint64 // bytes of UDP payload received

	SendCalls     uint64 // system calls that sent at least one datagram
	SentDatagrams uint64 // datagrams sent
	SentBytes     uint64 // bytes of UDP payload sent

	// Dropped counts received datagrams that were empty or truncated, or whose sender's address was not of the socket's family.
	// It also counts received trains without the control message that says where the datagrams of a train end. Such a train
	// counts as one datagram.
	Dropped uint64

	// Refused counts messages of several datagrams that the system refused. Send then sent the datagrams one by one. A train is
	// sent as one message if it has at most 64 datagrams and no more bytes than the largest UDP payload.
	Refused uint64
}

// traffic counts the system calls, datagrams, bytes and faults of one direction.
type traffic struct {
	calls, datagrams, bytes, faults atomic.Uint64
}

func (t *traffic) add(datagrams, bytes int) {
	t.calls.Add(1)
	t.datagrams.Add(uint64(datagrams))
	t.bytes.Add(uint64(bytes))
}

// Stats returns the counters. Each counter is exact, but the counters are not read at the same instant. Stats may be called
// after Close.
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
