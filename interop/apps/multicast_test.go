package apps

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// TestMulticast finds a service as mDNS does: the client sends a question to a multicast group, and a service that has joined the
// group answers the client. A service that has left the group must not receive the question.
func TestMulticast(t *testing.T) {
	client, server := nets(t, pipe.Conditions{Delay: time.Millisecond})
	for _, group := range []string{"224.0.0.251", "ff02::fb"} {
		t.Run(group, func(t *testing.T) {
			at := netip.AddrPortFrom(netip.MustParseAddr(group), 5353)
			service, err := server.ListenMulticastUDP("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer service.Close()
			c, err := client.ListenUDP(netip.AddrPort{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go func() {
				b := make([]byte, 100)
				for {
					n, from, err := service.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					_, _ = service.WriteToUDPAddrPort(append([]byte("answer to "), b[:n]...), from)
				}
			}()
			ask := func(question string, wait time.Duration) (answer string, from netip.AddrPort) {
				t.Helper()
				if _, err := c.WriteToUDPAddrPort([]byte(question), at); err != nil {
					t.Fatal(err)
				}
				_ = c.SetReadDeadline(time.Now().Add(wait))
				b := make([]byte, 100)
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return "", from
				}
				return string(b[:n]), from
			}
			answer, from := ask("who", 20*time.Second)
			if answer != "answer to who" || from.Port() != 5353 || from.Addr().Is4() != at.Addr().Is4() {
				t.Errorf("the client got the answer %q from %v, want one from port 5353 in the group's family", answer, from)
			}
			if err := service.LeaveGroup(at.Addr()); err != nil {
				t.Fatal(err)
			}
			if answer, _ := ask("again", 100*time.Millisecond); answer != "" {
				t.Errorf("the client got %q from a service that left the group, want no answer", answer)
			}
		})
	}
}
