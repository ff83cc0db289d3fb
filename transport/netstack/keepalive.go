package netstack

import (
	"cmp"
	"net"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Package net's defaults for a field of net.KeepAliveConfig that is zero.
const (
	defaultKeepAliveTime  = 15 * time.Second
	defaultKeepAliveCount = 9
)

// keepAlives combines the fields KeepAlive (idle) and KeepAliveConfig (c) of a Dialer or a ListenConfig, as package net does.
func keepAlives(idle time.Duration, c net.KeepAliveConfig) net.KeepAliveConfig {
	if !c.Enable && idle >= 0 {
		return net.KeepAliveConfig{Enable: true, Idle: idle}
	}
	return c
}

// SetKeepAlive says whether the stack sends keep-alive probes on an idle connection. The default is true. Then the stack sends
// the first probe after 15 s without traffic. The connection fails with syscall.ETIMEDOUT after 9 probes, 15 s apart, without an
// answer.
func (c *TCPConn) SetKeepAlive(on bool) error {
	return c.option(func(o *tcpip.SocketOptions) { o.SetKeepAlive(on) })
}

// SetKeepAlivePeriod sets how long a connection must be idle before the stack sends the first keep-alive probe. Zero means 15 s,
// and a negative d changes nothing.
func (c *TCPConn) SetKeepAlivePeriod(d time.Duration) error {
	return c.setKeepAlive(net.KeepAliveConfig{Idle: d, Interval: -1, Count: -1})
}

// SetKeepAliveConfig sets all options of the keep-alive probes. Zero and negative fields mean the same as in package net.
func (c *TCPConn) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	if err := c.SetKeepAlive(config.Enable); err != nil {
		return err
	}
	return c.setKeepAlive(config)
}

// setKeepAlive sets the times and the count of the keep-alive probes.
func (c *TCPConn) setKeepAlive(config net.KeepAliveConfig) error {
	if c.isClosed() {
		return c.wrap("set", net.ErrClosed)
	}
	if err := setKeepAlive(c.ep, config); err != nil {
		return c.wrap("set", c.failure("setsockopt", err))
	}
	return nil
}

func setKeepAlive(ep tcpip.Endpoint, config net.KeepAliveConfig) tcpip.Error {
	if d := config.Idle; d >= 0 {
		o := tcpip.KeepaliveIdleOption(cmp.Or(d, defaultKeepAliveTime))
		if err := ep.SetSockOpt(&o); err != nil {
			return err
		}
	}
	if d := config.Interval; d >= 0 {
		o := tcpip.KeepaliveIntervalOption(cmp.Or(d, defaultKeepAliveTime))
		if err := ep.SetSockOpt(&o); err != nil {
			return err
		}
	}
	if n := config.Count; n >= 0 {
		return ep.SetSockOptInt(tcpip.KeepaliveCountOption, cmp.Or(n, defaultKeepAliveCount))
	}
	return nil
}
