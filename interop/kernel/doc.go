// Package kernel holds tests alone: the Linux kernel's WireGuard as the peer of a wireguard.Device.
//
// They boot a Debian kernel in QEMU, without KVM, with an initramfs made of the host's busybox, wg, ip and iperf3. One
// machine serves all tests of a run; each test makes the kernel's interface anew. There are two ways to it, and neither needs
// root:
//
//	Device ─ udp ─ 127.0.0.1 ─ QEMU's user network, which translates addresses ─ eth0 10.0.2.15 ─ wg0
//	Device ─ udp ─ 127.0.0.1 or ::1 ─ line_test.go, which sees, holds and changes ─ eth1 10.9.0.2, fd09::2 ─ wg0
//
// QEMU's user network loses the TOS byte both ways, has no IPv6 beside IPv4 here, and hides what passes; the line carries
// whole Ethernet frames, so that ECN marks, fragments and each single message of the kernel's are seen.
//
// TestDaemon alone needs root, and boots a machine of its own: there cmd/wg0 on a TUN stands for the Device, in a network
// namespace whose TAP is eth1.
//
// Wanted are qemu-system-x86_64, busybox (static), wg, ip, iperf3 and ldd, and a kernel that fetch.sh puts into a folder: that
// named by WIREGUARD_TEST_KERNEL, else wireguard-test-kernel in the user's cache folder. Where something is missing the tests
// skip; they download nothing.
//
//	./fetch.sh && go test .              # the short ones
//	go test . -long                      # also those that wait for minutes of the kernel's clock
//
// machine_test.go boots and talks to the machine, image_test.go makes its initramfs, line_test.go is the wire, pair_test.go is
// what a test begins with.
package kernel
