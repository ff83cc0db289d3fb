// Package netns tests a WireGuard daemon as users run it: one process and one TUN interface on each of several hosts, which are
// network namespaces, together with the real ip, wg, ping, iperf3 and nft. It contains only tests, and they need root.
//
//	go test ./interop/netns                          this library's daemon, cmd/wg0
//	go test ./interop/netns -daemon wireguard-go     wireguard-go's
//	go test ./interop/netns -daemon /path/to/daemon  any daemon with the same command line
//	go test ./interop/netns -daemon wireguard-go -all -v -run TestName
//
// If wireguard-go's daemon behaves differently from the kernel, the test skips for that daemon and prints the reason. -all runs it
// anyway. If a TUN cannot behave like the kernel's module, the test checks the TUN's behavior.
//
// The tests change nothing outside the namespaces of the test process; see internal/netlab.
package netns
