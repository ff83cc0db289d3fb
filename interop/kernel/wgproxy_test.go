//go:build linux

package kernel

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/netlab"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestWgproxy connects a wgproxy process with the kernel. In both inner families, curl fetches 512 KiB from the machine's web
// server through wgproxy's SOCKS5 server. The machine fetches two pages through the tunnel: one from a service on the host's
// loopback, to which the option -R forwards a port, and one from another address of the host, which the [Gateway] section allows.
//
//	curl ─ wgproxy ─ udp ─ QEMU's user network ─ eth0 ─ wg0 ─ httpd
func TestWgproxy(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("needs curl: install curl")
	}
	p := &pair{t: t, m: guest(t), key: wireguard.NewPrivateKey(), kernelKey: wireguard.NewPrivateKey()}
	program := filepath.Join(t.TempDir(), "wgproxy")
	if err := netlab.Build("../..", "github.com/seed-86b749af/wireguard/cmd/wgproxy", program); err != nil {
		t.Fatal(err)
	}
	p.daemonAt = netip.MustParseAddrPort("10.0.2.2:9") // the kernel replaces it when wgproxy's first message arrives
	p.addKernel()
	t.Cleanup(func() { p.m.script("killall httpd; ip link del wg0") })
	p.sh("mkdir -p /tmp/www\ndd if=/dev/urandom of=/tmp/www/file bs=64k count=8 2>/dev/null\nhttpd -p 80 -h /tmp/www")

	host := testkit.HostAddr(t)
	serve := func(at string) (port uint16) {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "for %s", r.Host) })}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		return netip.MustParseAddrPort(l.Addr().String()).Port()
	}
	local, other := serve("127.0.0.1:0"), serve(netip.AddrPortFrom(host, 0).String())

	// Pass the SOCKS5 listener to wgproxy as systemd does, so that the test knows its port.
	socks, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	passed, err := socks.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	at := socks.Addr().String()
	socks.Close()
	file := filepath.Join(t.TempDir(), "office.conf")
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = %v, %v\n[Peer]\nPublicKey = %v\nEndpoint = %v\nAllowedIPs = %v, %v\nPersistentKeepalive = 1\n[Gateway]\nAllow = %v\n",
		p.key.Text(), ourAddrs[0], ourAddrs[1], p.kernelKey.Public(), p.kernelAt(), kernelAddrs[0], kernelAddrs[1], host)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`, program, file, "-socks", at, "-R", fmt.Sprintf("2222=127.0.0.1:%d", local))
	c.ExtraFiles = []*os.File{passed}
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() { c.Process.Kill() })

	want := strings.Fields(p.sh("sha256sum /tmp/www/file"))[0]
	for _, a := range kernelAddrs {
		fetch := exec.Command(curl, "-sS", "--max-time", "60", "-g", "-x", "socks5h://"+at, "http://"+netip.AddrPortFrom(a, 80).String()+"/file")
		fetch.Env = []string{"PATH=" + os.Getenv("PATH")} // without the host's proxy settings
		var page, problem bytes.Buffer
		fetch.Stdout, fetch.Stderr = &page, &problem
		if err := fetch.Run(); err != nil || fmt.Sprintf("%x", sha256.Sum256(page.Bytes())) != want {
			t.Errorf("curl from %v: %v, %d bytes, want those of the machine's file\n%s", a, err, page.Len(), problem.String())
		}
	}
	p.sh("ip route add %v dev wg0\nwg set wg0 peer %v allowed-ips %v,%v,%v", host, p.key.Public(), ourAddrs[0], ourAddrs[1], host)
	for _, a := range []netip.AddrPort{netip.AddrPortFrom(ourAddrs[0], 2222), netip.AddrPortFrom(host, other)} {
		// Use nc, because the wget of a static busybox does not work: it needs libraries to resolve names.
		got := p.sh(`printf 'GET / HTTP/1.0\r\nHost: %v\r\n\r\n' | nc -w 30 %v %d`, a, a.Addr(), a.Port())
		if want := fmt.Sprintf("for %v", a); !strings.HasSuffix(got, want) {
			t.Errorf("the machine fetched %q, want a page that ends with %q", got, want)
		}
	}
	if k := p.kernel(); k.handshake.IsZero() || k.rx == 0 || k.tx < 1<<20 {
		t.Errorf("the kernel's counters for wgproxy are %+v, want a handshake, some bytes received and at least 1 MiB sent", k)
	}
	c.Process.Signal(os.Interrupt)
	if err := testkit.Next(t, ended, "wgproxy ends"); err != nil {
		t.Errorf("wgproxy ended with %v and printed\n%s", err, log.String())
	}
}
