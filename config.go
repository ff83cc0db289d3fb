package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// A Config describes a new device. Tunnel and Bind must be set. The zero value of any other field means its default. The
// device copies what it needs, so the caller may change the Config and its slices afterwards.
type Config struct {
	// PrivateKey is the device's identity. Zero means none: the device neither makes nor answers handshakes until
	// Configure sets a key.
	PrivateKey PrivateKey

	// ListenPort is the UDP port. Zero means that the Bind chooses a port each time the device goes up.
	ListenPort uint16

	// FirewallMark is the mark of the datagrams that the sockets send. Zero means no mark. Up fails with any other value if
	// the Bind's sockets are not Markers.
	FirewallMark uint32

	// Peers are the first peers of the device. Configure and Lookup add others later.
	Peers []PeerConfig

	// Tunnel is where packets come from and go to. It must implement PacketSource, Queues or Attacher as well. The
	// device closes it in Close.
	Tunnel Tunnel

	// Bind is where datagrams come from and go to. The device closes the sockets that it makes.
	Bind Bind

	// Lookup supplies a peer that is not configured, when its first authentic initiation arrives. The device calls it on a
	// new goroutine, for at most MaxLookups keys at a time, and for each key only once at a time. The context ends when
	// the device goes down, and Close waits for the call. If Lookup returns an error, or a PeerConfig for another key, the
	// initiation remains unanswered.
	//
	// The device forgets such a peer when no session is left: 540 s after its last session was made, or after 180 s if it
	// never confirmed one. The EventPeerForgotten carries the Timestamp that Lookup should return the next time, so that
	// nobody can bring the peer back with a recorded initiation. A Subscription says whether it missed such events. Once
	// Configure names a peer that Lookup supplied, the device does not forget it any more.
	//
	// Nil means that the device drops the initiations of strangers.
	Lookup func(ctx context.Context, key PublicKey) (PeerConfig, error)

	// MaxLookedUp limits how many peers supplied by Lookup the device has at a time. Zero means 65536.
	MaxLookedUp int

	// MaxLookups limits how many calls of Lookup run at a time. While that many run, the device drops the initiations of
	// other strangers. Zero means 64.
	MaxLookups int

	// StagedBytes limits the memory for packets that wait for a handshake, over all peers, in bytes. Zero means 16 MiB. In
	// addition, at most 128 packets wait per peer.
	StagedBytes int

	// StagedPerPeer limits how much of StagedBytes the packets of one peer may take, in bytes. The device drops the peer's
	// oldest packets to make room. Zero means 512 KiB. A negative value means no limit besides StagedBytes.
	StagedPerPeer int

	// Helpers limits how many goroutines on idle cores help one batch to encrypt or decrypt. Zero means one per core, minus
	// the core of the batch. A negative value means none: each batch stays on one goroutine.
	Helpers int

	// IndexPrefix is the beginning of every session index of the device. A program uses it to tell apart devices that
	// share one socket. The zero value means no prefix. With 16 bits, the device has room for 49,152 sessions and
	// handshakes.
	IndexPrefix IndexPrefix

	// SentTimestamp is the floor for the timestamps of the initiations that the device sends: all are greater, to every
	// peer. A device that replaces another one with the same private key sets it to a time that the predecessor has not
	// reached. Zero means no floor besides the wall clock.
	SentTimestamp Timestamp

	// Logger gets handshakes (Debug), the device's life cycle (Info) and trouble with sockets (Warn). Packets and strangers
	// cause no records above Debug. Nil means no log.
	Logger *slog.Logger

	// Clock tells the time. Nil means the clock of the system.
	Clock Clock
}

// A PeerConfig describes a peer. The zero value of a field means that the peer does not have it; PublicKey must be set.
type PeerConfig struct {
	// PublicKey names the peer. Zero is an error.
	PublicKey PublicKey

	// PresharedKey is mixed into each handshake with the peer, which must have the same key. Zero means none.
	PresharedKey PresharedKey

	// Endpoint is where messages to the peer are sent at first. Later the device uses the place from which the peer's
	// newest authentic message arrived. Zero means that the device waits until it hears the peer.
	Endpoint Endpoint

	// AllowedIPs are the prefixes that are routed to the peer, and from which the peer may send. The longest prefix that
	// contains an address decides. A prefix belongs to one peer: the last one that it was given to. Bits beyond the prefix
	// length are cleared.
	AllowedIPs []netip.Prefix

	// PersistentKeepalive is the interval at which the device sends an empty packet if it sent nothing else, so that a NAT
	// on the path keeps its mapping. It is in whole seconds, up to 65535. Zero means off.
	PersistentKeepalive time.Duration

	// MTU is the size of the largest packet that is sent to the peer, in bytes, from 576 to 65535. It is useful where the
	// path to the peer carries less than the Tunnel's MTU. The device drops larger packets and tells the sender by ICMP,
	// with two exceptions. An IPv4 packet that may be fragmented is sent whole, in an outer packet that may be fragmented
	// too. IPv6 packets of up to 1280 bytes are always sent, because IPv6 has no smaller MTU. Zero means the MTU of the
	// Tunnel.
	MTU int

	// Timestamp is the timestamp of the newest initiation already accepted from this peer. The device refuses initiations
	// that are not newer, because they are replays. Zero means none.
	Timestamp Timestamp

	// SentTimestamp is the timestamp of the newest initiation that this device, or a predecessor with its private key, sent
	// to the peer. The timestamps of all later initiations are greater. Zero means none.
	SentTimestamp Timestamp
}

// A Change is a difference to the configuration of a running device. What it does not name stays as it is, including
// sessions. The device checks all of it first, and changes nothing if anything is wrong.
type Change struct {
	PrivateKey   *PrivateKey // nil means unchanged; the zero key removes the private key
	ListenPort   *uint16     // nil means unchanged
	FirewallMark *uint32     // nil means unchanged; 0 removes the mark

	// ReplacePeers removes every peer that Peers does not name. A peer that Peers names keeps its session.
	ReplacePeers bool

	// Peers are applied in order. They may name a peer several times.
	Peers []PeerChange
}

// A PeerChange is a difference to one peer. If the peer does not exist, it is added.
type PeerChange struct {
	PublicKey PublicKey // the peer to change; zero is an error

	// Remove removes the peer with its session, and the other fields are ignored. If the peer does not exist, nothing
	// happens.
	Remove bool
	// UpdateOnly ignores the whole change if the peer does not exist.
	UpdateOnly bool

	PresharedKey        *PresharedKey  // nil means unchanged; the zero key removes it; applies from the next handshake on
	Endpoint            *Endpoint      // nil means unchanged; the zero Endpoint means unknown
	PersistentKeepalive *time.Duration // nil means unchanged; 0 means off
	MTU                 *int           // nil means unchanged; 0 means the MTU of the Tunnel
	Timestamp           *Timestamp     // nil means unchanged; a value older than the peer's is ignored
	SentTimestamp       *Timestamp     // nil means unchanged; a value older than the peer's is ignored

	// ReplaceAllowedIPs removes all prefixes of the peer before AllowedIPs are added.
	ReplaceAllowedIPs bool
	AllowedIPs        []netip.Prefix // to add; a prefix of another peer moves to this one
	RemoveAllowedIPs  []netip.Prefix // to remove from this peer, after AllowedIPs were added; those of other peers are ignored
}

// Change returns the difference that adds the peer c, or that gives an existing peer with the same key the configuration c.
// If c has no Endpoint, an existing peer keeps its own. The result shares AllowedIPs with c.
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
	maxLookups       = 64
	maxStagedBytes   = 16 << 20
	maxStagedPerPeer = 512 << 10
)

// setLimits applies the limits of c and their defaults.
func (d *Device) setLimits(c *Config) {
	d.lookups.maxPeers = cmp.Or(c.MaxLookedUp, maxLookedUp)
	d.lookups.max = cmp.Or(c.MaxLookups, maxLookups)
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

// headroomOf returns how many bytes b needs in front of each datagram.
func headroomOf(b Bind) int {
	if f, ok := b.(Framer); ok {
		return f.Headroom()
	}
	return 0
}

// check returns all errors in c, or nil. headroom is that of its Bind.
func (c *Config) check(headroom int) error {
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
	changes := make([]PeerChange, len(c.Peers))
	for i := range c.Peers {
		changes[i] = c.Peers[i].Change()
		if key := c.Peers[i].PublicKey; seen[key] {
			errs = append(errs, fmt.Errorf("wireguard: peer %d (%v): configured twice; join the two into one", i, key))
		} else {
			seen[key] = true
		}
	}
	return errors.Join(append(errs, checkPeers(changes, c.PrivateKey.Public()))...)
}

// checkPeers returns all errors in changes, or nil. self is the public key of the device.
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
			case p.Addr().Zone() != "":
				wrong("allowed IP %v: an address inside the tunnel has no zone", p)
			}
		}
	}
	return errors.Join(errs...)
}
