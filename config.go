package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"
)

// A Config describes a new device. Tunnel and Bind must be set. The zero value of every other field means the default
// that its comment names. The device copies what it needs: the Config and its slices stay the caller's.
type Config struct {
	// PrivateKey is the device's identity. Zero means that there is no key yet: until Configure sets one, the device
	// neither starts nor answers a handshake.
	PrivateKey PrivateKey

	// ListenPort is the UDP port. Zero means that the Bind chooses one each time the device goes up.
	ListenPort uint16

	// FirewallMark marks the datagrams that the device sends, for the host's firewall and its policy routing. If it is not zero
	// and the Bind's sockets cannot mark datagrams, Up fails. Zero means no mark.
	FirewallMark uint32

	// Peers are the peers that the device has from the start. Configure and Lookup can add more.
	Peers []PeerConfig

	// Tunnel is the source and the destination of IP packets. It must implement PacketSource, Queues or Attacher as well.
	// [Device.Close] closes it.
	Tunnel Tunnel

	// Bind makes the sockets for the datagrams. The device closes those sockets.
	Bind Bind

	// Lookup supplies a peer that is not configured, when an authentic initiation from this peer arrives. Each call has its own
	// goroutine. At most MaxLookups calls run at a time, and at most one for each key. The context of a call ends when the device
	// goes down, and Close waits for the call. If Lookup returns an error, or a PeerConfig for another key, the initiation is not
	// answered. The device forgets a peer that Lookup supplied when the peer has no session left: 540 s after the last session was
	// made, or 180 s after the peer was added if no session was confirmed. It then publishes an EventPeerForgotten, which has a
	// Timestamp. The next time that Lookup is called for this peer, it should return this Timestamp in the PeerConfig, so that a
	// recorded initiation cannot add the peer again. If the subscription lost events of this kind (see Event.Missed), their
	// timestamps are lost, too. If Configure names a peer that Lookup supplied, and PeerChange.UpdateOnly is not set, the device no
	// longer forgets the peer. Nil means that initiations of unknown peers are dropped.
	Lookup func(ctx context.Context, key PublicKey) (PeerConfig, error)

	// MaxLookedUp limits the number of peers that Lookup supplied and that are not forgotten yet. Zero means 65536.
	MaxLookedUp int

	// MaxLookups limits the calls of Lookup that run at one time. If each call takes 20 ms, 256 calls at a time can let in 12,800
	// unknown peers per second. At the limit, initiations of other unknown peers are dropped. While at least an eighth of the limit
	// is in use, the device is under load. It then accepts only initiations whose senders prove with a cookie that they receive at
	// their addresses, and at most 20 per second from each address. So a flood of made-up keys from forged addresses cannot reach
	// the limit. Zero means 256.
	MaxLookups int

	// StagedBytes limits the memory, in bytes, of all packets that wait for a handshake, over all peers. When that memory is used
	// up, the device drops the oldest packet of the peer whose packets take the most memory. So if packets of n peers wait, each
	// peer can use an n-th of the memory. In addition, at most 128 packets per peer wait. Zero means 16 MiB.
	StagedBytes int

	// StagedPerPeer limits the part of StagedBytes that one peer's packets may take, in bytes. The peer's oldest packets
	// are dropped to make room. Zero means 512 KiB. A negative value means no limit besides StagedBytes.
	StagedPerPeer int

	// Helpers limits the number of goroutines that help, on idle cores, to encrypt or decrypt one batch. Zero means one helper for
	// each core other than that of the goroutine that has the batch, and no helpers while other programs keep the cores busy. Only
	// on Unix systems can the device detect that other programs do so. A negative value always means no helpers, so that each batch
	// stays with one goroutine.
	Helpers int

	// IndexPrefix is the beginning of every session index of the device. With different prefixes, a program can tell apart
	// several devices that share one socket. The zero value means no prefix. With a prefix of 16 bits, 49,152 sessions and
	// handshakes can exist at a time.
	IndexPrefix IndexPrefix

	// SentTimestamp is a lower bound: every timestamp that the device sends in an initiation, to any peer, is greater. If the
	// device replaces another one with the same private key, set a timestamp that is not less than any that the other device has
	// sent. Zero means that there is no such bound.
	SentTimestamp Timestamp

	// Logger gets messages about handshakes (Debug), about the device going up and down (Info), and about trouble with sockets, the
	// tunnel or the key log (Warn). Nothing that is caused by a packet, or by a sender that is not a peer, is logged above Debug.
	// Nil means that nothing is logged.
	Logger *slog.Logger

	// KeyLog gets the secrets of each handshake, so that Wireshark can decrypt captured traffic: Wireshark's preference
	// wg.keylog_file names a file with these lines. Whoever has the lines can read all traffic, so KeyLog is for debugging only.
	// Before the device sends an initiation or a response, it writes four lines with one call of Write, and waits until the call
	// returns. The device never makes two calls at the same time. After an error, the device writes nothing more, and Logger gets a
	// warning. Nil means that no secret is written.
	KeyLog io.Writer
	// Clock tells the time. Nil means the system's clock.
	Clock Clock
}

// A PeerConfig says who a peer is and which addresses it may use. The zero value of a field means "none", unless the comment of
// the field says otherwise.
type PeerConfig struct {
	// PublicKey is the key of the peer. Zero is refused.
	PublicKey PublicKey

	// PresharedKey is mixed into each handshake with the peer, which must have the same key. Zero means that there is
	// none.
	PresharedKey PresharedKey

	// Endpoint is where the device sends packets to the peer at first. Once authentic packets of the peer arrive, the device
	// sends to the endpoint from which the last one came. Zero means that the device learns the endpoint when the peer sends
	// something.
	Endpoint Endpoint

	// AllowedIPs are the addresses inside the tunnel from which the peer may send, and which are routed to the peer. If several
	// prefixes contain an address, the longest one decides. A prefix belongs to one peer: the last one to which it was given.
	// Bits beyond the prefix length are cleared.
	AllowedIPs []netip.Prefix

	// PersistentKeepalive is the time, in whole seconds up to 65535, after which an empty packet is sent if nothing
	// authentic was sent or received, so that a NAT on the path keeps its mapping. Zero means that no such packets are
	// sent.
	PersistentKeepalive time.Duration

	// MTU is the largest packet, in bytes, that is sent to the peer, from 576 to 65535. Set it if the path to the peer takes only
	// packets that are smaller than the MTU of the Tunnel. A larger packet is dropped, and its sender gets an ICMP error, with
	// two exceptions. An IPv4 packet that may be fragmented is sent whole, in an outer packet that may be fragmented too. IPv6
	// packets of up to 1280 bytes are always sent, since IPv6 has no smaller MTU. Zero means the MTU of the Tunnel.
	MTU int

	// Timestamp is the timestamp of the newest initiation that was already accepted from this peer. Initiations with an older or
	// an equal timestamp are refused as replays. Zero means none.
	Timestamp Timestamp

	// SentTimestamp is the newest initiation timestamp that this device, or a predecessor with its private key, sent to
	// the peer. Timestamps that are sent from now on are greater. Zero means none.
	SentTimestamp Timestamp
}

// A Change changes the configuration of a device. Everything that it does not name stays as it is, including sessions.
// The whole Change is checked first; if anything is wrong, nothing is changed.
type Change struct {
	PrivateKey   *PrivateKey // nil means unchanged; the zero key removes the key
	ListenPort   *uint16     // nil means unchanged
	FirewallMark *uint32     // nil means unchanged; 0 means no mark

	// ReplacePeers removes every peer that Peers does not name. A peer that Peers names keeps its session.
	ReplacePeers bool

	// Peers are the changes to single peers. They are carried out in order, and several may name the same peer.
	Peers []PeerChange
}

// A PeerChange changes the configuration of one peer. A peer that does not exist is added.
type PeerChange struct {
	PublicKey PublicKey // the key of the peer; zero is refused

	// Remove removes the peer with its session; other fields are ignored. Removing a peer that does not exist is not an
	// error.
	Remove bool
	// UpdateOnly means that this change is ignored if the peer does not exist.
	UpdateOnly bool

	PresharedKey        *PresharedKey  // nil means unchanged; the zero key removes the key; the next handshake uses the new key
	Endpoint            *Endpoint      // nil means unchanged; the zero Endpoint removes the endpoint
	PersistentKeepalive *time.Duration // nil means unchanged; 0 means no keepalives
	MTU                 *int           // nil means unchanged; 0 means the MTU of the Tunnel
	Timestamp           *Timestamp     // nil means unchanged; an older one than the peer's is ignored
	SentTimestamp       *Timestamp     // nil means unchanged; an older one than the peer's is ignored

	// ReplaceAllowedIPs removes all prefixes from the peer before AllowedIPs are added.
	ReplaceAllowedIPs bool
	AllowedIPs        []netip.Prefix // added to this peer, and removed from the peers that have them
	RemoveAllowedIPs  []netip.Prefix // removed from this peer, if it has them, after AllowedIPs were added
}

// Change returns the change that adds the peer c, or gives an existing peer with the same key the configuration c. If
// c.Endpoint is zero, an existing peer keeps its endpoint. The result shares AllowedIPs with c.
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
	minMTU  = 576  // "every internet destination must be able to receive" as much (RFC 791, section 3.2)
	minMTU6 = 1280 // the least MTU of an IPv6 link (RFC 8200, section 5)

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

// check returns an error that names everything that is wrong with c, or nil. headroom is what headroomOf returns for c.Bind, and
// changes are the changes that add c.Peers.
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

// checkPeers returns an error that names everything that is wrong with changes, or nil. self is the device's own public
// key.
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
		for _, prefixes := range [...][]netip.Prefix{c.AllowedIPs, c.RemoveAllowedIPs} {
			for _, p := range prefixes {
				switch {
				case !p.IsValid():
					wrong("an allowed IP is not a valid prefix; want one as in 10.0.0.0/24 or 2001:db8::/64")
				case p.Addr().Is4In6():
					wrong("allowed IP %v: write an IPv4 prefix as such, not mapped into IPv6", p)
				}
			}
		}
	}
	return errors.Join(errs...)
}
