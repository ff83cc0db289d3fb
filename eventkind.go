package wireguard

// An EventKind says what happened in an Event.
type EventKind uint8

// The events of a device. Each comment names the fields of the Event that are set besides Kind and Time.
const (
	// EventHandshake says that a session was confirmed. Fields: Peer, Endpoint, Timestamp, SentTimestamp.
	EventHandshake EventKind = iota + 1
	// EventSessionExpired says that a session got too old, and that no new session had replaced it. Fields: Peer.
	EventSessionExpired
	// EventEndpointMoved says that an authentic message of the peer came from a place other than the peer's endpoint, or that the
	// peer had no endpoint before. Fields: Peer, Endpoint (the new one).
	EventEndpointMoved
	// EventAttemptFailed says that an initiation led to no session within 5 s. Fields: Peer, Endpoint, Attempt, Err (see
	// ErrNoAnswer).
	EventAttemptFailed
	// EventHandshakeFailed says that 20 initiations led to no session. The device sends more initiations if packets are sent to the
	// peer. Fields: Peer, Endpoint, Err.
	EventHandshakeFailed
	// EventBindTrouble says that a socket failed to receive, or that Wake failed to open one. Fields: Err. Or it says that a
	// socket failed to send to a peer. Fields: Err, Peer, Endpoint.
	EventBindTrouble
	// EventPeerForgotten says that a peer that Lookup supplied was removed. Fields: Peer, Timestamp, SentTimestamp.
	EventPeerForgotten
	// EventUnanswered says that data sent to the peer was not answered for 11 s. A peer that receives data answers within 10 s.
	// Fields: Peer, Endpoint.
	EventUnanswered
	eventKinds
)

var eventNames = [eventKinds]string{
	"unknown event", "handshake completed", "session expired", "endpoint moved", "attempt failed", "handshake failed",
	"bind trouble", "peer forgotten", "data unanswered",
}

// String names the kind in lower-case words.
func (k EventKind) String() string {
	if k >= eventKinds {
		k = 0
	}
	return eventNames[k]
}
