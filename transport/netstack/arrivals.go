package netstack

import (
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// gVisor's UDP endpoint bounds the payload of the datagrams that wait in it, but not their memory. So a peer could fill any
// amount of memory with empty datagrams. A UDPConn therefore empties its endpoint as soon as a datagram arrives, on the goroutine
// that delivers the datagram. It keeps the datagrams in a queue that counts their memory.

const (
	// datagramCost is how many bytes of memory a datagram in the queue takes, besides its payload.
	datagramCost = 128
	// reusable is the size of the largest buffer, in bytes, that is used again for another datagram.
	reusable = 2 << 10
)

// An arrivals is the queue of received datagrams that the program has not read. The zero value needs init.
type arrivals struct {
	net *Net
	ep  tcpip.Endpoint
	who holder

	mu          sync.Mutex // guards the rest; held while datagrams are taken from the endpoint, so that they stay in order
	first, last *datagram
	held, most  int         // bytes of memory that the queue takes, and how many it may take
	failed      tcpip.Error // the error that gVisor reported instead of a datagram
	closed      bool
}

// A datagram is a received datagram that the program has not read.
type datagram struct {
	next *datagram
	data []byte
	cost int
	from netip.AddrPort
	received
}

var datagrams = sync.Pool{New: func() any { return new(datagram) }}

// init prepares the queue for the endpoint ep. The queue's memory counts for the holder h.
func (in *arrivals) init(n *Net, ep tcpip.Endpoint, h holder) {
	in.net, in.ep, in.who = n, ep, h
	in.most = int(ep.SocketOptions().GetReceiveBufferSize()) // the stack's default
}

// Write appends b, a part of the datagram, to d. gVisor calls it.
func (d *datagram) Write(b []byte) (int, error) {
	if n := len(d.data) + len(b); n > cap(d.data) {
		d.data = append(make([]byte, 0, n), d.data...)
	}
	d.data = append(d.data, b...)
	return len(b), nil
}

// fill moves all datagrams from the endpoint to the queue. It drops and counts the datagrams for which there is no memory. in.mu
// is held.
func (in *arrivals) fill() {
	for !in.closed {
		d := datagrams.Get().(*datagram)
		res, err := in.ep.Read(d, tcpip.ReadOptions{NeedRemoteAddr: true})
		switch err.(type) {
		case nil, *tcpip.ErrBadBuffer:
		case *tcpip.ErrWouldBlock:
			d.free()
			return
		case *tcpip.ErrClosedForReceive:
			d.free()
			in.closed = true
			return
		default:
			d.free()
			in.failed = err
			continue
		}
		d.from = addrPort(res.RemoteAddr)
		d.take(&res)
		in.push(d)
	}
}

// push appends d to the queue or, if there is no memory for d, drops d and counts it.
func (in *arrivals) push(d *datagram) {
	if cap(d.data) > 2*len(d.data)+64 { // a small datagram in a large buffer that was used before
		d.data = append([]byte(nil), d.data...)
	}
	d.cost = datagramCost + allocated(cap(d.data))
	b := in.net.budget
	if in.held >= in.most || !b.take(&b.held.datagrams, in.who, d.cost) {
		in.net.link.drops.datagrams.Add(1)
		d.free()
		return
	}
	in.held += d.cost
	if in.last == nil {
		in.first = d
	} else {
		in.last.next = d
	}
	in.last = d
}

// pop removes the oldest datagram from the queue. The caller must free the datagram. If the queue is empty, pop returns
// ErrWouldBlock.
func (in *arrivals) pop() (*datagram, tcpip.Error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.first == nil {
		in.fill()
	} else if err := in.ep.LastError(); err != nil { // an error is reported before datagrams, as on Linux
		in.failed = err
	}
	if err := in.failed; err != nil {
		in.failed = nil
		return nil, err
	}
	d := in.first
	if d == nil {
		if in.closed {
			return nil, &tcpip.ErrClosedForReceive{}
		}
		return nil, &tcpip.ErrWouldBlock{}
	}
	if in.first = d.next; in.first == nil {
		in.last = nil
	}
	d.next = nil
	in.held -= d.cost
	b := in.net.budget
	b.give(&b.held.datagrams, in.who, d.cost)
	return d, nil
}

// isReadable reports whether pop has something to return.
func (in *arrivals) isReadable() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fill()
	return in.first != nil || in.failed != nil || in.closed
}

// takeError returns the error that gVisor has reported last, if no read or write has returned that error yet. The queue then
// forgets the error.
func (in *arrivals) takeError() tcpip.Error {
	in.mu.Lock()
	defer in.mu.Unlock()
	err := in.failed
	in.failed = nil
	return err
}

// resize sets how many bytes of memory the queue may take.
func (in *arrivals) resize(n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.most = max(n, 1)
}

// arrive moves the datagrams from the endpoint to the queue. gVisor calls it when a datagram arrives and the endpoint contains no
// other datagram.
func (in *arrivals) arrive() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fill()
}

// close drops all datagrams. The caller has closed the endpoint.
func (in *arrivals) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	b := in.net.budget
	b.give(&b.held.datagrams, in.who, in.held)
	for d := in.first; d != nil; {
		next := d.next
		d.free()
		d = next
	}
	in.first, in.last, in.held = nil, nil, 0
}

// free lets another datagram use the memory of d.
func (d *datagram) free() {
	data := d.data[:0]
	if cap(data) > reusable {
		data = nil
	}
	*d = datagram{data: data}
	datagrams.Put(d)
}
