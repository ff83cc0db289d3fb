package uapi

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// Set reads the lines of one set request, after the line "set=1" and up to an empty line or the end of r, and carries them out as
// a whole or not at all. A request may have up to 64 MiB. An error is an [*Error], and Set then leaves the rest of the request
// unread. If r is a *bufio.Reader of the default size or more, Set reads nothing beyond the empty line. From another reader, Set
// may read more.
//
// As in the kernel, a peer with the device's own public key is ignored, and replace_peers ends the sessions of all peers, even of
// peers that the request names again.
func Set(r io.Reader, d *wireguard.Device) error {
	var inUse atomic.Int64
	lines := lineReader{r: bufio.NewReaderSize(r, readBuffer), inUse: &inUse, limit: maxRequest}
	q, err := readRequest(&lines)
	if err != nil && !errors.Is(err, errEnd) {
		return err
	}
	return q.apply(d)
}

// A request holds the lines of a set request that were read so far. The lines of the device are first; a block of lines for each
// peer follows.
type request struct {
	change wireguard.Change
	block  block
}

// A block holds the lines of one peer. The peer's change is the last one of change.Peers. In a block, a later line overrides an
// earlier one. But a PeerChange always adds prefixes first, and removes prefixes afterwards. So the block collects only those
// prefixes to remove that no later line adds.
type block struct {
	removed  map[netip.Prefix]struct{} // prefixes whose last line removes them
	replaced int                       // len of the change's AllowedIPs at the last replace_allowed_ips line, which removed these
}

// readRequest reads up to the empty line. If the input ends before that, the error wraps errEnd and q holds the lines that were
// read.
func readRequest(lines *lineReader) (q *request, err error) {
	q = new(request)
	for {
		line, err := lines.next()
		if err == nil && len(line) > 0 {
			if errno, why := q.line(line); why != nil {
				return nil, lines.errorf(errno, "%w", why)
			}
			continue
		}
		q.endBlock()
		return q, err
	}
}

// apply carries out the request.
func (q *request) apply(d *wireguard.Device) error {
	self := d.Status().PublicKey
	if q.change.PrivateKey != nil {
		self = q.change.PrivateKey.Public()
	}
	q.change.Peers = peersToChange(q.change.Peers, self, q.change.ReplacePeers)
	if err := d.Configure(q.change); err != nil {
		return &Error{errnoOf(err, q.change.ListenPort != nil), err}
	}
	return nil
}

// peersToChange returns the changes to make for the peers that a request names. It leaves out the device's own key (self),
// because wg(8) expects a device to ignore this key. It also leaves out the zero key: the kernel's module accepts a peer with
// this key, but such a peer can never have a session. If replace is true, the result begins with the removal of each named
// peer. Without the removal, these peers would keep their sessions.
func peersToChange(named []wireguard.PeerChange, self wireguard.PublicKey, replace bool) (all []wireguard.PeerChange) {
	named = slices.DeleteFunc(named, func(c wireguard.PeerChange) bool {
		return c.PublicKey.IsZero() || c.PublicKey == self
	})
	if replace {
		all = make([]wireguard.PeerChange, 0, 2*len(named))
		seen := make(map[wireguard.PublicKey]bool, len(named))
		for i := range named {
			if key := named[i].PublicKey; !seen[key] {
				seen[key] = true
				all = append(all, wireguard.PeerChange{PublicKey: key, Remove: true})
			}
		}
	}
	return append(all, named...)
}

var (
	errNoEquals  = errors.New("want a key, = and a value")
	errUnknown   = errors.New("the key is unknown")
	errDeviceKey = errors.New("this is a key of the device; write it before the first public_key")
	errPeerKey   = errors.New("this is a key of a peer; write it after a public_key")
	errTrue      = errors.New("want true, or leave the line out")
	errKey       = errors.New("want a key: 64 hexadecimal digits")
	errPort      = errors.New("want a port from 0 to 65535")
	errMark      = errors.New("want a mark from 0 to 4294967295, in decimal")
	errInterval  = errors.New("want seconds from 0 to 65535")
	errEndpoint  = errors.New("want the address of a host and its port, such as 192.0.2.1:51820 or [2001:db8::1]:51820")
	errPrefix    = errors.New("want a prefix, such as 10.0.0.0/24 or 2001:db8::/64, optionally after a + or -")
	errVersion   = errors.New("want protocol version 1")
)

// A lineError says what is wrong with the line of a known key.
type lineError struct {
	name string
	err  error
}

func (e *lineError) Error() string { return e.name + ": " + e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// line adds a line to the request, or returns what is wrong with it.
func (q *request) line(line []byte) (errno int, err error) {
	name, value, ok := bytes.Cut(line, []byte("="))
	if !ok {
		return errnoProtocol, errNoEquals
	}
	deviceKey, isDevice := deviceKeys[string(name)]
	peerKey, isPeer := peerKeys[string(name)]
	switch {
	case string(name) == "public_key":
		err = q.beginBlock(value)
	case !isDevice && !isPeer:
		return errnoInvalid, errUnknown // the error omits the name, which may be a misplaced secret
	case isDevice && len(q.change.Peers) > 0:
		err = errDeviceKey
	case isDevice:
		err = deviceKey(&q.change, value)
	case len(q.change.Peers) == 0:
		err = errPeerKey
	default:
		err = peerKey(&q.change.Peers[len(q.change.Peers)-1], &q.block, value)
	}
	if err != nil {
		return errnoInvalid, &lineError{string(name), err}
	}
	return 0, nil
}

var deviceKeys = map[string]func(c *wireguard.Change, value []byte) error{
	"private_key": func(c *wireguard.Change, value []byte) error {
		c.PrivateKey = new(wireguard.PrivateKey)
		return parseKey((*[32]byte)(c.PrivateKey), value)
	},
	"listen_port": func(c *wireguard.Change, value []byte) error {
		n, err := strconv.ParseUint(string(value), 10, 16)
		if err != nil {
			return errPort
		}
		port := uint16(n)
		c.ListenPort = &port
		return nil
	},
	"fwmark": func(c *wireguard.Change, value []byte) error {
		n, err := strconv.ParseUint(string(value), 10, 32)
		if err != nil {
			return errMark
		}
		mark := uint32(n)
		c.FirewallMark = &mark
		return nil
	},
	"replace_peers": func(c *wireguard.Change, value []byte) error { return parseTrue(&c.ReplacePeers, value) },
}

var peerKeys = map[string]func(c *wireguard.PeerChange, b *block, value []byte) error{
	"remove":      func(c *wireguard.PeerChange, _ *block, value []byte) error { return parseTrue(&c.Remove, value) },
	"update_only": func(c *wireguard.PeerChange, _ *block, value []byte) error { return parseTrue(&c.UpdateOnly, value) },
	"preshared_key": func(c *wireguard.PeerChange, _ *block, value []byte) error {
		c.PresharedKey = new(wireguard.PresharedKey)
		return parseKey((*[32]byte)(c.PresharedKey), value)
	},
	"endpoint": func(c *wireguard.PeerChange, _ *block, value []byte) error {
		a, err := netip.ParseAddrPort(string(value)) // wireguard.ParseEndpoint accepts more than the protocol allows
		if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
			return errEndpoint
		}
		e := wireguard.EndpointOf(a)
		c.Endpoint = &e
		return nil
	},
	"persistent_keepalive_interval": func(c *wireguard.PeerChange, _ *block, value []byte) error {
		n, err := strconv.ParseUint(string(value), 10, 16)
		if err != nil {
			return errInterval
		}
		interval := time.Duration(n) * time.Second
		c.PersistentKeepalive = &interval
		return nil
	},
	"replace_allowed_ips": func(c *wireguard.PeerChange, b *block, value []byte) error {
		if err := parseTrue(&c.ReplaceAllowedIPs, value); err != nil {
			return err
		}
		for _, prefix := range c.AllowedIPs[b.replaced:] {
			b.remove(prefix)
		}
		b.replaced = len(c.AllowedIPs)
		return nil
	},
	"allowed_ip": func(c *wireguard.PeerChange, b *block, value []byte) error {
		prefix, remove, err := parsePrefix(value)
		switch {
		case err != nil:
			return err
		case remove:
			b.remove(prefix)
		default:
			delete(b.removed, prefix)
			c.AllowedIPs = append(c.AllowedIPs, prefix)
		}
		return nil
	},
	"protocol_version": func(_ *wireguard.PeerChange, _ *block, value []byte) error {
		if string(value) != "1" {
			return errVersion
		}
		return nil
	},
}

func (b *block) remove(prefix netip.Prefix) {
	if b.removed == nil {
		b.removed = make(map[netip.Prefix]struct{})
	}
	b.removed[prefix] = struct{}{}
}

// beginBlock begins the block of another peer.
func (q *request) beginBlock(value []byte) error {
	q.endBlock()
	var key wireguard.PublicKey
	if err := parseKey((*[32]byte)(&key), value); err != nil {
		return err
	}
	q.change.Peers = append(q.change.Peers, wireguard.PeerChange{PublicKey: key})
	return nil
}

// endBlock completes the last peer's change.
func (q *request) endBlock() {
	if len(q.change.Peers) > 0 {
		c := &q.change.Peers[len(q.change.Peers)-1]
		for prefix := range q.block.removed {
			c.RemoveAllowedIPs = append(c.RemoveAllowedIPs, prefix)
		}
	}
	q.block = block{}
}

func parseTrue(b *bool, value []byte) error {
	if string(value) != "true" {
		return errTrue
	}
	*b = true
	return nil
}

func parseKey(k *[32]byte, value []byte) error {
	if len(value) != hex.EncodedLen(len(k)) {
		return errKey
	}
	if _, err := hex.Decode(k[:], value); err != nil {
		return errKey
	}
	return nil
}

// parsePrefix parses an allowed IP, with or without its sign. Bits beyond the prefix length are cleared.
func parsePrefix(value []byte) (prefix netip.Prefix, remove bool, err error) {
	if len(value) > 0 && (value[0] == '-' || value[0] == '+') {
		remove = value[0] == '-'
		value = value[1:]
	}
	prefix, err = netip.ParsePrefix(string(value))
	if err != nil || prefix.Addr().Is4In6() {
		return prefix, false, errPrefix
	}
	return prefix.Masked(), remove, nil
}
