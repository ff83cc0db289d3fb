package apps

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"golang.org/x/crypto/ssh"
)

// An sshServer runs "cat" for sessions, and forwards TCP connections to addresses that its Net reaches.
type sshServer struct {
	net    *netstack.Net
	config *ssh.ServerConfig
}

func serveSSH(t *testing.T, n *netstack.Net, at string) ssh.PublicKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := &sshServer{n, &ssh.ServerConfig{NoClientAuth: true}}
	s.config.AddHostKey(signer)
	l, err := n.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return signer.PublicKey()
}

func (s *sshServer) serve(c net.Conn) {
	_, channels, requests, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		_ = c.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		switch ch.ChannelType() {
		case "session":
			go s.session(ch)
		case "direct-tcpip":
			go s.forward(ch)
		default:
			_ = ch.Reject(ssh.UnknownChannelType, "")
		}
	}
}

// session runs one session: it copies the session's input to its output, and then ends with status 3.
func (s *sshServer) session(ch ssh.NewChannel) {
	c, requests, err := ch.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	for r := range requests {
		_ = r.Reply(r.Type == "exec", nil)
		if r.Type != "exec" {
			continue
		}
		go ssh.DiscardRequests(requests)
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
		_, _ = c.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{3}))
		return
	}
}

func (s *sshServer) forward(ch ssh.NewChannel) {
	var to struct {
		Host   string
		Port   uint32
		Origin string
		From   uint32
	}
	if err := ssh.Unmarshal(ch.ExtraData(), &to); err != nil {
		_ = ch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	out, err := s.net.Dial("tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))))
	if err != nil {
		_ = ch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer out.Close()
	c, requests, err := ch.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	go ssh.DiscardRequests(requests)
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(c, out)
		_ = c.CloseWrite()
	}()
	_, _ = io.Copy(out, c)
	_ = out.(*netstack.TCPConn).CloseWrite()
	<-back
}

// TestSSH runs a command in each of several sessions at once. Then it forwards two connections through the server: one to a
// listener on the server's Net, and one to a listener on the client's Net.
func TestSSH(t *testing.T) {
	client, server := nets(t, pipe.Conditions{Delay: time.Millisecond})
	key := serveSSH(t, server, serverIP+":22")
	conn, err := client.Dial("tcp", serverIP+":22")
	if err != nil {
		t.Fatal(err)
	}
	cc, channels, requests, err := ssh.NewClientConn(conn, serverIP+":22", &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(key)})
	if err != nil {
		t.Fatal(err)
	}
	c := ssh.NewClient(cc, channels, requests)
	defer c.Close()

	ended := make(chan error)
	for i := range 4 {
		go func() {
			s, err := c.NewSession()
			if err != nil {
				ended <- err
				return
			}
			defer s.Close()
			input := noise(int64(i), 2<<20)
			s.Stdin = bytes.NewReader(input)
			output, err := s.Output("cat")
			same(t, "output", output, input)
			ended <- err
		}()
	}
	for range 4 {
		var status *ssh.ExitError
		if err := <-ended; !errors.As(err, &status) || status.ExitStatus() != 3 {
			t.Errorf("a session ended with %v, want status 3", err)
		}
	}

	for _, x := range []struct {
		on *netstack.Net
		ip string
	}{{server, serverIP6}, {client, clientIP}} {
		at := net.JoinHostPort(x.ip, "8080")
		l, err := x.on.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
		forwarded, err := c.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		want := noise(9, 2<<20)
		go func() {
			_, _ = forwarded.Write(want)
			_ = forwarded.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(forwarded)
		if err != nil {
			t.Error(err)
		}
		same(t, "forwarded to "+at, got, want)
		_ = l.Close()
		if _, err := c.Dial("tcp", at); err == nil {
			t.Errorf("the server forwarded a connection to %s although nothing listens there", at)
		}
	}

	// Close the client's Net. A command in an open session must then fail.
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Run("cat"); err == nil {
		t.Error("a command ran over a Net that is closed")
	}
}
