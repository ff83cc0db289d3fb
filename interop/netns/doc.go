// Package netns tests a WireGuard daemon as users meet it: a process and a TUN interface on each of several hosts, which
// are network namespaces, under the real ip, wg, ping, iperf3 and nft. It has tests only, and they need root.
//
//	go test ./interop/netns                          this library's daemon, cmd/wg0
//	go test ./interop/netns -daemon wireguard-go     wireguard-go's
//	go test ./interop/netns -daemon /path/to/daemon  any with their command line
//	go test ./interop/netns -daemon wireguard-go -all -v -run TestName
//
// Where wireguard-go's daemon does something else than the kernel, the test says so with the reason and is skipped for
// it; -all runs it all the same. Where a TUN cannot do what the kernel's module does, the test holds what happens instead.
//
// Everything happens in namespaces of the test process; see internal/netlab.
package netns
