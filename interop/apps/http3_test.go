//go:build linux || darwin || freebsd

package apps

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// An ecnTrace records what one end of a QUIC connection learns about ECN.
type ecnTrace struct {
	mu       sync.Mutex // guards the fields below
	state    qlog.ECNState
	received map[qlog.ECN]int // number of packets per mark
	ect0, ce uint64           // the highest counts of each mark in an ACK frame
}

func (r *ecnTrace) AddProducer() qlogwriter.Recorder { return r }
func (r *ecnTrace) Close() error                     { return nil }

func (r *ecnTrace) tracer(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return r }

func (r *ecnTrace) RecordEvent(e qlogwriter.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e := e.(type) {
	case qlog.ECNStateUpdated:
		r.state = e.State
	case qlog.PacketReceived:
		if r.received == nil {
			r.received = make(map[qlog.ECN]int)
		}
		r.received[e.ECN]++
		for _, f := range e.Frames {
			if ack, ok := f.Frame.(*qlog.AckFrame); ok {
				r.ect0, r.ce = max(r.ect0, ack.ECT0), max(r.ce, ack.ECNCE)
			}
		}
	}
}

// check checks that one end of the connection has validated ECN, has received packets with ECT(0) and with CE, and has received
// ACK frames that count packets with each of these marks.
func (r *ecnTrace) check(t *testing.T, end string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Logf("%s: state %s, received %v, acknowledged ECT(0) %d, CE %d", end, r.state, r.received, r.ect0, r.ce)
	if r.state != qlog.ECNStateCapable {
		t.Errorf("%s: the state of ECN is %q, want %q", end, r.state, qlog.ECNStateCapable)
	}
	if r.received[qlog.ECT0] == 0 || r.received[qlog.ECNCE] == 0 {
		t.Errorf("%s received packets with marks %v, want some with ECT(0) and some with CE", end, r.received)
	}
	if r.ect0 == 0 || r.ce == 0 {
		t.Errorf("%s: the other end acknowledged %d packets with ECT(0) and %d with CE, want both", end, r.ect0, r.ce)
	}
}

// quicTransport returns a transport that listens on all addresses of n, and the transport's connection.
func quicTransport(t *testing.T, n *netstack.Net) (*quic.Transport, *quicConn) {
	t.Helper()
	u, err := n.ListenUDP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	c, err := newQUICConn(u)
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: c}
	t.Cleanup(func() { _ = tr.Close() })
	return tr, c
}

// TestHTTP3 posts data and reads them back over IPv4 and IPv6, while the wire sets the CE mark on some of the tunnel's datagrams.
// The marks must reach QUIC at both ends. The device copies a mark to the inner packet. ReadMsgUDP and WriteMsgUDP pass marks in
// control messages, which differ between IPv4 and IPv6.
func TestHTTP3(t *testing.T) {
	client, server := nets(t, pipe.Conditions{Delay: time.Millisecond, CE: 0.05})
	serverTLS, clientTLS := certificate(t)
	for name, ip := range map[string]string{"IPv4": serverIP, "IPv6": serverIP6} {
		t.Run(name, func(t *testing.T) {
			testHTTP3(t, client, server, ip, serverTLS.Clone(), clientTLS.Clone())
		})
	}
}

func testHTTP3(t *testing.T, client, server *netstack.Net, ip string, serverTLS, clientTLS *tls.Config) {
	var atServer, atClient ecnTrace
	listen, served := quicTransport(t, server)
	ln, err := listen.ListenEarly(http3.ConfigureTLSConfig(serverTLS), &quic.Config{Tracer: atServer.tracer})
	if err != nil {
		t.Fatal(err)
	}
	s := &http3.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.ServeListener(ln) }()

	dial, dialed := quicTransport(t, client)
	tr := &http3.Transport{TLSClientConfig: clientTLS, QUICConfig: &quic.Config{Tracer: atClient.tracer},
		Dial: func(ctx context.Context, addr string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			return dial.DialEarly(ctx, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)), tlsConfig, config)
		}}
	body := noise(1, 4<<20)
	url := "https://" + netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(served.LocalAddr().(*net.UDPAddr).Port)).String()
	res, err := (&http.Client{Transport: tr}).Post(url, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	same(t, "answer over "+res.Proto, got, body)
	atClient.check(t, "client")
	atServer.check(t, "server")
	if x, y := dialed.segmented.Load(), served.segmented.Load(); runtime.GOOS == "linux" && (x == 0 || y == 0) {
		t.Errorf("%d writes of the client and %d of the server had UDP_SEGMENT, want some of each", x, y)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != http.ErrServerClosed {
		t.Errorf("ServeListener ended with %v, want http.ErrServerClosed", err)
	}
}
