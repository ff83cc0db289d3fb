package udp

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// hasGroups is true because Linux keeps a flow on one of the sockets that share a port with SO_REUSEPORT.
const hasGroups = true

// setReuse sets whether sockets of the same user that have SO_REUSEPORT too may be bound beside this one. It returns what
// was set before.
func setReuse(fd uintptr, on bool) (was bool, err error) {
	return setFlag(fd, unix.SO_REUSEPORT, on)
}

// setFlag sets an option of the socket that is on or off, and returns what was set before.
func setFlag(fd uintptr, option int, on bool) (was bool, err error) {
	before, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, option)
	if err != nil {
		return false, err
	}
	value := 0
	if on {
		value = 1
	}
	return before != 0, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, value)
}

// setSpread makes the kernel spread the flows over the first n sockets that were bound beside each other. A socket that
// another program of this user binds beside them is a later one, and gets no flow.
func setSpread(fd uintptr, f family, n int) error {
	raw, err := bpf.Assemble(spread(f, n))
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	return unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &program)
}

// spread returns a filter that hashes the sender's address and port to a number below n.
func spread(f family, n int) []bpf.Instruction {
	const network = ^uint32(0) - 0x100000 + 1 // SKF_NET_OFF: offsets from the header of IP
	words, port := []uint32{12}, uint32(20)
	if f == ipv6 {
		words, port = []uint32{8, 12, 16, 20}, 40
	}
	// Behind IPv4 options or IPv6 extension headers, the port is elsewhere. The filter then reads other bytes, which are
	// usually the same in all packets of a flow.
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: network + port, Size: 2}}
	for _, w := range words {
		program = append(program,
			bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x9e3779b1},
			bpf.TAX{},
			bpf.LoadAbsolute{Off: network + w, Size: 4},
			bpf.ALUOpX{Op: bpf.ALUOpAdd})
	}
	return append(program,
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x9e3779b1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(n)},
		bpf.RetA{})
}
