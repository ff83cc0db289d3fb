package netstack

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

const residentCase = "NETSTACK_TEST_RESIDENT"

// floods contains functions that fill the memory of h's Net, which has the default Config.Memory. Each function fills one kind of
// memory, except for the last, which fills all kinds.
var floods = map[string]func(*testing.T, *handPeer){
	"empty datagrams": func(t *testing.T, h *handPeer) { floodSockets(t, h, "") },
	"large datagrams": func(t *testing.T, h *handPeer) { floodSockets(t, h, strings.Repeat("x", 1300)) },
	"fragments":       floodFragments,
	"accept queues":   floodAcceptQueues,
	"SYNs":            floodSYNs,
	"all of them": func(t *testing.T, h *handPeer) {
		floodSockets(t, h, "")
		floodFragments(t, h)
		floodAcceptQueues(t, h)
		floodSYNs(t, h)
	},
}

// floodSockets sends a million datagrams to 100 sockets from which the program does not read.
func floodSockets(t *testing.T, h *handPeer, data string) {
	const sockets, each = 100, 10_000
	for i := range sockets {
		to := netip.AddrPortFrom(a4, uint16(2000+i))
		c, err := h.n.ListenUDP(to)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadBuffer(1 << 30); err != nil {
			t.Fatal(err)
		}
		p := udpPacket(netip.AddrPortFrom(b4, 5), to, data)
		for range each {
			h.write(t, p)
		}
	}
}

// floodFragments sends the first fragments of 80,000 packets. Half of these fragments are short.
func floodFragments(t *testing.T, h *handPeer) {
	for name, f := range fragmentFlows {
		whole := udpPacket(f[0], f[1], strings.Repeat("x", 1400))
		for i := range 20_000 {
			h.write(t, cutUp(whole, uint32(i), 8, 0)[0], cutUp(whole, uint32(100_000+i), 1280, 0)[0])
		}
		t.Logf("%s: so far, Stats count %d dropped fragments", name, h.n.Stats().FragmentsDropped)
	}
}

// floodAcceptQueues opens connections to eight listeners, and fills each connection with single bytes. Eight parties open up to 250
// connections each to the same listener. Each listener has other parties, so there are 64 parties.
func floodAcceptQueues(t *testing.T, h *handPeer) {
	from := b4
	for i := range 8 {
		to := netip.AddrPortFrom(a4, uint16(100+i))
		if _, err := h.n.ListenTCP(to); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			from = from.Next()
			for k := range 250 {
				c, ok := h.tryConnect(t, netip.AddrPortFrom(from, uint16(1000+k)), to, 20*time.Millisecond)
				if !ok {
					break
				}
				for range 200 {
					h.write(t, c.segment(flagACK, []byte("x")).packet())
					c.next++
				}
				h.forget()
			}
		}
	}
}

// floodSYNs sends 200,000 SYNs to 20 listeners.
func floodSYNs(t *testing.T, h *handPeer) {
	for i := range 20 {
		to := netip.AddrPortFrom(a6, uint16(300+i))
		if _, err := h.n.ListenTCP(to); err != nil {
			t.Fatal(err)
		}
		for k := range 10_000 {
			h.write(t, synFrom(netip.AddrPortFrom(b6, uint16(1000+k)), to))
			if k%100 == 0 {
				h.forget()
			}
		}
	}
}

// TestResident runs each flood in a separate process. It checks that the resident memory of the process never exceeds 2 x
// Config.Memory + 40 MiB, and that the heap at the end is at most Config.Memory + 30 MiB.
func TestResident(t *testing.T) {
	if name, child := os.LookupEnv(residentCase); child {
		resides(t, floods[name])
		return
	}
	if testing.Short() || testkit.Race {
		t.Skip("this test floods a Net for some seconds and measures memory, so it does not run with -short or the race detector")
	}
	for name := range floods {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestResident$", "-test.v")
			cmd.Env = append(os.Environ(), residentCase+"="+name)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "MiB resident") {
				t.Fatalf("the child process failed or did not report its memory: %v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// resides runs one flood and checks the memory of the process.
func resides(t *testing.T, flood func(*testing.T, *handPeer)) {
	n, h := byHand(t)
	flood(t, h)
	h.forget()
	peak := statusKiB(t, "VmHWM")
	used, heap := n.Stats().Memory, heapInUse()
	t.Logf("%d MiB resident at most, %d MiB at the end; %d MiB of heap; Stats count %d MiB", peak>>10, statusKiB(t, "VmRSS")>>10, heap>>20, used>>20)
	if most := int64(2*defaultMemory + 40<<20); peak<<10 > most {
		t.Errorf("the process had up to %d MiB of resident memory, want at most %d", peak>>10, most>>20)
	}
	if most := int64(defaultMemory + 30<<20); heap > most {
		t.Errorf("the heap has %d MiB, want at most %d", heap>>20, most>>20)
	}
	if used > defaultMemory {
		t.Errorf("Stats count %d MiB, want at most %d", used>>20, defaultMemory>>20)
	}
}

// statusKiB returns a field of /proc/self/status, in KiB.
func statusKiB(t *testing.T, field string) (n int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			if _, err := fmt.Sscan(v, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("/proc/self/status has no %s", field)
	return 0
}
