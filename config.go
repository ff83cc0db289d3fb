package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// A Config says what a new device is. Tunnel and Bind must be set; the zero value of every other field means its
// default. The device copies what it needs: the Config and its slices stay the caller's.
type Config struct {
	// PrivateKey is the device's identity. Zero: none yet; the device makes and answers no handshake until
	// Configure sets one.
	PrivateKey PrivateKey

	// ListenPort is the UDP port. Zero: the Bind chooses one each time the device goes up.
	ListenPort uint16

	// FirewallMark marks what the sockets send, where the Bind can. Zero: no mark.
	FirewallMark uint32

	// Peers are those from the start. None: Configure and Lookup add some.
	Peers []PeerConfig

	// Tunnel is where packets come from and go to. It must implement PacketSource, Queues or Attacher as well. The
	// device closes it in Close.
	Tunnel Tunnel

	// Bind is where datagrams come from and go to. The device closes the sockets that it makes.
	Bind Bind

	// Lookup supplies a peer that is not configured when its first, authentic initiation arrives. It is called
	// on a goroutine of its own, at most MaxLookups at a time and once at a time for each key; its context ends when the
	// device goes down, and Close waits for it. Returning an error, or a PeerConfig for another key, leaves the initiation unanswered.
	// A peer that came this way is forgotten when it has no session left: 540 s after the last one, or 180 s after
	// it was added when none was confirmed. An EventPeerForgotten then carries the Timestamp to return from
	// Lookup the next time, so that a recorded initiation cannot bring the peer back; a subscriber that missed
	// events has missed some of those. A looked-up peer that Configure names is an ordinary peer from then on.
	// Nil: strangers are dropped.
	Lookup func(ctx context.Context, key PublicKey) (PeerConfig, error)

	// MaxLookedUp limits the peers that Lookup supplied and that are not forgotten yet. Zero: 65536.
	MaxLookedUp int

	// MaxLookups limits the calls of Lookup at one time: if each takes 20 ms, 256 let in 12,800 strangers a second. At the
	// limit, initiations of other strangers are dropped. With an eighth of it under way, the device is under load: it then
	// takes only initiations whose sender shows, with a cookie, that it receives at its address, and 20 a second from each
	// address. So a flood of made-up keys from forged addresses does not take the places. Zero: 256.
	MaxLookups int

	// StagedBytes limits the memory of packets that wait for a handshake, over all peers, in bytes. When it is used up, the
	// peer whose packets take most loses its oldest one. So if n peers have packets waiting, each can have an n-th of it.
	// Besides, at most 128 packets per peer wait. Zero: 16 MiB.
	StagedBytes int

	// StagedPerPeer limits the part of StagedBytes that one peer's packets may take, in bytes. The peer's oldest packets
	// are dropped to make room. Zero: 512 KiB. Negative: no limit besides StagedBytes.
	StagedPerPeer int

	// Helpers limits the goroutines that help one batch on idle cores to encrypt or decrypt. Zero: one for each core but
	// the batch's own. Negative: none, so that each batch stays with one goroutine.
	Helpers int

	// IndexPrefix is how every session index of the device begins, so that a program can tell apart devices that share
	// one socket. The zero value is no prefix. With 16 bits, 49,152 sessions and handshakes can be under way.
	IndexPrefix IndexPrefix

	// SentTimestamp is less than every timestamp that the device sends in its initiations, to any peer. A device that
	// takes the place of another one with the same private key sets it to a time that the predecessor has not reached.
	// Zero: the wall clock alone counts.
	SentTimestamp Timestamp

	// Logger is told of handshakes (Debug), of the device's life (Info) and of trouble with sockets (Warn). What
	// a packet or a stranger does is never above Debug. Nil: silent.
	Logger *slog.Logger

	// KeyLog is told the secrets of each handshake, so that Wireshark can open what was captured: its preference
	// wg.keylog_file names a file of these lines. Whoever has them can read all traffic, so it is for debugging only.
	// Each handshake is one Write of four lines, before its message is sent; Writes do not overlap, and the handshake
	// waits for them. After an error nothing more is written, and Logger is warned. Nil: no secret leaves the device.
	KeyLog io.Writer
	// Clock tells the time. Nil: the system's.
	Clock Clock
}

// A PeerConfig says who a peer is and what it may send. Zero fields mean none.
type PeerConfig struct {
	// PublicKey is whose configuration it is. Zero is refused.
	PublicKey PublicKey

	// PresharedKey is mixed into each handshake with the peer, which must have the same. Zero: none.
	PresharedKey PresharedKey

	// Endpoint is where the peer is at first; it moves with the peer's authentic packets. Zero: known once the
	// peer sends something.
	Endpoint Endpoint

	// AllowedIPs are the addresses that the peer may send from and that are routed to it. The longest prefix
	// wins. A prefix belongs to one peer: the last one it is given to. Bits beyond the prefix length are cleared.
	AllowedIPs []netip.Prefix

	// PersistentKeepalive is the interval, in whole seconds up to 65535, at which an empty packet is sent if
	// nothing else was, so that a NAT on the way keeps its mapping. Zero: off.
	PersistentKeepalive time.Duration

	// MTU is the largest packet, in bytes, that is sent to the peer, from 576 to 65535, where the path to the peer takes
	// less than the Tunnel brings. A larger packet is dropped and its sender told by ICMP, with two exceptions. An
	// IPv4 packet that may be fragmented is sent whole, in an outer packet that may be fragmented too. And IPv6
	// packets of up to 1280 bytes are always sent, since IPv6 has no smaller MTU. Zero: the MTU of the Tunnel.
	MTU int

	// Timestamp is the newest initiation already seen from this peer: older and equal ones are replays. Zero: none.
	Timestamp Timestamp

	// SentTimestamp is the newest initiation timestamp that this device, or a predecessor with its private key, sent to
	// the peer. Those sent from now on are greater. Zero: none.
	SentTimestamp Timestamp
}

// A Change is a difference to a running device's configuration: what it does not name stays as it is, sessions
// included. All of it is checked first; if anything is wrong, nothing is changed.
type Change struct {
	PrivateKey   *PrivateKey // nil: unchanged; zero key: none any more
	ListenPort   *uint16     // nil: unchanged
	FirewallMark *uint32     // nil: unchanged; 0: none any more

	// ReplacePeers removes every peer that Peers does not name. A peer that it names keeps its session.
	ReplacePeers bool

	// Peers are carried out in order; one peer may be named several times.
	Peers []PeerChange
}

// A PeerChange is a difference to one peer, or a new peer: a peer that does not exist is added.
type PeerChange struct {
	PublicKey PublicKey // whose configuration is changed; zero is refused

	// Remove removes the peer with its session; other fields are ignored. Removing a peer that does not exist is
	// no error.
	Remove bool
	// UpdateOnly leaves out the whole change where the peer does not exist.
	UpdateOnly bool

	PresharedKey        *PresharedKey  // nil: unchanged; zero key: none any more. Used from the next handshake on.
	Endpoint            *Endpoint      // nil: unchanged; zero: forgotten
	PersistentKeepalive *time.Duration // nil: unchanged; 0: off
	MTU                 *int           // nil: unchanged; 0: that of the Tunnel
	Timestamp           *Timestamp     // nil: unchanged; an older one than the peer's is ignored
	SentTimestamp       *Timestamp     // nil: unchanged; an older one than the peer's is ignored

	// ReplaceAllowedIPs takes all prefixes from the peer before AllowedIPs are added.
	ReplaceAllowedIPs bool
	AllowedIPs        []netip.Prefix // added, and taken from whoever has them
	RemoveAllowedIPs  []netip.Prefix // taken from this peer, if they are its; after AllowedIPs were added
}

// Change returns the difference that adds the peer c, or gives an existing peer with the same key the configuration c. A
// zero Endpoint leaves the one that the peer was heard from. The result shares AllowedIPs with c.
func (c PeerConfig) Change() PeerChange {
	change := PeerChange{
		PublicKey:           c.PublicKey,
		PresharedKey:        &c.PresharedKey,
		PersistentKeepalive: &c.PersistentKeepalive,
		MTU:                 &c.MTU,
		Timestamp:           &c.Timestamp,
		SentTimestamp:       &c.SentTimestamp,
		ReplaceAllowedIPs:   true,
		AllowedIPs:          c.AllowedIPs,
	}
	if c.Endpoint != (Endpoint{}) {
		change.Endpoint = &c.Endpoint
	}
	return change
}

const (
	maxLookedUp      = 1 << 16
	maxLookups       = 256
	maxStagedBytes   = 16 << 20
	maxStagedPerPeer = 512 << 10
)

// setLimits applies the limits of c and their defaults.
func (d *Device) setLimits(c *Config) {
	d.lookups.MaxAdmitted = cmp.Or(c.MaxLookedUp, maxLookedUp)
	d.lookups.Max = cmp.Or(c.MaxLookups, maxLookups)
	d.maxStagedBytes = int64(cmp.Or(c.StagedBytes, maxStagedBytes))
	d.maxStagedPerPeer = int64(cmp.Or(c.StagedPerPeer, maxStagedPerPeer))
	if c.StagedPerPeer < 0 {
		d.maxStagedPerPeer = d.maxStagedBytes
	}
	d.helpers = c.Helpers
}

const (
	minMTU  = 576  // "every internet destination must be able to receive" it (RFC 791, section 3.2)
	minMTU6 = 1280 // (RFC 8200, section 5)

	maxHeadroom  = 64
	maxIndexBits = 16
)

// headroomOf returns the bytes that b wants in front of each datagram.
func headroomOf(b Bind) int {
	if f, ok := b.(Framer); ok {
		return f.Headroom()
	}
	return 0
}

// check returns everything that is wrong with c, whose Bind wants headroom and whose peers are changes, or nil.
func (c *Config) check(headroom int, changes []PeerChange) error {
	var errs []error
	if c.Tunnel == nil {
		errs = append(errs, errors.New("wireguard: Config.Tunnel is nil: set a packet side, as transport/netstack or transport/tun make them"))
	} else if !hasPackets(c.Tunnel) {
		errs = append(errs, fmt.Errorf("wireguard: Config.Tunnel: no packets can come from a %T: implement PacketSource, Queues or Attacher", c.Tunnel))
	}
	if c.Bind == nil {
		errs = append(errs, errors.New("wireguard: Config.Bind is nil: set a datagram side, as transport/udp makes it"))
	}
	if headroom < 0 || headroom > maxHeadroom {
		errs = append(errs, fmt.Errorf("wireguard: Config.Bind: a %T wants %d bytes of headroom: want 0 to %d", c.Bind, headroom, maxHeadroom))
	}
	if x := c.IndexPrefix; x.Bits < 0 || x.Bits > maxIndexBits || x.Value>>x.Bits != 0 {
		errs = append(errs, fmt.Errorf("wireguard: Config.IndexPrefix is %d in %d bits: want 0 to %d bits, and a value that fits into them", x.Value, x.Bits, maxIndexBits))
	}
	for _, limit := range []struct {
		name string
		n    int
	}{{"StagedBytes", c.StagedBytes}, {"MaxLookedUp", c.MaxLookedUp}, {"MaxLookups", c.MaxLookups}} {
		if limit.n < 0 {
			errs = append(errs, fmt.Errorf("wireguard: Config.%s is %d: want 0 for the default, or more", limit.name, limit.n))
		}
	}
	seen := make(map[PublicKey]bool, len(c.Peers))
	for i := range c.Peers {
		key := c.Peers[i].PublicKey
		if seen[key] {
			errs = append(errs, fmt.Errorf("wireguard: peer %d (%v): configured twice; join the two into one", i, key))
		}
		seen[key] = true
	}
	return errors.Join(append(errs, checkPeers(changes, c.PrivateKey.Public()))...)
}

// checkPeers returns everything that is wrong with changes to the peers of a device whose own key is self.
func checkPeers(changes []PeerChange, self PublicKey) error {
	var errs []error
	for i := range changes {
		c := &changes[i]
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("wireguard: peer %d (%v): "+format, append([]any{i, c.PublicKey}, args...)...))
		}
		if c.PublicKey.IsZero() {
			wrong("public key is missing; every peer is named by one")
		}
		if c.Remove {
			continue
		}
		if c.PublicKey == self && !self.IsZero() {
			wrong("this is the device's own public key; a device cannot be its own peer, name the other end's")
		}
		if k := c.PersistentKeepalive; k != nil && (*k < 0 || *k > 65535*time.Second || *k%time.Second != 0) {
			wrong("persistent keepalive %v: want whole seconds from 1 to 65535, or 0 for off", *k)
		}
		if m := c.MTU; m != nil && *m != 0 && (*m < minMTU || *m > maxPacket) {
			wrong("MTU %d: want %d to %d, or 0 for that of the tunnel", *m, minMTU, maxPacket)
		}
		if e := c.Endpoint; e != nil && e.Link == nil && e.Addr != (netip.AddrPort{}) {
			switch {
			case !e.Addr.IsValid() || e.Addr.Port() == 0:
				wrong("endpoint %v: want an address and a port other than 0", e.Addr)
			case e.Addr.Addr().IsUnspecified() || e.Addr.Addr().IsMulticast():
				wrong("endpoint %v: want the address of one host", e.Addr)
			}
		}
		for _, p := range slices.Concat(c.AllowedIPs, c.RemoveAllowedIPs) {
			switch {
			case !p.IsValid():
				wrong("an allowed IP is not a valid prefix; want one as in 10.0.0.0/24 or 2001:db8::/64")
			case p.Addr().Is4In6():
				wrong("allowed IP %v: write an IPv4 prefix as such, not mapped into IPv6", p)
			}
		}
	}
	return errors.Join(errs...)
}
