//go:build unix

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestUDPAndHTTPS checks that [UDPProxyTunnel] carries datagrams in both directions, and that an [http] section with a
// certificate speaks HTTPS with curl.
func TestUDPAndHTTPS(t *testing.T) {
	o := newOffice(t)
	echo, err := o.ListenPacket("udp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			echo.WriteTo(b[:n], from)
		}
	}()
	in := make(sockets)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in["udp "+udp.LocalAddr().String()] = udp
	web := inheritTCP(t, in)
	cert, key := certificate(t)
	r := launch(t, o.file("[UDPProxyTunnel]\nBindAddress = "+udp.LocalAddr().String()+"\nTarget = 10.7.0.1:7\nInactivityTimeout = 0\n"+
		"[http]\nBindAddress = "+web+"\nCertFile = "+cert+"\nKeyFile = "+key+"\n"), in)
	r.waitFor("waiting for the first byte")
	c, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(testkit.Patience))
	b := make([]byte, 1500)
	if _, err := c.Write([]byte("datagram")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b); err != nil || string(b[:n]) != "datagram" {
		t.Errorf("the echo through the tunnel is %q, %v, want datagram", b[:n], err)
	}
	if got := curl(t, "--proxy-cacert", cert, "-x", "https://localhost:"+port(web), "--noproxy", "", "http://10.7.0.1/"); got != "hello from 10.7.0.1" {
		t.Errorf("through the HTTPS proxy, the body is %q, want hello from 10.7.0.1", got)
	}
	r.end()
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// certificate writes a certificate for localhost and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	key = write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return cert, key
}
