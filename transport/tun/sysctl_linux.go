//go:build linux && !android

package tun

import "os"

// settle makes the settings that the kernel's module makes for an interface that goes up (wg_open):
//
//   - No ICMP redirects. A hub forwards packets from one peer to another on the same interface, and would tell the first
//     that a shorter path exists. The kernel sends redirects if either the interface or "all" says so.
//   - No link-local IPv6 address. A tunnel has no link layer to make one from, and the router solicitations that follow
//     such an address would keep sessions alive.
//
// It ignores errors, because the interface works without these settings. The program may lack the right to make them, as in
// a container whose /proc/sys is read-only, or the kernel may lack IPv6. /proc/sys/net shows the network namespace of the
// calling thread, in which the interface was made.
func settle(name string) {
	for _, s := range []struct{ file, value string }{
		{"ipv4/conf/" + name + "/send_redirects", "0"},
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv6/conf/" + name + "/addr_gen_mode", "1"}, // IN6_ADDR_GEN_MODE_NONE
	} {
		f, err := os.OpenFile("/proc/sys/net/"+s.file, os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		_, _ = f.WriteString(s.value)
		f.Close()
	}
}
