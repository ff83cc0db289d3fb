//go:build unix

package systemd

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestFiles checks that a child gets a socket and a pipe that are passed as systemd passes them. The shell sets LISTEN_PID to its
// process ID, which the child then has.
func TestFiles(t *testing.T) {
	const child = "SYSTEMD_TEST_CHILD"
	if os.Getenv(child) != "" {
		files, err := Files()
		fmt.Printf("%d files, %v; LISTEN_FDS=%q\n", len(files), err, os.Getenv("LISTEN_FDS"))
		for _, f := range files {
			info, err := f.Stat()
			fmt.Println(info.Mode().Type(), err)
		}
		os.Exit(0)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	for _, c := range []struct{ name, environment, want string }{
		{"two", "LISTEN_PID=$$ LISTEN_FDS=2", "2 files, <nil>; LISTEN_FDS=\"\"\nS--------- <nil>\np--------- <nil>\n"},
		{"for another process", "LISTEN_PID=1 LISTEN_FDS=2", "0 files, <nil>; LISTEN_FDS=\"\"\n"},
		{"none", "LISTEN_PID=$$", "0 files, <nil>; LISTEN_FDS=\"\"\n"},
		{"too many", "LISTEN_PID=$$ LISTEN_FDS=65", "0 files, LISTEN_FDS is \"65\": want a number of descriptors from 0 to 64; LISTEN_FDS=\"\"\n"},
		{"not a number", "LISTEN_PID=$$ LISTEN_FDS=x", "0 files, LISTEN_FDS is \"x\": want a number of descriptors from 0 to 64; LISTEN_FDS=\"\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", c.environment+` exec "$0" -test.run=^TestFiles$`, os.Args[0])
			cmd.Env = append(os.Environ(), child+"=1")
			cmd.ExtraFiles = []*os.File{socket, pipe}
			out, err := cmd.CombinedOutput()
			if got := string(out); err != nil || !strings.EqualFold(got, c.want) {
				t.Errorf("the child printed %q, error %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv(EnvNotify, path)
	Notify("READY=1")
	b := make([]byte, 100)
	if n, err := c.Read(b); string(b[:n]) != "READY=1" || err != nil {
		t.Errorf("the service manager received %q, error %v; want READY=1", b[:n], err)
	}
	t.Setenv(EnvNotify, path+"x")
	Notify("READY=1") // no process listens at this path
}
