// Package systemd communicates with the service manager that started this process: systemd, or one that is compatible.
package systemd

import (
	"net"
	"os"
	"strings"
)

// EnvNotify is the environment variable that holds the address of the socket of Notify.
const EnvNotify = "NOTIFY_SOCKET"

// Notify sends a state, READY=1 or STOPPING=1, to the service manager (sd_notify(3)). It ignores errors: a service manager may
// not exist or not listen.
func Notify(state string) {
	path := os.Getenv(EnvNotify)
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") { // on Linux, this is an abstract socket
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
