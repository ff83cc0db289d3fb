package udp

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/sys/unix"
)

// inNamespace calls testkit.InNamespace. If that returns true, inNamespace sets the loopback interface up with an MTU of 1300
// bytes.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if !testkit.InNamespace(t) {
		return false
	}
	loopbackUp(t, 1300)
	return true
}

// loopbackUp does what the command "ip link set lo up mtu N" does.
func loopbackUp(t *testing.T, mtu uint32) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var ifreq struct {
		name  [unix.IFNAMSIZ]byte
		value uint32
		_     [20]byte
	}
	copy(ifreq.name[:], "lo")
	for _, r := range []struct{ request, value uint32 }{{unix.SIOCSIFMTU, mtu}, {unix.SIOCSIFFLAGS, unix.IFF_UP}} {
		ifreq.value = r.value
		if r.request == unix.SIOCSIFFLAGS {
			*(*uint16)(unsafe.Pointer(&ifreq.value)) = uint16(r.value)
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(r.request), uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
			t.Fatal(errno)
		}
	}
}

// TestSmallMTU checks that datagrams arrive even if they are larger than the MTU of the path. The kernel then refuses trains,
// but splits single datagrams into fragments.
func TestSmallMTU(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		gso := x.paths[f].socket().gso
		for i := range 3 {
			sent := trainOf(i, 10*1400+7, 1400, y.at(f))
			sent.Endpoint.Source = loopback(f)
			x.send(sent)
			wantTrain(t, y.receive(f, 11), sent)
		}
		if st := x.Stats(); gso && st.Refused != 1 {
			t.Errorf("the system refused %d trains, want only the first", st.Refused)
		}
		fits := trainOf(9, 10*1200, 1200, y.at(f))
		x.send(fits)
		wantTrain(t, y.receive(f, 10), fits)
	})
}

// TestIPv6SwitchedOff checks that a Bind works over IPv4 if IPv6 is switched off with the kernel's parameter disable_ipv6.
func TestIPv6SwitchedOff(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, name := range []string{"all", "default", "lo"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil {
			t.Skipf("needs a namespace in which IPv6 can be switched off: %v", err)
		}
	}
	for _, v := range variants {
		x, y := v.listen(t), v.listen(t)
		x.send(trainOf(1, 3000, 1000, y.at(ipv4)))
		y.receive(ipv4, 3)
		ts := []wireguard.Train{trainOf(1, 10, 10, y.at(ipv6))}
		if x.Send(ts); ts[0].Err == nil {
			t.Errorf("%s: sending over IPv6 succeeded, although IPv6 is switched off", v.name)
		}
	}
}

// TestAddressTakenAway checks that a server sends its answer from another address if its host loses the address to which the
// client has sent.
func TestAddressTakenAway(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const add, remove = unix.RTM_NEWADDR, unix.RTM_DELADDR
	second := netip.MustParseAddr("198.51.100.1")
	for _, v := range variants {
		if !v.control() {
			continue
		}
		changeAddress(t, add, second)
		client, server := v.listen(t), v.listen(t)
		client.send(trainOf(1, 10, 10, wireguard.EndpointOf(netip.AddrPortFrom(second, server.Port()))))
		back := server.receive(ipv4, 1)[0].from
		if back.Source != second {
			t.Fatalf("%s: the datagram was received at the address %v, want %v", v.name, back.Source, second)
		}
		// The server received the datagram from the address that is removed next, so the test sets the client's endpoint to
		// 127.0.0.1.
		back.Addr = client.at(ipv4).Addr
		changeAddress(t, remove, second)
		ts := []wireguard.Train{trainOf(2, 3000, 1000, back)}
		server.send(ts...)
		wantTrain(t, client.receive(ipv4, 3), ts[0])
		if ts[0].Endpoint.Source.IsValid() {
			t.Errorf("%s: the endpoint still has the source %v, which the host has lost", v.name, ts[0].Endpoint.Source)
		}
	}
}

// changeAddress adds an address to the loopback interface or removes it.
func changeAddress(t *testing.T, request uint16, a netip.Addr) {
	t.Helper()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var m struct {
		unix.NlMsghdr
		unix.IfAddrmsg
		unix.RtAttr
		addr [4]byte
	}
	m.NlMsghdr = unix.NlMsghdr{Len: uint32(unsafe.Sizeof(m)), Type: request, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE}
	m.IfAddrmsg = unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: 32, Index: uint32(lo.Index)}
	m.RtAttr = unix.RtAttr{Len: unix.SizeofRtAttr + 4, Type: unix.IFA_LOCAL}
	m.addr = a.As4()
	b := unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m))
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4096)
	if n, _, err := unix.Recvfrom(fd, answer, 0); err != nil || n < unix.SizeofNlMsghdr+4 {
		t.Fatalf("netlink answered with %d bytes, error %v; want an acknowledgement", n, err)
	}
	if errno := *(*int32)(unsafe.Pointer(&answer[unix.SizeofNlMsghdr])); errno != 0 {
		t.Fatal(syscall.Errno(-errno))
	}
}
