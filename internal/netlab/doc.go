// Package netlab builds a small network of Linux network namespaces on one host, for tests and measurements that need a kernel at
// both ends. Each host is a network namespace. Veth pairs connect the hosts, and programs run in them.
//
//	cmd := exec.Command(os.Args[0])   the process that has root
//	netlab.Isolate(cmd)               gives the child its own mounts, processes and network
//	netlab.Enter()                    first call of the child; gives it its own /proc and /run
//	a, b := NewHost, NewHost          one namespace per host
//	netlab.Join(a, "v0", b, "v0")     a cable
//	a.Run("ip addr add …")            a program in a
//	a.StartDaemon(program, "wg1")     a WireGuard daemon in a
//
// The child is the first process of its process namespace. When it ends for any reason, the kernel kills all processes in the
// namespace and then removes the mounts and the networks. So nothing is left behind, and two runs cannot interfere.
package netlab
