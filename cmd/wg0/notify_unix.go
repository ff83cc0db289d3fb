//go:build unix

package main

import (
	"net"
	"os"
	"strings"
)

const envNotify = "NOTIFY_SOCKET"

// notify tells the service manager, if there is one, what goes on: READY=1, STOPPING=1 (sd_notify(3)). That nobody
// listens is nothing to worry about.
func notify(state string) {
	path := os.Getenv(envNotify)
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") { // an abstract name of Linux
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
