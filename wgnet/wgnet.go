// Package wgnet opens network connections through the tunnel that a wg-quick(8) file describes. It needs neither root nor an
// interface of the system.
//
//	t, err := wgnet.Open(ctx, "office.conf")
//	...
//	defer t.Close()
//	web := http.Client{Transport: &http.Transport{DialContext: t.DialContext}}
//	r, err := web.Get("http://10.0.0.1/")
//
// A [Tunnel] is a [wireguard.Device] between UDP sockets and a network stack. The network stack is a [netstack.Net] with the
// file's addresses, name servers and MTU. Open resolves the names of endpoints with the resolver of the host. The Tunnel resolves
// all other names with the file's name servers, through the tunnel. When a peer does not answer, the Tunnel resolves the names of
// its endpoints again and tries all their addresses, and all Endpoint lines of the file, until the peer answers; see package
// follow.
//
// The keys Table, PreUp, PostUp, PreDown, PostDown and SaveConfig have no effect, because a Tunnel has no interface of the
// system.
package wgnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/follow"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// A Config has the settings that a file does not have. The zero value opens a tunnel over UDP sockets. OpenFile copies the
// settings that it needs.
type Config struct {
	// Device has settings of the device, such as Logger, KeyLog and Bind. A nil Bind means UDP sockets on all addresses.
	// PrivateKey, ListenPort, FirewallMark, Peers and Tunnel must be zero: the first four come from the file, and the device's
	// Tunnel is the network stack.
	Device wireguard.Config

	// Net has settings of the network stack, such as Memory and Forward. If Addresses, DNS, Search or MTU is zero, its value comes
	// from the file.
	Net netstack.Config

	// Resolution says how to resolve the names of endpoints. The zero value asks the host's resolver, and retries as wg(8) does
	// until the context ends.
	Resolution conf.Resolution

	// Changes reports changes of the network and resumes from sleep; see [follow.Config]. Nil means the system's reports. A
	// test in virtual time sets a function that returns nil at once.
	Changes func(ctx context.Context, changed func()) error
}

// A Tunnel is an open tunnel. Open and OpenFile make it. Any goroutine may call its methods. It must not be copied.
type Tunnel struct {
	device *wireguard.Device
	net    *netstack.Net

	mu   sync.Mutex // guards file, and serialises calls of Follower.Apply
	file *conf.File // the file that was applied last

	follower *follow.Follower
	unfollow context.CancelFunc
	followed chan struct{} // closed when the goroutine of the Follower has ended
}

// Open opens the tunnel that a file describes. It resolves the names of endpoints, and starts the device. Resolving fails when
// ctx ends. Open does not wait for a session: the first packet begins a handshake, and [Tunnel.Wait] waits for sessions. The
// Tunnel stays open when ctx ends.
//
// Open fails if the file has an unknown key or section, because most of these are misspelt. It also fails if the file has no
// private key or no address, and if a peer has endpoints but none of them resolves.
func Open(ctx context.Context, path string) (*Tunnel, error) {
	f, err := conf.ReadFile(path) // its errors name the file
	if err != nil {
		return nil, fmt.Errorf("wgnet: %w", err)
	}
	t, err := open(ctx, f, Config{})
	if err != nil {
		return nil, fmt.Errorf("wgnet: %s: %w", path, err)
	}
	return t, nil
}

// OpenFile does what Open does, for a file that the program has parsed. A file that was parsed with a [conf.Syntax] may have
// further sections and keys. OpenFile sets the Addr of each endpoint in f whose Host is a name.
func OpenFile(ctx context.Context, f *conf.File, c Config) (*Tunnel, error) {
	t, err := open(ctx, f, c)
	if err != nil {
		return nil, fmt.Errorf("wgnet: %w", err)
	}
	return t, nil
}

func open(ctx context.Context, f *conf.File, c Config) (*Tunnel, error) {
	if err := errors.Join(c.check(), complete(f, &c)); err != nil {
		return nil, err
	}
	if err := f.Resolve(ctx, c.Resolution); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w; check the host's resolver and its network, or write an address instead of the name", err)
		}
		return nil, err
	}
	from, err := f.Config()
	if err != nil {
		return nil, err
	}
	n, err := netstack.New(c.stack(f))
	if err != nil {
		return nil, err
	}
	device := c.Device
	device.PrivateKey, device.ListenPort, device.FirewallMark, device.Peers = from.PrivateKey, from.ListenPort, from.FirewallMark, from.Peers
	device.Tunnel = n
	if device.Bind == nil {
		device.Bind = new(udp.Bind)
	}
	d, err := wireguard.New(device)
	if err != nil {
		n.Close()
		return nil, err
	}
	if err := d.Up(); err != nil {
		d.Close() // also closes n
		return nil, err
	}
	t := &Tunnel{device: d, net: n, file: f.Clone(), followed: make(chan struct{})}
	t.follower = follow.New(d, follow.Config{Resolution: c.Resolution, Changes: c.Changes, Logger: device.Logger})
	t.follower.Set(follow.Endpoints(f))
	ctx, t.unfollow = context.WithCancel(context.Background())
	go func() {
		defer close(t.followed)
		t.follower.Run(ctx)
	}()
	return t, nil
}

// check refuses settings that would contradict the file.
func (c *Config) check() error {
	d := &c.Device
	if !d.PrivateKey.IsZero() || d.ListenPort != 0 || d.FirewallMark != 0 || d.Peers != nil || d.Tunnel != nil {
		return errors.New("Config.Device sets PrivateKey, ListenPort, FirewallMark, Peers or Tunnel: set the first four in the file, and leave Tunnel nil")
	}
	return nil
}

// complete returns an error if the private key or the addresses are missing. wg(8) and wg-quick(8) accept a file without them,
// but a Tunnel does not work without them.
func complete(f *conf.File, c *Config) error {
	var errs []error
	if f.Interface.PrivateKey.IsZero() {
		errs = append(errs, errors.New("[Interface] has no PrivateKey: add the line PrivateKey = and what `wg genkey` prints, and give the other end the public key that belongs to it"))
	}
	if len(f.Interface.Addresses) == 0 && len(c.Net.Addresses) == 0 {
		errs = append(errs, errors.New("[Interface] has no Address: add the address that the other end routes to this one, as in Address = 10.0.0.2"))
	}
	return errors.Join(errs...)
}

// stack returns the configuration of the network stack.
func (c *Config) stack(f *conf.File) netstack.Config {
	n, i := c.Net, &f.Interface
	if len(n.Addresses) == 0 {
		n.Addresses = f.Addrs()
	}
	if len(n.DNS) == 0 {
		n.DNS = i.DNS
	}
	if len(n.Search) == 0 {
		n.Search = i.Search
	}
	if n.MTU == 0 {
		n.MTU = i.MTU
	}
	return n
}

// Wait waits until each peer that has an endpoint also has a session. Connections that are made afterwards do not have to wait
// for a handshake, which takes over 5 s if the initiation is lost.
//
// Wait fails when ctx ends, and after about 100 s without an answer. The error names each peer without a session. If the last
// send to such a peer failed, the error also wraps the error of that send.
func (t *Tunnel) Wait(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for p := range t.device.Peers() {
		if !p.Endpoint.IsValid() {
			continue
		}
		wg.Go(func() {
			if err := t.device.Handshake(ctx, p.PublicKey); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, t.noSession(p.PublicKey, err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// noSession returns an error that says why there is no session with a peer. If the peer did not answer, the error also says what
// to check.
func (t *Tunnel) noSession(key wireguard.PublicKey, err error) error {
	p, _ := t.device.Peer(key)
	if !errors.Is(err, wireguard.ErrNoAnswer) && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("wgnet: %w", err)
	}
	return fmt.Errorf("wgnet: no answer from %v: %w; check the endpoint and the firewalls on the path (UDP), that PublicKey and "+
		"PresharedKey are those of that end, and that it has this end's public key, %v", p.Endpoint, err, t.device.Status().PublicKey)
}

// Device returns the device of the tunnel, which has methods for its status, events and configuration.
func (t *Tunnel) Device() *wireguard.Device { return t.device }

// Net returns the network stack of the tunnel, which has all of package net's functions for connections and names.
func (t *Tunnel) Net() *netstack.Net { return t.net }

// Dial is DialContext without a context.
func (t *Tunnel) Dial(network, address string) (net.Conn, error) {
	return t.net.Dial(network, address)
}

// DialContext connects to an address behind the tunnel, as [netstack.Net.DialContext] does. If the address has a name,
// DialContext resolves it with the file's name servers.
func (t *Tunnel) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return t.net.DialContext(ctx, network, address)
}

// Listen listens on an address of the tunnel, such as ":80" or "10.0.0.2:80", for connections from the tunnel's peers.
func (t *Tunnel) Listen(network, address string) (net.Listener, error) {
	return t.net.Listen(network, address)
}

// ListenPacket is Listen for UDP.
func (t *Tunnel) ListenPacket(network, address string) (net.PacketConn, error) {
	return t.net.ListenPacket(network, address)
}

// LookupHost returns the addresses of a name. It asks the file's name servers, through the tunnel.
func (t *Tunnel) LookupHost(ctx context.Context, host string) ([]string, error) {
	return t.net.LookupHost(ctx, host)
}

// Resolver returns a resolver that asks the file's name servers, through the tunnel.
func (t *Tunnel) Resolver() *net.Resolver { return t.net.Resolver() }

// Reload gives the tunnel the keys, ports and peers of another file, as a whole or not at all. Peers that both files have keep
// their sessions, unless the private key changes. Addresses, DNS, MTU and so on stay as they are. Reload returns the plan of the
// changes, even if the plan cannot be applied. To see the plan beforehand, call [follow.NewPlan] with the file of OpenFile or of
// the last Reload, and the new file.
func (t *Tunnel) Reload(ctx context.Context, f *conf.File) (*follow.Plan, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := follow.NewPlan(t.file, f)
	if err == nil {
		err = t.follower.Apply(ctx, p)
	}
	if err != nil {
		return p, fmt.Errorf("wgnet: reload: %w", err)
	}
	t.file = p.Running()
	return p, nil
}

// Close closes the tunnel and all its connections, listeners and sockets. It may be called again. When Close returns, all
// goroutines of the Tunnel have ended. Afterwards, calls on the Tunnel's connections fail with errors that wrap net.ErrClosed.
func (t *Tunnel) Close() error {
	t.unfollow()
	err := t.device.Close()
	<-t.followed
	return err
}
