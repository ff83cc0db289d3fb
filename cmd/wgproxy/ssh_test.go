//go:build unix

package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/crypto/ssh"
)

// serveSSH starts an SSH server on port 22 of the office. A session echoes its input, and ends with status 3. serveSSH
// returns the server's line for known_hosts.
func (o *office) serveSSH() string {
	o.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		o.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		o.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	l, err := o.Listen("tcp", ":22")
	if err != nil {
		o.Fatal(err)
	}
	o.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveSSHConn(c, config)
		}
	}()
	return "office " + signer.PublicKey().Type() + " " + base64.StdEncoding.EncodeToString(signer.PublicKey().Marshal()) + "\n"
}

func serveSSHConn(c net.Conn, config *ssh.ServerConfig) {
	defer c.Close()
	_, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for wanted := range channels {
		ch, requests, err := wanted.Accept()
		if err != nil {
			return
		}
		go func() {
			defer ch.Close()
			for r := range requests {
				_ = r.Reply(r.Type == "exec", nil)
				if r.Type == "exec" {
					go ssh.DiscardRequests(requests)
					_, _ = io.Copy(ch, ch)
					_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{3}))
					return
				}
			}
		}()
	}
}

// TestSSH lets OpenSSH's client reach a server behind the tunnel with a wgproxy process as its ProxyCommand. The client checks the
// server's key and sends 1 MiB through a session. It receives the same bytes, and the session's exit status.
func TestSSH(t *testing.T) {
	client, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("needs ssh: install openssh-client")
	}
	o := newOffice(t)
	known := write(t, "known_hosts", o.serveSSH())
	file := write(t, "ssh.conf", o.file("[STDIOTunnel]\nTarget = 10.7.0.1:22\n"))
	input := make([]byte, 1<<20)
	_, _ = rand.Read(input)
	c := exec.Command(client, "-F", "none", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+known,
		"-o", "GlobalKnownHostsFile=none", "-o", "ConnectTimeout=30", "-o", "ProxyCommand='"+os.Args[0]+"' -c '"+file+"' -s", "anybody@office", "cat")
	c.Env = append(os.Environ(), runMain+"=1")
	var out, log bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(input), &out, &log
	err = c.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !bytes.Equal(out.Bytes(), input) {
		t.Errorf("ssh ended with %v and %d bytes of output, want status 3 and the %d bytes of its input; it printed\n%s", err, out.Len(), len(input), log.String())
	}
}
