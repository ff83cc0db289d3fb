package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// run is the program: it starts the tunnel, downloads through it, and tells how that went.
func (o options) run(ctx context.Context, out io.Writer) error {
	server, client, err := startTunnel(o)
	if err != nil {
		return err
	}
	defer server.device.Close()
	defer client.device.Close()
	for _, e := range []*end{server, client} {
		s := e.device.Status()
		fmt.Fprintf(out, "%-10s  %v  %v, UDP port %d\n", e.name, s.PublicKey, e.addr, s.ListenPort)
	}

	start := time.Now()
	within, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := client.device.Handshake(within, server.device.Status().PublicKey); err != nil {
		return err
	}
	fmt.Fprintf(out, "handshake   %s\n", durationOf(time.Since(start)))

	address := net.JoinHostPort(server.addr.String(), "80")
	l, err := server.stack.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s inside the tunnel: %w", address, err)
	}
	web, err := serve(ctx, l, newFile(o.size, 1))
	if err != nil {
		l.Close()
		return err
	}
	defer web.Close()
	transport := &http.Transport{DialContext: client.stack.DialContext}
	defer transport.CloseIdleConnections()
	if err := o.download(ctx, out, &http.Client{Transport: transport}, "http://"+address); err != nil {
		return err
	}
	return showPeers(out, server, client)
}

// download fetches the page and the file.
func (o options) download(ctx context.Context, out io.Writer, c *http.Client, url string) error {
	n, err := getPage(ctx, c, url+"/")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "page        %d bytes from %s/\n", n, url)
	sum, took, err := getFile(ctx, c, url+"/file", &progress{out: out, terminal: isTerminal(out)})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "digest      SHA-256 %x, as sent\n", sum)
	fmt.Fprintf(out, "throughput  %s: %s in %s\n", rateOf(o.size, took), bytesOf(o.size), durationOf(took))
	return nil
}

// showPeers prints what each end knows of its peer.
func showPeers(out io.Writer, ends ...*end) error {
	var errs []error
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "device\tpeer\tendpoint\tallowed\tsession\treceived\tsent\tdropped\tnext")
	for _, e := range ends {
		for p := range e.device.Peers() {
			session := "none"
			if p.Session {
				session = durationOf(p.SessionAge) + " old"
			}
			next := "nothing"
			if p.NextReason != "" {
				next = fmt.Sprintf("%s in %s", p.NextReason, durationOf(p.NextDeadline))
			}
			fmt.Fprintf(w, "%s\t%.8s…\t%v\t%v\t%s\t%s\t%s\t%d\t%s\n", e.name, p.PublicKey, p.Endpoint,
				strings.Trim(fmt.Sprint(p.AllowedIPs), "[]"), session, bytesOf(int64(p.Received.Bytes)), bytesOf(int64(p.Sent.Bytes)),
				p.Drops.Total(), next)
			if !p.Session {
				errs = append(errs, fmt.Errorf("the %s has no session at the end", e.name))
			}
		}
	}
	return errors.Join(append(errs, w.Flush())...)
}

// A progress shows how far a download is: on a terminal in one line that is written again and again, elsewhere in four.
type progress struct {
	out      io.Writer
	terminal bool

	start, shown time.Time
	done, total  int64
	quarter      int64 // of total, that was shown last
}

func (p *progress) begin(total int64) {
	p.total, p.start = total, time.Now()
	p.shown = p.start
}

// Write counts b.
func (p *progress) Write(b []byte) (int, error) {
	p.done += int64(len(b))
	switch quarter := 4 * p.done / max(p.total, 1); {
	case p.terminal:
		if now := time.Now(); now.Sub(p.shown) >= 100*time.Millisecond {
			p.shown = now
			p.show("\r%-70s")
		}
	case quarter != p.quarter:
		p.quarter = quarter
		p.show("%s\n")
	}
	return len(b), nil
}

func (p *progress) end() {
	if p.terminal {
		p.show("\r%-70s\n")
	}
}

// show prints the state in a format for one string.
func (p *progress) show(format string) {
	fmt.Fprintf(p.out, format, fmt.Sprintf("download    %3d %%  %s of %s  %s", 100*p.done/max(p.total, 1),
		bytesOf(p.done), bytesOf(p.total), rateOf(p.done, time.Since(p.start))))
}

// isTerminal reports whether w is one, or another device that is no file and no pipe.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func bytesOf(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
}

func rateOf(n int64, d time.Duration) string {
	return fmt.Sprintf("%.2f Gbit/s", float64(n)*8/max(d.Seconds(), 1e-9)/1e9)
}

func durationOf(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
