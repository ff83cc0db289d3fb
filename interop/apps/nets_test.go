package apps

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	mathrand "math/rand"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

const (
	clientIP  = "10.0.0.2"
	serverIP  = "10.0.0.1"
	clientIP6 = "fd00::2"
	serverIP6 = "fd00::1"
)

// nets returns two Nets that a tunnel connects. The tunnel's datagrams cross a wire in memory with the conditions c.
func nets(t *testing.T, c pipe.Conditions) (client, server *netstack.Net) {
	t.Helper()
	wire := pipe.NewNetwork(pipe.Config{Seed: 1})
	wire.SetConditions(c)
	clientKey, serverKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	up := func(key wireguard.PrivateKey, peer wireguard.PeerConfig, addresses ...string) (*netstack.Net, uint16, *pipe.End) {
		var own []netip.Addr
		for _, a := range addresses {
			own = append(own, netip.MustParseAddr(a))
		}
		n, err := netstack.New(netstack.Config{Addresses: own})
		if err != nil {
			t.Fatal(err)
		}
		end := wire.NewEnd()
		peer.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		d, err := wireguard.New(wireguard.Config{PrivateKey: key, Tunnel: n, Bind: end, Peers: []wireguard.PeerConfig{peer}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		return n, d.Status().ListenPort, end
	}
	server, port, end := up(serverKey, wireguard.PeerConfig{PublicKey: clientKey.Public()}, serverIP, serverIP6)
	client, _, _ = up(clientKey, wireguard.PeerConfig{PublicKey: serverKey.Public(), Endpoint: end.Endpoint(port)}, clientIP, clientIP6)
	return client, server
}

// noise returns n pseudorandom bytes. The same seed gives the same bytes.
func noise(seed int64, n int) []byte {
	b := make([]byte, n)
	_, _ = mathrand.New(mathrand.NewSource(seed)).Read(b)
	return b
}

// same checks that got, which arrived, equals want, which was sent.
func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the %d bytes that arrived differ from the %d bytes that were sent", what, len(got), len(want))
	}
}

// certificate returns a TLS configuration for a server with a certificate for the server's addresses, and one for a client that
// trusts this certificate.
func certificate(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(serverIP), net.ParseIP(serverIP6)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: roots}
}
