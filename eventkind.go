package wireguard

// An EventKind says what an Event tells of.
type EventKind uint8

// What a device tells its subscribers of.
const (
	EventHandshake       EventKind = iota + 1 // a session stands; Peer, Endpoint
	EventSessionExpired                       // the session got too old and no new one replaced it; Peer
	EventEndpointMoved                        // the peer was heard from another place, or for the first time; Peer, Endpoint (the new one)
	EventHandshakeFailed                      // 20 initiations went unanswered; Peer, Endpoint. While packets come, tries go on
	EventBindTrouble                          // a socket failed to receive, or to open after Wake; Err. Or to send; Err, Peer, Endpoint. Once a second at most, each
	EventPeerForgotten                        // a peer that Lookup supplied has gone; Peer, Timestamp
	eventKinds
)

var eventNames = [eventKinds]string{
	"unknown event", "handshake completed", "session expired", "endpoint moved", "handshake failed", "bind trouble", "peer forgotten",
}

// String names the kind in lower-case words.
func (k EventKind) String() string {
	if k >= eventKinds {
		k = 0
	}
	return eventNames[k]
}
