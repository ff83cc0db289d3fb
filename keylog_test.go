package wireguard_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// keyLogPair brings up two devices that have a preshared key. The device with the configuration a logs its keys. Each device
// begins one handshake and sends a packet in the new session. keyLogPair returns a capture of all datagrams, the private key of
// the device that logs, the public key of its peer, and the preshared key.
func keyLogPair(t *testing.T, a wireguard.Config) (capture []byte, static wireguard.PrivateKey, peer wireguard.PublicKey, psk wireguard.PresharedKey) {
	var file bytes.Buffer
	insideA, insideB := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	static, psk = wireguard.NewPrivateKey(), wireguard.NewPresharedKey()
	other := wireguard.NewPrivateKey()
	n := pipe.NewNetwork(pipe.Config{Seed: 1})
	n.Tap(pipe.WritePcap(&file))
	endA, endB := n.NewEnd(), n.NewEnd()
	tunA, tunB := pipe.NewTunnel(1420), pipe.NewTunnel(1420)
	device := func(c wireguard.Config, key wireguard.PrivateKey, end, to *pipe.End, tun *pipe.Tunnel, peer wireguard.PublicKey, inside netip.Addr) *wireguard.Device {
		c.PrivateKey, c.Bind, c.Tunnel, c.ListenPort, c.Clock = key, end, tun, 51820, pipe.NewClock()
		c.Peers = []wireguard.PeerConfig{{PublicKey: peer, PresharedKey: psk, Endpoint: to.Endpoint(51820), AllowedIPs: []netip.Prefix{netip.PrefixFrom(inside, 32)}}}
		d, err := wireguard.New(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	da := device(a, static, endA, endB, tunA, other.Public(), insideB)
	db := device(wireguard.Config{}, other, endB, endA, tunB, static.Public(), insideA)
	defer da.Close()
	defer db.Close()

	send := func(from, to *pipe.Tunnel, src, dst netip.Addr, text string) {
		packet := pipe.UDPPacket(netip.AddrPortFrom(src, 7000), netip.AddrPortFrom(dst, 7000), []byte(text))
		if !from.TrySend(packet) {
			t.Fatal("the tunnel did not accept the packet")
		}
		synctest.Wait()
		if got := to.TryReceive(); !bytes.Equal(got, packet) {
			t.Fatalf("received %d bytes, want the %d that were sent", len(got), len(packet))
		}
	}
	send(tunA, tunB, insideA, insideB, "asked by a")
	time.Sleep(6 * time.Second) // a device sends at most one initiation per 5 s
	if err := db.Renew(t.Context(), static.Public()); err != nil {
		t.Fatal(err)
	}
	send(tunB, tunA, insideB, insideA, "asked by b")
	return file.Bytes(), static, other.Public(), psk
}

func TestKeyLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log writes
		_, static, peer, psk := keyLogPair(t, wireguard.Config{KeyLog: &log})
		if len(log) != 2 {
			t.Fatalf("the device wrote to the key log %d times, want one write for each of 2 handshakes:\n%s", len(log), log.text())
		}
		var ephemeral [2]string
		for i, w := range log {
			want := []string{
				"LOCAL_STATIC_PRIVATE_KEY = " + static.Text(),
				"REMOTE_STATIC_PUBLIC_KEY = " + peer.String(),
				"LOCAL_EPHEMERAL_PRIVATE_KEY = ",
				"PRESHARED_KEY = " + psk.Text(),
				"",
			}
			lines := strings.Split(w, "\n")
			if len(lines) != len(want) {
				t.Fatalf("handshake %d: %d lines, want %d:\n%s", i, len(lines), len(want), w)
			}
			rest, ok := strings.CutPrefix(lines[2], want[2])
			if key, err := base64.StdEncoding.DecodeString(rest); !ok || err != nil || len(key) != 32 {
				t.Fatalf("handshake %d: line 3 is %q, want an ephemeral key", i, lines[2])
			}
			ephemeral[i], want[2] = rest, lines[2]
			for j := range want {
				if lines[j] != want[j] {
					t.Errorf("handshake %d: line %d is %q, want %q", i, j+1, lines[j], want[j])
				}
			}
		}
		if ephemeral[0] == ephemeral[1] {
			t.Error("two handshakes have the same ephemeral key")
		}
	})
}

// With the key log, Wireshark decrypts the captured sessions, no matter whether the device that logs was the initiator or the
// responder.
func TestWiresharkReadsTheKeyLog(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("needs tshark: install it, so that its dissector decrypts the session")
	}
	var log writes
	var capture []byte
	synctest.Test(t, func(t *testing.T) { capture, _, _, _ = keyLogPair(t, wireguard.Config{KeyLog: &log}) })

	dir := t.TempDir()
	pcap, keys := filepath.Join(dir, "outer.pcap"), filepath.Join(dir, "keys")
	if err := errors.Join(os.WriteFile(pcap, capture, 0o600), os.WriteFile(keys, []byte(log.text()), 0o600)); err != nil {
		t.Fatal(err)
	}
	read := func(options ...string) string {
		c := exec.Command(tshark, append([]string{"-n", "-r", pcap, "-Y", "wg", "-T", "fields", "-e", "ip.src", "-e", "data.text", "-e", "data.data"}, options...)...)
		c.Env = append(os.Environ(), "HOME="+dir) // so that tshark does not read the user's preferences
		out, err := c.Output()
		if err != nil {
			t.Fatalf("tshark: %v", err)
		}
		return string(out)
	}
	const a, b = "61736b65642062792061", "61736b65642062792062" // "asked by a" and "asked by b"
	if out := read(); strings.Contains(out, a) || strings.Contains(out, b) {
		t.Fatalf("tshark shows the packets without the keys:\n%s", out)
	}
	if out := read("-o", "wg.keylog_file:"+keys); !strings.Contains(out, a) || !strings.Contains(out, b) {
		t.Errorf("tshark did not decrypt the packets, want both %s and %s in\n%s", a, b, out)
	}
}

// If a write to the key log fails, the device continues to work, never writes to the key log again, and logs one warning.
func TestKeyLogThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var log failing
		keyLogPair(t, wireguard.Config{KeyLog: &log, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if log != 1 {
			t.Errorf("the device wrote to the key log %d times, want no write after the first one failed", log)
		}
		if n := strings.Count(out.String(), io.ErrShortWrite.Error()); n != 1 {
			t.Errorf("the device logged %d warnings, want 1:\n%s", n, out.String())
		}
	})
}

// writes records the writes to a key log. It needs no lock, because the device never writes to the key log on two goroutines at
// the same time.
type writes []string

func (w *writes) Write(b []byte) (int, error) { *w = append(*w, string(b)); return len(b), nil }

func (w *writes) text() string { return strings.Join(*w, "") }

// failing is a Writer whose writes all fail. It counts them.
type failing int

func (f *failing) Write([]byte) (int, error) { *f++; return 0, io.ErrShortWrite }
