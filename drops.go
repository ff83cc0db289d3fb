package wireguard

// A DropReason says why a packet or a message was dropped.
type DropReason uint8

// The reasons why the device drops packets and messages. Each comment says what was dropped, and why.
const (
	DropDown             DropReason = iota // packet: the device is not up
	DropMalformed                          // packet to send: neither IPv4 nor IPv6, or shorter than its header
	DropNoRoute                            // packet: its destination is in the AllowedIPs of no peer
	DropNoEndpoint                         // packet: its peer has no endpoint
	DropStagedOverflow                     // packet: 128 newer packets, or Config.StagedPerPeer bytes of them, wait for the session
	DropStagedBytes                        // packet: Config.StagedBytes was used up, and its peer's packets took the most of it
	DropSendQueueFull                      // packet: too many packets to its peer wait for the socket
	DropNoSession                          // packet: it waited for a handshake that was given up, or its peer was removed
	DropSendFailed                         // packet: the bind could not send it
	DropLoop                               // packet: it is itself a message to its peer, and the host routed it into the tunnel
	DropUnknownMessage                     // message: its type, reserved bytes or length are not those of a WireGuard message
	DropUnknownIndex                       // message: no session or handshake has its receiver index
	DropExpiredKey                         // message: its session is too old, or was replaced
	DropForged                             // message: authentication failed
	DropReplayed                           // message: its counter was seen already, or is too old
	DropInnerMalformed                     // packet received: authentic, but not IPv4 or IPv6, or shorter than its header says
	DropSourceNotAllowed                   // packet received: authentic, but its source is not in its peer's AllowedIPs
	DropSinkFull                           // packet received: the tunnel did not accept it
	DropQueueFull                          // handshake message: too many initiations, or answers from its peer, wait already
	DropBadMAC                             // handshake message: its mac1 was not made for the device's public key
	DropCookieRequired                     // handshake message: no valid mac2 under load; answered with a cookie reply
	DropRateLimited                        // handshake message: its source sent too many while the device is under load
	DropNoIdentity                         // handshake message: the device has no private key
	DropUnknownPeer                        // initiation: no peer has its key
	DropOldTimestamp                       // initiation: its timestamp shows that it is a replay
	DropTooSoon                            // initiation: it came less than 20 ms after the last accepted initiation of its peer
	// handshake message: its exchange was replaced or has ended, or it is an initiation that waited for 5 s in the device, or
	// meanwhile the peer was removed, a key changed, or the device went down
	DropSuperseded
	DropLowOrder   // handshake message: a Diffie-Hellman result was zero
	DropBadCookie  // cookie reply: not authentic, or not a reply to the last message sent
	DropLookupFull // initiation of an unknown peer: Config.MaxLookups or Config.MaxLookedUp is reached
	DropTooBig     // packet: larger than its peer's MTU, and must not be fragmented; its sender gets an ICMP error
	DropIndexFull  // handshake message to send: three quarters of the indices with Config.IndexPrefix are in use
	dropReasons
)

var dropNames = [dropReasons]string{
	"down", "malformed", "no route", "no endpoint", "staged overflow", "staged bytes", "send queue full", "no session", "send failed", "loop",
	"unknown message", "unknown index", "expired key", "forged", "replayed", "inner malformed", "source not allowed",
	"sink full", "queue full", "bad mac", "cookie required", "rate limited", "no identity", "unknown peer",
	"old timestamp", "too soon", "superseded", "low order", "bad cookie", "lookup full", "too big", "index full",
}

// String returns the reason in lower-case words, fit for a label of a metric, or "unknown".
func (r DropReason) String() string {
	if r < dropReasons {
		return dropNames[r]
	}
	return "unknown"
}

// Drops holds the number of packets and messages that were dropped for each reason, as in d[DropReplayed]. New versions
// may add reasons, which makes the array longer.
type Drops [dropReasons]uint64

// Total returns the sum of all counts.
func (d Drops) Total() (n uint64) {
	for _, v := range d {
		n += v
	}
	return n
}

// A refusal is an error that says why a handshake message is dropped. No exported function returns a refusal.
type refusal DropReason

func (r refusal) Error() string { return "wireguard: " + DropReason(r).String() }

// reasonOf returns the reason in err if err is a refusal. Otherwise an AEAD failed to open a message, and the reason is
// DropForged.
func reasonOf(err error) DropReason {
	if r, ok := err.(refusal); ok {
		return DropReason(r)
	}
	return DropForged
}
