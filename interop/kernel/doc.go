// Package kernel tests a wireguard.Device with the Linux kernel's WireGuard as its peer. It contains only tests.
//
// The tests boot a Debian kernel in QEMU, without KVM, with an initramfs made of the host's busybox, wg, ip and iperf3. All tests
// of a run use one such virtual machine, and each test creates the kernel's interface anew. Two network paths lead to the
// machine. Neither path needs root:
//
//	Device ─ udp ─ 127.0.0.1 ─ QEMU's user network, which translates addresses ─ eth0 10.0.2.15 ─ wg0
//	Device ─ udp ─ 127.0.0.1 or ::1 ─ line_test.go, which records, delays and changes datagrams ─ eth1 10.9.0.2, fd09::2 ─ wg0
//
// The first path, QEMU's user network, does not carry the TOS byte in either direction, carries only IPv4 here, and does not show
// its packets to the test. The second path, the line, carries whole Ethernet frames, so a test sees ECN marks, fragments and each
// message of the kernel.
//
// Only TestDaemon needs root. It boots another machine. Instead of a Device, it runs cmd/wg0 with a TUN interface, in a network
// namespace. A TAP interface of that namespace is connected to eth1 of the machine in QEMU.
//
// The tests need qemu-system-x86_64, busybox (static), wg, ip, iperf3 and ldd. They also need a kernel, which fetch.sh puts into
// the folder named by WIREGUARD_TEST_KERNEL, or into wireguard-test-kernel in the user's cache folder. If something is
// missing, the tests skip. They download nothing.
//
//	./fetch.sh && go test .              # the short ones
//	go test . -long                      # also those that wait for minutes on the kernel's clock
//	go test . -run TestEcho -echoes 100  # bulk in both directions, for longer
//
// machine_test.go boots the machine and runs scripts in it, image_test.go makes its initramfs, line_test.go contains the second
// path, and pair_test.go sets up a test.
package kernel
