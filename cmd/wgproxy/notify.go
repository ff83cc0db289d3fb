package main

import (
	"net"
	"os"
	"strings"
)

const envNotify = "NOTIFY_SOCKET"

// notify sends a state, READY=1 or STOPPING=1, to the service manager (sd_notify(3)). It ignores errors: a service manager may
// not exist or not listen.
func notify(state string) {
	path := os.Getenv(envNotify)
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") { // Linux: an abstract socket
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
