package follow

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// message returns a message of netlink.
func message(kind, flags uint16, data []byte) []byte {
	native := binary.NativeEndian
	b := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(data)))
	b = native.AppendUint16(native.AppendUint16(b, kind), flags)
	b = append(b, make([]byte, 8)...) // the sequence number and the port ID
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&3)...)
}

// addressMessage returns a netlink message about an IPv4 address of an interface.
func addressMessage(kind uint16, index, addr uint32) []byte {
	b := []byte{unix.AF_INET, 24, 0, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, index)
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, unix.IFA_LOCAL)
	return message(kind, 0, binary.BigEndian.AppendUint32(b, addr))
}

// TestTopologyBound checks that a change of an address is reported even if the machine has more addresses than a topology keeps.
func TestTopologyBound(t *testing.T) {
	var n topology
	for i := range uint32(2 * maxKnown) {
		if !n.update(addressMessage(unix.RTM_NEWADDR, 1, i), false) {
			t.Fatalf("update does not report the new address %d as a change", i)
		}
	}
	if len(n.addrs) != maxKnown {
		t.Errorf("the topology keeps %d addresses, want %d", len(n.addrs), maxKnown)
	}
	if !n.update(addressMessage(unix.RTM_DELADDR, 1, 2*maxKnown-1), false) {
		t.Error("update does not report the removal of an address beyond the limit as a change")
	}
	if n.update(addressMessage(unix.RTM_NEWADDR, 1, 0), false) {
		t.Error("update reports a known address as a change")
	}
}

// FuzzTopology checks that update does not read beyond the end of a message, that a topology has at most maxKnown values of each
// kind, and that a repeated message is not a change.
func FuzzTopology(f *testing.F) {
	route := append([]byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, unix.RTN_UNICAST, 0, 0, 0, 0}, 8, 0, unix.RTA_OIF, 0, 2, 0, 0, 0)
	link := append([]byte{0, 0, 0, 0, 2, 0, 0, 0, unix.IFF_UP | unix.IFF_RUNNING, 0, 0, 0, 0, 0, 0, 0}, 8, 0, unix.IFLA_IFNAME, 0, 'w', 'g', '0', 0)
	f.Add(addressMessage(unix.RTM_NEWADDR, 2, 7), addressMessage(unix.RTM_DELADDR, 2, 7))
	f.Add(message(unix.RTM_NEWLINK, 0, link), addressMessage(unix.RTM_NEWADDR, 2, 7))
	f.Add(message(unix.RTM_NEWROUTE, 0, route), message(unix.RTM_NEWROUTE, unix.NLM_F_REPLACE, route))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		n := topology{tunnel: "wg0"}
		n.update(a, true)
		n.update(b, false)
		count := 0
		messages(b, func(uint16, uint16, []byte) { count++ })
		if count == 1 && n.update(b, false) {
			t.Errorf("update reports the repeated message % x as a change", b)
		}
		if len(n.links) > maxKnown || len(n.addrs) > maxKnown || len(n.routes) > maxKnown {
			t.Errorf("the topology keeps %d links, %d addresses and %d routes, more than the limit", len(n.links), len(n.addrs), len(n.routes))
		}
	})
}
