package uapi

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
)

// largeRequest returns a request with 5,000 peers with 13 allowed IPs each, 65,000 in all, of which every second one is
// IPv6.
func largeRequest() string {
	var b strings.Builder
	b.WriteString("replace_peers=true\n")
	n := uint32(0)
	for peer := range 5000 {
		fmt.Fprintf(&b, "public_key=%064x\nreplace_allowed_ips=true\nendpoint=192.0.2.1:%d\n", peer+1, peer+1)
		for range 13 {
			b.WriteString("allowed_ip=")
			if n++; n%2 == 0 {
				b.WriteString(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24|n))).String() + "/32\n")
			} else {
				a := [16]byte{0: 0xfd}
				binary.BigEndian.PutUint32(a[12:], n)
				b.WriteString(netip.AddrFrom16(a).String() + "/128\n")
			}
		}
	}
	return b.String()
}

// TestLarge checks that Set and Get handle a large configuration in bounded time and memory. It sets the configuration, reads it
// back and sets it again, which takes about a second. The limits are ten times the usual time and memory, so the test finds
// quadratic costs.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("with the race detector, this test takes up to 20 s, so it does not run with -short")
	}
	d := newDown(t)
	request := largeRequest()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	set(t, d, request)
	out := get(t, d)
	runtime.ReadMemStats(&after)
	if n := strings.Count(out, "allowed_ip="); n != 65000 {
		t.Errorf("Get wrote %d allowed IPs, want 65000", n)
	}
	if n := strings.Count(out, "public_key="); n != 5000 {
		t.Errorf("Get wrote %d peers, want 5000", n)
	}
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 500 {
		t.Errorf("Set and Get allocated %d MiB, want at most 500", mib)
	}
	set(t, d, settable(out))
	if get(t, d) != out {
		t.Error("setting the answer of Get changed the device")
	}
	set(t, d, "replace_peers=true\n")

	// One peer gets all allowed IPs, and a request removes them one by one.
	one := "public_key=" + hexKey(1) + "\n"
	var add, remove strings.Builder
	for line := range strings.Lines(out) {
		if prefix, ok := strings.CutPrefix(line, "allowed_ip="); ok {
			add.WriteString(line)
			remove.WriteString("allowed_ip=-" + prefix)
		}
	}
	var adding, removing time.Duration
	for range 3 { // the shortest of three times counts, because the machine may do other work meanwhile
		begin := time.Now()
		set(t, d, one+add.String())
		added := time.Now()
		set(t, d, one+remove.String())
		adding, removing = added.Sub(begin), time.Since(added)
		if s, _ := d.Peer(public(1)); s.AllowedIPs != 0 {
			t.Fatalf("%d allowed IPs are left after all were removed", s.AllowedIPs)
		}
		if removing < 10*adding {
			return
		}
	}
	t.Errorf("adding 65,000 allowed IPs takes %v and removing them one by one takes %v, want less than 10 times as long", adding, removing)
}

// A largestWrite counts all bytes that are written, and the bytes of the largest single write.
type largestWrite struct{ all, largest int }

func (w *largestWrite) Write(b []byte) (int, error) {
	w.all, w.largest = w.all+len(b), max(w.largest, len(b))
	return len(b), nil
}

// TestGetIsWrittenInParts checks that a get request does not compose its whole answer in memory.
func TestGetIsWrittenInParts(t *testing.T) {
	if testing.Short() {
		t.Skip("with the race detector, this test takes up to 20 s, so it does not run with -short")
	}
	d := newDown(t)
	set(t, d, largeRequest())
	var w largestWrite
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := Get(&w, d); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if w.all < 2<<20 || w.largest > answerBuffer {
		t.Errorf("Get wrote %d bytes, up to %d at a time; want at least 2 MiB in parts no larger than its buffer", w.all, w.largest)
	}
	if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 5000*64+64<<10 {
		t.Errorf("Get allocated %d bytes for 5,000 peers with 65,000 prefixes, want at most 64 per peer and 64 KiB", bytes)
	}
}

// TestSlowReaderHoldsUpNobody checks that a client that does not read its answer does not delay the requests of others.
func TestSlowReaderHoldsUpNobody(t *testing.T) {
	d := newDown(t)
	set(t, d, largeRequest())
	s := &Server{Device: d}
	client, server := net.Pipe() // the pipe has no buffer
	defer client.Close()
	go s.answer(server, bufio.NewReaderSize(server, readBuffer))
	if _, err := io.WriteString(client, "get=1\n\n"); err != nil {
		t.Fatal(err)
	}
	answer := bufio.NewReader(client)
	if line, err := answer.ReadString('\n'); err != nil || !strings.HasPrefix(line, "public_key=") {
		t.Fatalf("the answer begins with %q, error %v; want a public key", line, err)
	}
	other := &script{in: bytes.NewReader([]byte("set=1\nfwmark=1\n\n"))}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.answer(other, bufio.NewReaderSize(other.in, readBuffer))
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a set request waited 20 s for another client that does not read its answer")
	}
	if got := other.out.String(); got != "errno=0\n\n" || d.Status().FirewallMark != 1 {
		t.Errorf("the set request was answered with %q, want errno=0 and the mark set", got)
	}
	for n := 1; ; {
		line, err := answer.ReadString('\n')
		if err != nil {
			t.Fatalf("the answer ended after %d peers: %v", n, err)
		}
		if strings.HasPrefix(line, "public_key=") {
			n++
		}
		if line == "errno=0\n" {
			if n != 5000 {
				t.Errorf("the answer has %d peers, want 5000", n)
			}
			return
		}
	}
}

func BenchmarkSet(b *testing.B) {
	d, request := newDown(b), largeRequest()
	b.ReportAllocs()
	for b.Loop() {
		if err := Set(strings.NewReader(request), d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	d := newDown(b)
	if err := Set(strings.NewReader(largeRequest()), d); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := Get(io.Discard, d); err != nil {
			b.Fatal(err)
		}
	}
}
