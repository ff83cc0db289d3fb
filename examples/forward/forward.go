package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// forward brings the tunnel up and forwards until ctx ends or the device does. When it returns, nothing of it is left.
func (o options) forward(ctx context.Context, out io.Writer) (err error) {
	if o.peer.Endpoint, err = resolve(ctx, o.endpoint); err != nil {
		return err
	}
	stack, err := netstack.New(netstack.Config{Addresses: o.addresses, DNS: o.dns, MTU: o.mtu})
	if err != nil {
		return err
	}
	device, err := wireguard.New(wireguard.Config{
		PrivateKey: o.key,
		Tunnel:     stack,
		Bind:       &udp.Bind{},
		Peers:      []wireguard.PeerConfig{o.peer},
		Logger:     o.log,
	})
	if err != nil {
		return errors.Join(err, stack.Close())
	}
	defer device.Close() // and with it the stack
	if err := device.Up(); err != nil {
		return err
	}

	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, f := range o.forwards {
		l, err := net.Listen("tcp", f.listen)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { l.Close() })
		fmt.Fprintf(out, "%v is %s\n", l.Addr(), f.target)
		all.Go(func() { o.serve(ctx, l, stack, f.target) })
	}
	select {
	case <-ctx.Done():
		return nil
	case <-device.Done():
		return device.Err()
	}
}

// serve forwards the connections that l accepts until ctx ends.
func (o options) serve(ctx context.Context, l net.Listener, stack *netstack.Net, target string) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				o.log.Warn("accept", "on", l.Addr(), "err", err)
			}
			return
		}
		all.Go(func() {
			defer c.Close()
			if err := join(ctx, c, stack, target); err != nil && ctx.Err() == nil {
				o.log.Warn("forward", "from", c.RemoteAddr(), "to", target, "err", err)
			} else {
				o.log.Debug("forwarded", "from", c.RemoteAddr(), "to", target)
			}
		})
	}
}

// join dials the target and copies both ways, until both ends have said that they are done, one broke off, or ctx ends.
func join(ctx context.Context, c net.Conn, stack *netstack.Net, target string) error {
	far, err := stack.DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() {
		c.Close()
		far.Close()
	})
	defer stop()
	there := make(chan error, 1)
	go func() { there <- pass(far, c) }()
	return errors.Join(pass(c, far), <-there)
}

// A halfCloser can say that it has no more to send, and still receive.
type halfCloser interface{ CloseWrite() error }

// pass copies all that comes from src to dst, and then the end of it. If that fails it closes both, so that the other
// direction ends as well.
func pass(dst, src net.Conn) error {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.(halfCloser).CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
	return err
}
