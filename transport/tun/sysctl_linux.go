//go:build linux && !android

package tun

import "os"

// settle makes the settings that the kernel's WireGuard module makes when an interface is brought up (wg_open):
//
//   - It disables ICMP redirects. A hub forwards packets from one peer to another through the same interface. The kernel would
//     then send an ICMP redirect to the first peer, which claims that a shorter path exists. The kernel sends redirects if they
//     are enabled for the interface or for "all".
//   - It disables the link-local IPv6 address. A tunnel has no link-layer address to make one from. With a link-local address,
//     the kernel would send router solicitations, which keep sessions alive.
//
// It ignores errors, because the interface works without these settings. The program may not have the right to make them, as in
// a container whose /proc/sys is read-only, or the kernel may not have IPv6. The files in /proc/sys/net are those of the
// calling thread's network namespace, in which the interface was made.
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
