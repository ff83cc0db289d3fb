package udp

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// hasGroups is true because Linux delivers all datagrams of a flow (from one address and port) to the same socket, if several
// sockets have one port with SO_REUSEPORT.
const hasGroups = true

// setReuse sets SO_REUSEPORT, which lets other sockets of the same user with this option be bound to the same port. It returns
// the previous setting.
func setReuse(fd uintptr, on bool) (was bool, err error) {
	return setFlag(fd, unix.SO_REUSEPORT, on)
}

// setFlag sets a boolean option of the socket, and returns its previous value.
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

// setSpread makes the kernel spread the flows over the first n sockets that were bound to the port. If another program of the
// same user binds a socket to the port later, that socket gets no flow.
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
	const network = ^uint32(0) - 0x100000 + 1 // SKF_NET_OFF; offsets are relative to the IP header
	words, port := []uint32{12}, uint32(20)
	if f == ipv6 {
		words, port = []uint32{8, 12, 16, 20}, 40
	}
	// In packets with IPv4 options or IPv6 extension headers, the port is at another offset. In such packets the filter reads
	// other bytes instead, which are usually the same in all packets of a flow.
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
