package wireguard

// A DropReason says why a packet or a message was dropped.
type DropReason uint8

// Why the device drops. The comment says what was dropped.
const (
	DropDown             DropReason = iota // packet: the device is not up
	DropMalformed                          // packet to send: neither IPv4 nor IPv6, or shorter than its header
	DropNoRoute                            // packet: no peer is allowed its destination
	DropNoEndpoint                         // packet: its peer has not been heard of and has no endpoint
	DropStagedOverflow                     // packet: 128 newer ones of its peer wait for a session
	DropStagedBytes                        // packet: the device's memory for waiting packets is used up
	DropSendQueueFull                      // packet: too many of its peer wait for the socket
	DropNoSession                          // packet: waited for a handshake that was given up, or its peer is gone
	DropSendFailed                         // packet: the bind could not send it
	DropLoop                               // packet: a message to its peer that came back, for the way there leads through the tunnel
	DropUnknownMessage                     // message: no WireGuard message by type, reserved bytes or length
	DropUnknownIndex                       // message: no session or handshake with that index
	DropExpiredKey                         // message: its session is too old, or got replaced meanwhile
	DropForged                             // message: authentication failed
	DropReplayed                           // message: its counter was seen, or is too old
	DropInnerMalformed                     // packet received: authentic, but not IPv4 or IPv6 or longer than it is
	DropSourceNotAllowed                   // packet received: authentic, but not from an address its peer may use
	DropSinkFull                           // packet received: the tunnel did not take it
	DropQueueFull                          // handshake message: too many wait already
	DropBadMAC                             // handshake message: mac1 does not fit the device's key
	DropCookieRequired                     // handshake message: under load, and without mac2; answered with a cookie
	DropRateLimited                        // handshake message: under load, and its source sent too many
	DropNoIdentity                         // handshake message: the device has no private key
	DropUnknownPeer                        // initiation: its key is no peer's
	DropOldTimestamp                       // initiation: a replay, by its timestamp
	DropTooSoon                            // initiation: less than 20 ms after the last one of its peer
	DropSuperseded                         // response: to an initiation that is no longer the newest
	DropLowOrder                           // handshake message: a Diffie-Hellman result of zero
	DropBadCookie                          // cookie reply: not to the last message sent, or not authentic
	DropLookupFull                         // initiation of a stranger: too many lookups wait, or peers came from them
	DropIndexFull                          // handshake message to send: nearly all indices with Config.IndexPrefix are taken
	dropReasons
)

var dropNames = [dropReasons]string{
	"down", "malformed", "no route", "no endpoint", "staged overflow", "staged bytes", "send queue full", "no session", "send failed", "loop",
	"unknown message", "unknown index", "expired key", "forged", "replayed", "inner malformed", "source not allowed",
	"sink full", "queue full", "bad mac", "cookie required", "rate limited", "no identity", "unknown peer",
	"old timestamp", "too soon", "superseded", "low order", "bad cookie", "lookup full", "index full",
}

// String is the reason in lower-case words, fit for a label of a metric.
func (r DropReason) String() string {
	if r < dropReasons {
		return dropNames[r]
	}
	return "unknown"
}

// Drops counts what was dropped, by reason: d[DropReplayed].
type Drops [dropReasons]uint64

// Total is the sum over all reasons.
func (d Drops) Total() (n uint64) {
	for _, v := range d {
		n += v
	}
	return n
}
