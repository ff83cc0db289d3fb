// Package wireguard is WireGuard as a library: a Device speaks the whole protocol in process, between a packet side and
// a datagram side that the program chooses.
//
// The packet side is a [Tunnel]: a kernel TUN (transport/tun), a gVisor stack (transport/netstack), an adapter for a
// wireguard-go device (transport/wgo), or the program's own type. The datagram side is a [Bind]: UDP sockets
// (transport/udp), an in-memory wire (transport/pipe), or the program's own relay. A device with one peer:
//
//	device, err := wireguard.New(wireguard.Config{
//		PrivateKey: key,
//		Tunnel:     tunnel,
//		Bind:       &udp.Bind{},
//		Peers: []wireguard.PeerConfig{{
//			PublicKey:  peer,
//			Endpoint:   wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.1:51820")),
//			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
//		}},
//	})
//	...
//	err = device.Up()
//
// ARCHITECTURE.md follows a packet through the code, and has a map of the files.
//
// Unless its comment says otherwise, a type of this package is a plain value: copy it freely, and read it from any number of
// goroutines. A zero field means the default that its comment names.
//
// References to sections are to the whitepaper, https://www.wireguard.com/papers/wireguard.pdf.
package wireguard

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/internal/admission"
	"github.com/seed-86b749af/wireguard/internal/boottime"
	"github.com/seed-86b749af/wireguard/internal/deadlines"
	"github.com/seed-86b749af/wireguard/internal/inbox"
	"github.com/seed-86b749af/wireguard/internal/keylog"
	"github.com/seed-86b749af/wireguard/internal/ratelimit"
	"github.com/seed-86b749af/wireguard/internal/staged"
)

// A Device is one end of any number of tunnels. New makes it. It must not be copied. Its methods may be called from any
// goroutine.
//
//	          Up                Down, or Close
//	(New) ──────────▶ up ──────────────────────▶ down ──▶ ...
//	                   ▲                           │
//	                   └───────────────────────────┘
//	                                Up
//
// Configuration and counters outlive Down; sessions and staged packets do not.
//
// Inside a call that the device makes to the program, do not call the following methods of the device. They would wait until
// that call returns:
//
//   - In Bind.Listen, and in a Socket's Port, Receivers, SetMark and Close: Up, Down, Wake, Close, Configure, SetPeer and
//     RemovePeer. These methods take the configuration lock, which is held during the call.
//   - In Receive, Socket.Send, WritePackets and MTU: Down, Wake, Close, and Configure of another port, because they wait
//     for the receivers' goroutines, which make these calls. Also Handshake and Renew, because they may wait for an
//     answer that this very goroutine has to receive.
//   - In ReadPackets, Tunnel.Close and Config.Lookup: Close, which waits for these calls.
//   - In Config.KeyLog: Close, Handshake and Renew. They wait for handshakes, and handshakes wait for the call.
//   - In Config.Logger: all methods named above. In Config.Clock: any method of the device.
type Device struct {
	tunnel   Tunnel
	bind     Bind
	log      *slog.Logger // nil: silent
	keyLog   keylog.Log
	clock    Clock
	start    time.Duration // the time of clock in New
	random   func([]byte)
	lookup   func(context.Context, PublicKey) (PeerConfig, error)
	headroom int // of bind; see Framer
	helpers  int // Config.Helpers

	sentTimestamp Timestamp // floor of the timestamps that are sent

	maxStagedBytes, maxStagedPerPeer int64

	// mu is the configuration lock. A goroutine that changes the configuration takes it before any other lock. Nobody
	// takes it on the path of a packet.
	mu         sync.Mutex
	port, mark atomic.Uint32 // as configured; written with mu held
	serial     uint64        // the number of peers that were ever added; guarded by mu
	reading    bool          // whether the sources' goroutines were started
	identity   atomic.Pointer[identity]
	running    atomic.Pointer[running] // nil: down
	closing    atomic.Bool

	peers    peerTable
	allowed  allowedIPs[*peer]
	sessions sessionTable

	cookieSecret atomic.Pointer[cookieSecret] // nil: not yet
	cookieMu     sync.Mutex                   // held to renew the secret; guards sourceLimit; only deadlines' lock comes after it
	sourceLimit  ratelimit.Limiter[ratelimit.Source]

	slow          slowPath
	deadlines     deadlines.Queue[*peer] // the nil peer stands for the sweep of sourceLimit
	sweep         int32                  // place of the sweep in deadlines, from 1; guarded by the lock of deadlines
	lookups       admission.Desk[PublicKey, *initiation]
	subscriptions inbox.Inboxes[EventKind, PublicKey, Event]
	pool          staged.Pool[*peer]

	drops         dropCounters
	ecnMismatches atomic.Uint64
	troubled      atomic.Int64 // when the device last reported that receiving failed

	wg        sync.WaitGroup // receivers, sources, workers, lookups, and keepTime
	closeOnce sync.Once
	done      chan struct{}
	err       error // why the device ended; read after done
	closeErr  error // the error of closing the tunnel; read after closeOnce
}

// running is the state of a device from Up to Down.
type running struct {
	socket    atomic.Pointer[openSocket]
	retired   []*openSocket  // sockets that were replaced and are still read; guarded by the configuration lock
	receivers sync.WaitGroup // the receivers of socket, and of the sockets that it replaced
	alarm     boottime.Alarm
	ctx       context.Context // of lookups
	cancel    context.CancelFunc
}

// New checks c and makes a device from it, which does nothing until Up. The error names everything that is wrong with
// c.
func New(c Config) (*Device, error) {
	headroom, changes := headroomOf(c.Bind), make([]PeerChange, len(c.Peers))
	for i := range c.Peers {
		changes[i] = c.Peers[i].Change()
	}
	if err := c.check(headroom, changes); err != nil {
		return nil, err
	}
	d := &Device{
		tunnel: c.Tunnel, bind: c.Bind, log: c.Logger, clock: c.Clock, lookup: c.Lookup,
		headroom: headroom, sentTimestamp: c.SentTimestamp,
		random: func(b []byte) { rand.Read(b) },
		done:   make(chan struct{}),
	}
	if d.clock == nil {
		d.clock = boottime.Clock{}
	}
	d.port.Store(uint32(c.ListenPort))
	d.mark.Store(c.FirewallMark)
	d.sessions.prefix = c.IndexPrefix
	d.setLimits(&c)
	d.keyLog.W = c.KeyLog
	d.start = d.clock.Now()
	d.identity.Store(newIdentity(c.PrivateKey))
	d.changePeers(changes, false)
	if a, ok := d.tunnel.(Attacher); ok {
		a.Attach(d)
	}
	return d, nil
}

// now returns the time that the core uses, in nanoseconds: one hour plus the time since New. It is never zero, because zero means
// never.
func (d *Device) now() int64 { return int64(d.clock.Now()-d.start) + 3600*second }

// Up opens the socket and starts the device: staged packets are sent and persistent keepalives begin. If the device is
// up, Up does nothing. The error wraps that of the Bind or, after Close, net.ErrClosed.
func (d *Device) Up() error {
	d.mu.Lock()
	due, err := d.up()
	r := d.running.Load()
	d.mu.Unlock()
	d.flushAll(due)
	if err == nil && r != nil {
		d.info("up", "port", r.socket.Load().port)
	}
	return err
}

// up does the part of Up that needs mu, which is held. It returns the peers to which something is to be sent
// afterwards.
func (d *Device) up() (due []dueFlush, err error) {
	if d.closing.Load() {
		return nil, errClosed
	}
	if d.running.Load() != nil {
		return nil, nil
	}
	r := new(running)
	s, err := d.listen(r, uint16(d.port.Load()), d.mark.Load())
	if err != nil {
		return nil, err
	}
	r.alarm = d.newAlarm()
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.socket.Store(s)
	d.deadlines.Use(r.alarm) // the alarm rings at once, since deadlines may be left from before
	d.running.Store(r)
	d.wg.Go(func() { d.keepTime(r.alarm) })
	d.startReceivers(r, s)
	d.startSources()
	for p := range d.peers.all() {
		p.mu.Lock()
		if p.lookedUp {
			p.timers.set(timerWipe, d.now()+rejectAfterTime) // forgotten, unless it comes back
			d.schedule(p)
		}
		if p.persistent != 0 || p.staged.N != 0 {
			due = append(due, dueFlush{p, p.persistent != 0})
		}
		p.mu.Unlock()
	}
	return due, nil
}

// Down closes the socket, drops staged packets and wipes all sessions. Configuration and counters stay, and Up brings
// the device back. If the device is down, Down does nothing.
func (d *Device) Down() {
	d.mu.Lock()
	r := d.stop()
	d.mu.Unlock()
	if r != nil {
		r.receivers.Wait()
		d.info("down")
	}
}

// stop takes the device down. It returns the state that ended, or nil if the device was down. mu is held.
func (d *Device) stop() *running {
	r := d.running.Swap(nil)
	if r == nil {
		return nil
	}
	r.cancel()
	d.deadlines.Use(nil)
	r.alarm.Close()
	r.socket.Load().close()
	for _, s := range r.retired {
		s.close()
	}
	why := ErrDown
	if d.closing.Load() {
		why = errClosed
	}
	for p := range d.peers.all() {
		var out outbox
		p.mu.Lock()
		p.stop(&out)
		p.endWaits(why)
		d.dropQueue(p, DropDown)
		d.forgetDeadline(p)
		d.release(p, &out)
	}
	return r
}

// Wake tells the device that the machine slept or that its network changed. Wake opens the socket anew on the same
// port, does what is due, and sends a packet to each peer with a session, so that the peer learns the device's new
// address. While the device is down, Wake does nothing. If the socket cannot be opened, the device stays up without one
// until Wake or a Configure with a ListenPort opens one.
//
// If the socket is a [Renewer], it is closed only after the new one is open, and no packet is lost. Otherwise the old
// socket is closed first, and packets that are sent or arrive before the new one is open are lost.
func (d *Device) Wake() error {
	d.mu.Lock()
	r := d.running.Load()
	if r == nil {
		d.mu.Unlock()
		return nil
	}
	old, err := d.renewSocket(r)
	d.mu.Unlock()
	d.finishSocket(r, old)
	if err != nil {
		d.trouble(err)
	}
	now := d.now()
	d.deadlines.Ring()
	var due []dueFlush
	for p := range d.peers.all() {
		var out outbox
		p.mu.Lock()
		p.wake(now, &out)
		if d.releaseBut(p, &out) {
			due = append(due, dueFlush{p, true})
		}
	}
	d.flushAll(due)
	return err
}

// Close ends the device, and closes its socket and its tunnel. Close may be called in any state, and several times. It
// returns when the device has ended. The error is that of closing the tunnel.
func (d *Device) Close() error {
	d.end(nil)
	return d.closeErr
}

// Done is closed when the device has ended, by Close or because its tunnel failed; see Err.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err returns why the device ended. It returns nil while the device has not ended, and after Close.
func (d *Device) Err() error {
	select {
	case <-d.done:
		return d.err
	default:
		return nil
	}
}

// end ends the device. why is what Err returns from then on.
func (d *Device) end(why error) {
	d.closeOnce.Do(func() {
		d.closing.Store(true)
		d.mu.Lock()
		d.stop()
		d.mu.Unlock() // from here on, only goroutines that wg counts add to it
		if err := d.tunnel.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
			d.closeErr = errorf("close the tunnel: %w", err)
		}
		d.slow.close()
		d.wg.Wait()
		d.subscriptions.Close(errClosed)
		d.err = why
		close(d.done)
	})
}

func (d *Device) newAlarm() boottime.Alarm {
	if _, ok := d.clock.(boottime.Clock); !ok {
		return boottime.NewTimer()
	}
	a, err := boottime.NewAlarm()
	if err != nil {
		d.warn("deadlines will be late after a suspend", "err", err)
	}
	return a
}

// startSources starts to read the tunnel, once in the device's life.
func (d *Device) startSources() {
	if d.reading {
		return
	}
	d.reading = true
	for _, s := range sources(d.tunnel) {
		d.wg.Go(d.newFeed(s).carry)
	}
}

// sourceEnded is called when a source returned an error.
func (d *Device) sourceEnded(err error) {
	if errors.Is(err, io.EOF) || d.closing.Load() {
		return
	}
	d.warn("the tunnel ended", "err", err)
	go d.end(errorf("the tunnel ended: %w", err))
}

// release ends a call to the core of p, which has left its requests in out. The caller has locked p.mu. release schedules
// p's next deadline and publishes events under that lock, unlocks it, and then carries out the other requests.
func (d *Device) release(p *peer, out *outbox) {
	d.pool.Count(p, &p.account, p.staged.Bytes)
	if !p.removed {
		d.schedule(p)
	}
	d.publish(p, out.events) // in their order
	if out.revived {
		p.endWaits(nil)
	}
	visit := (out.initiate || p.handed || p.found) && p.enterSlow()
	p.mu.Unlock()

	d.sessions.free(out.freed...)
	if out.dropped.N > 0 {
		d.drops.add(DropNoSession, out.dropped.Clear())
	}
	for _, e := range out.events { // p.mu is released, since logging runs the program's code
		if d.log != nil { // otherwise the arguments would be allocated for nothing
			d.debug(e.kind.String(), "peer", p.key, "endpoint", e.endpoint)
		}
	}
	if visit {
		d.slow.peer(d, p)
	}
	if out.keepalive || out.flush {
		d.flushAll([]dueFlush{{p, out.keepalive}})
	}
	if out.forget {
		d.forget(p)
	}
}

// releaseBut does what release does, but sends no keepalive. It reports whether the caller is to send one, perhaps
// together with others.
func (d *Device) releaseBut(p *peer, out *outbox) (keepalive bool) {
	keepalive, out.keepalive = out.keepalive, false
	d.release(p, out)
	return keepalive
}

// drop counts packets or messages of p that are dropped. p.mu is held.
func (d *Device) drop(p *peer, r DropReason, n int) {
	if n == 0 {
		return
	}
	p.drop(r, n)
	d.drops.add(r, n)
}

func (d *Device) debug(msg string, args ...any) { d.logAt(slog.LevelDebug, msg, args) }
func (d *Device) info(msg string, args ...any)  { d.logAt(slog.LevelInfo, msg, args) }
func (d *Device) warn(msg string, args ...any)  { d.logAt(slog.LevelWarn, msg, args) }

func (d *Device) logAt(l slog.Level, msg string, args []any) {
	if d.log != nil {
		d.log.Log(context.Background(), l, "wireguard: "+msg, args...)
	}
}
