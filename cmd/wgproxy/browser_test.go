//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// serveName starts a DNS server on port 53 of the office. The server knows one name, whose address is 10.7.0.1.
func (o *office) serveName(name string) {
	o.Helper()
	c, err := o.ListenPacket("udp", ":53")
	if err != nil {
		o.Fatal(err)
	}
	o.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			switch q := m.Questions[0]; {
			case q.Name.String() != name+".":
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
					Body: &dnsmessage.AResource{A: [4]byte{10, 7, 0, 1}}}}
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	}()
}

// TestBrowser lets a headless Chromium open a page behind the tunnel through the SOCKS5 proxy, by a name that only the tunnel's DNS
// knows. The page loads a script of 1 MiB and a picture, each on the same server.
func TestBrowser(t *testing.T) {
	if testkit.Race {
		t.Skip("a browser is too slow with the race detector, and would test nothing more")
	}
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs chromium: install it to open a page through the proxy")
	}
	o := newOffice(t)
	o.serveName("intranet.example")
	l, err := o.Listen("tcp", ":8000")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `<title>x</title><p id=host>%s<p id=script><p id=picture><img src=picture.svg onload="document.getElementById('picture').textContent='picture of '+this.naturalWidth"><script src=large.js></script>`, r.Host)
	})
	mux.HandleFunc("/picture.svg", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "image/svg+xml")
		fmt.Fprint(w, `<svg xmlns="http://www.w3.org/2000/svg" width="77" height="1"/>`)
	})
	mux.HandleFunc("/large.js", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "const large = '%s'; document.getElementById('script').textContent = 'script of ' + large.length;", strings.Repeat("x", 1<<20))
	})
	web := &http.Server{Handler: mux}
	go web.Serve(l)
	defer web.Close()
	in := make(sockets)
	socks := inheritTCP(t, in)
	r := launch(t, strings.Replace(o.file(""), "CheckAlive =", "DNS = 10.7.0.1\nCheckAlive =", 1), in, "-socks", socks)
	r.waitFor("waiting for the first byte")

	// This is not the test's temporary folder, because that folder is removed while Chromium's last processes may still write to
	// it.
	home, err := os.MkdirTemp("", "chromium")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for range 50 {
			if os.RemoveAll(home) == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--user-data-dir="+home, "--proxy-server=socks5://"+socks, "--dump-dom",
		"http://intranet.example:8000/")
	c.Env = append(os.Environ(), "HOME="+home)
	var log bytes.Buffer
	c.Stderr = &log
	dom, err := c.Output()
	if err != nil {
		t.Fatalf("chromium failed: %v\n%s", err, log.String())
	}
	for _, want := range []string{"intranet.example:8000", "script of 1048576", "picture of 77"} {
		if !bytes.Contains(dom, []byte(want)) {
			t.Errorf("the page lacks %q: %s", want, dom[:min(len(dom), 2000)])
		}
	}
	if err := ctx.Err(); err != nil {
		t.Error(err)
	}
	r.end()
}
