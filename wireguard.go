// Package wireguard is WireGuard as a library. A Device runs the whole protocol inside the program, between two sides that the
// program chooses: a packet side for the IP packets inside the tunnel, and a datagram side for the encrypted messages.
//
// The packet side is a [Tunnel]: a kernel TUN (transport/tun), a gVisor stack (transport/netstack), an adapter for a wireguard-go
// device (transport/wgo), or the program's own type. The datagram side is a [Bind]: UDP sockets (transport/udp), an in-memory
// wire (transport/pipe), or the program's own relay. This code makes a device with one peer, and starts it:
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
// A type of this package is a plain value, unless the comment of the type says otherwise: you may copy it, and any number of
// goroutines may read it. A field with the zero value has the default that the comment of the field names.
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
	"github.com/seed-86b749af/wireguard/internal/keyed"
	"github.com/seed-86b749af/wireguard/internal/keylog"
	"github.com/seed-86b749af/wireguard/internal/ratelimit"
	"github.com/seed-86b749af/wireguard/internal/staged"
)

// A Device is the local end of the tunnels to any number of peers. New makes a Device. A Device must not be copied. Any goroutine
// may call its methods.
//
//	          Up                Down, or Close
//	(New) ──────────▶ up ──────────────────────▶ down ──▶ ...
//	                   ▲                           │
//	                   └───────────────────────────┘
//	                                Up
//
// Down keeps the configuration and the counters, except for the Drops of each PeerStatus. It drops the sessions, and the packets
// that wait for a session.
//
// The device calls methods and functions of the program. Inside such a call, do not call the methods of the device that this list
// names, because they would wait until the call returns:
//
//   - In Bind.Listen, in a Socket's Port, Receivers, SetMark, Renew, Retire and Close, and in Queues: Up, Down, Wake, Close,
//     Configure, SetPeer and RemovePeer. All seven need the configuration lock, which the device holds during these calls.
//   - In Receive, Socket.Send, WritePackets and MTU: Down, Wake, Close, and Configure with another port, because these wait
//     for the goroutines of the receivers, which make such calls. Also Handshake and Renew, because they may wait for a
//     response that the calling goroutine itself has to receive.
//   - In ReadPackets, Tunnel.Close and Config.Lookup: Close, which waits until these calls have returned.
//   - In Config.KeyLog: Close, Handshake and Renew. They wait for handshakes, and a handshake waits until KeyLog has returned.
//   - In Config.Logger: all methods that this list has named so far.
//   - In Config.Clock: any method of the device.
type Device struct {
	tunnel   Tunnel
	bind     Bind
	log      *slog.Logger // nil means that nothing is logged
	keyLog   keylog.Log
	clock    Clock
	start    time.Duration // what clock.Now returned in New
	random   func([]byte)
	lookup   func(context.Context, PublicKey) (PeerConfig, error)
	headroom int // the Bind's headroom in bytes; see Framer
	helpers  int // Config.Helpers

	sentTimestamp Timestamp // Config.SentTimestamp; every timestamp in an initiation that the device sends is greater

	maxStagedBytes, maxStagedPerPeer int64

	// mu is the configuration lock. A goroutine that changes the configuration takes mu before any other lock. The code that
	// sends and receives packets never takes mu.
	mu         sync.Mutex
	port, mark atomic.Uint32 // as configured; written with mu held
	serial     uint64        // the number of peers that were ever added; guarded by mu
	reading    bool          // whether startSources has started to read the tunnel
	identity   atomic.Pointer[identity]
	running    atomic.Pointer[running] // nil while the device is down
	closing    atomic.Bool

	peers    keyed.Table[*peer]
	allowed  allowedIPs[*peer]
	sessions sessionTable

	cookieSecret atomic.Pointer[cookieSecret] // nil until the first secret is made
	cookieMu     sync.Mutex                   // held to renew cookieSecret; guards sourceLimit; only deadlines' lock comes after
	sourceLimit  ratelimit.Limiter[ratelimit.Source]

	slow          slowPath
	deadlines     deadlines.Queue[*peer] // an entry for the nil peer is the next sweep of sourceLimit
	sweep         int32                  // position of the sweep in deadlines, from 1; 0 means none; guarded by that queue's lock
	lookups       admission.Desk[PublicKey, *initiation]
	subscriptions inbox.Inboxes[EventKind, PublicKey, Event]
	pool          staged.Pool[*peer]

	drops         dropCounters
	ecnMismatches atomic.Uint64
	troubled      atomic.Int64 // when the device last reported that receiving failed

	wg        sync.WaitGroup // counts the goroutines of receivers, sources, workers, lookups and keepTime
	closeOnce sync.Once
	done      chan struct{}
	err       error // why the device ended; read only after done is closed
	closeErr  error // the error of Tunnel.Close; read only after closeOnce.Do has returned
}

// running is the state of a device from Up to Down.
type running struct {
	socket    atomic.Pointer[openSocket]
	retired   []*openSocket  // sockets that were replaced and are still read; guarded by the configuration lock
	receivers sync.WaitGroup // counts the goroutines that read socket, or a socket that it replaced
	alarm     boottime.Alarm
	ctx       context.Context // the context of the calls of Config.Lookup
	cancel    context.CancelFunc
}

// New checks c and makes a device from c. The device does nothing until Up is called. The error names everything that is wrong
// with c.
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

// now returns the time in the form in which the device stores times: nanoseconds, counted from one hour before New. It is never
// zero, because a stored time of zero means never.
func (d *Device) now() int64 { return int64(d.clock.Now()-d.start) + 3600*second }

// Up opens the socket and starts the device. The device then reads the tunnel and sends persistent keepalives. If the device is
// up already, Up does nothing. The error wraps the error of the Bind. After Close, it wraps net.ErrClosed.
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

// up does the part of Up that needs the configuration lock. The caller holds this lock. After the caller has released the lock, it
// passes due to flushAll, which sends the peers in due their staged packets or keepalives.
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
	d.deadlines.Use(r.alarm) // the alarm rings at once, because deadlines may have passed while the device was down
	d.running.Store(r)
	d.wg.Go(func() { d.keepTime(r.alarm) })
	d.startReceivers(r, s)
	d.startSources()
	for p := range d.allPeers() {
		p.mu.Lock()
		if p.lookedUp {
			p.timers.set(timerWipe, d.now()+rejectAfterTime) // the peer is forgotten after 180 s, unless it makes a session
			d.schedule(p)
		}
		if p.persistent != 0 || p.staged.N != 0 {
			due = append(due, dueFlush{p, p.persistent != 0})
		}
		p.mu.Unlock()
	}
	return due, nil
}

// Down closes the socket, drops the packets that wait for a session, and wipes all sessions. It keeps the configuration and the
// counters, except for the Drops of each PeerStatus. Up starts the device again. If the device is down already, Down does
// nothing.
func (d *Device) Down() {
	d.mu.Lock()
	r := d.stop()
	d.mu.Unlock()
	if r != nil {
		r.receivers.Wait()
		d.info("down")
	}
}

// stop takes the device down. It returns the running state that it ended, or nil if the device was down already. The caller holds
// mu.
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
	for p := range d.allPeers() {
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

// Wake brings the device up to date after the machine has slept or its network has changed. Wake opens a new socket on the same
// port, handles the deadlines that have passed, and sends a packet to each peer with a session. From this packet, the peer learns
// the device's new address. While the device is down, Wake does nothing. If no socket can be opened, the device stays up without
// a socket, until Wake or a Configure with a ListenPort opens one.
//
// If the old socket is a [Renewer] and its Renew succeeds, Wake closes it only after the new socket is open, and no packet is lost.
// Otherwise Wake closes the old socket first. Packets that are sent or arrive before the new socket is open are then lost.
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
	for p := range d.allPeers() {
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

// Close ends the device, and closes its socket and its tunnel. Close may be called in any state, and several times. It returns
// when the device has ended. The error is that of Tunnel.Close.
func (d *Device) Close() error {
	d.end(nil)
	return d.closeErr
}

// Done returns a channel that is closed when the device has ended, after Close or because its tunnel failed. Err then tells which.
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

// end ends the device. From then on, Err returns the error why.
func (d *Device) end(why error) {
	d.closeOnce.Do(func() {
		d.closing.Store(true)
		d.mu.Lock()
		d.stop()
		d.mu.Unlock() // from here on, wg.Go is called only by goroutines that wg counts and, until slow.close, to start workers
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

// startSources starts one goroutine for each source of the tunnel, in the first call only.
func (d *Device) startSources() {
	if d.reading {
		return
	}
	d.reading = true
	for _, s := range sources(d.tunnel) {
		d.wg.Go(d.newFeed(s).carry)
	}
}

// sourceEnded is called when a source has returned err.
func (d *Device) sourceEnded(err error) {
	if errors.Is(err, io.EOF) || d.closing.Load() {
		return
	}
	d.warn("the tunnel ended", "err", err)
	go d.end(errorf("the tunnel ended: %w", err))
}

// release unlocks p.mu, which the caller has locked, and carries out the requests that methods of p.peerState have left in out.
// Before it unlocks p.mu, it schedules p's next deadline and publishes the events. It carries out the other requests after that.
func (d *Device) release(p *peer, out *outbox) {
	d.pool.Count(p, &p.account, p.staged.Bytes)
	if !p.removed {
		d.schedule(p)
	}
	d.publish(p, out.events) // in the order in which they happened
	if out.revived {
		p.endWaits(nil)
	}
	visit := (out.initiate || p.handed || p.found) && p.enterSlow()
	p.mu.Unlock()

	d.sessions.free(out.freed...)
	if out.dropped.N > 0 {
		d.drops.add(DropNoSession, out.dropped.Clear())
	}
	for _, e := range out.events { // logging runs the program's code, so p.mu is unlocked before
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

// releaseBut does what release does, but sends no keepalive. It reports whether the caller has to send a keepalive to p. So the
// caller can send the keepalives of several peers together.
func (d *Device) releaseBut(p *peer, out *outbox) (keepalive bool) {
	keepalive, out.keepalive = out.keepalive, false
	d.release(p, out)
	return keepalive
}

// drop counts n packets or messages of p as dropped for the reason r. The caller holds p.mu.
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
