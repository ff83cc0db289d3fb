package wireguard

// An EventKind says what kind of thing happened in an Event.
type EventKind uint8

// The events of a device. Each comment names the fields that are set besides Kind and Time.
const (
	EventHandshake       EventKind = iota + 1 // a session was confirmed; Peer, Endpoint, Timestamp, SentTimestamp
	EventSessionExpired                       // the session got too old and no new one replaced it; Peer
	EventEndpointMoved                        // the peer was heard from another place, or for the first time; Peer, Endpoint (the new one)
	EventAttemptFailed                        // an initiation made no session in 5 s; Peer, Endpoint, Attempt, Err (see ErrNoAnswer)
	EventHandshakeFailed                      // 20 initiations made no session; more follow if packets are sent; Peer, Endpoint, Err
	EventBindTrouble                          // a socket failed to receive, or to open in Wake; Err. Or to send; Err, Peer, Endpoint
	EventPeerForgotten                        // a peer that Lookup supplied was removed; Peer, Timestamp, SentTimestamp
	EventUnanswered                           // data is unanswered for 11 s; a peer that gets it answers in 10 s; Peer, Endpoint
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
