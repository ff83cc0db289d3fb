// Package netlab makes a small network of Linux network namespaces on one host, for tests and measurements that need a
// kernel at both ends: hosts joined by veth pairs, and the programs that run in them.
//
//	cmd := exec.Command(os.Args[0])   the process that has root
//	netlab.Isolate(cmd)               its child has mounts, processes and a network of its own
//	netlab.Enter()                    first call of the child: a /proc and a /run of its own
//	a, b := NewHost, NewHost          a namespace each
//	netlab.Join(a, "v0", b, "v0")     a cable
//	a.Run("ip addr add …")            a program in a
//	a.StartDaemon(program, "wg1")     a WireGuard daemon in a
//
// The child is the first process of its process namespace. When it ends, however it ends, the kernel kills what runs in
// there, and with the last process go the mounts and the networks. So nothing is left behind, and two runs cannot meet.
package netlab
