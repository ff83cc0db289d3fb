package wireguard

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// A program can test for these errors with errors.Is. A method of a device that was closed fails with an error that wraps
// net.ErrClosed.
var (
	// ErrDown means that the device is down, or went down during the call.
	ErrDown = errors.New("wireguard: the device is down; call Up first")
	// ErrNoPeer means that the device has no peer with the key, or that the peer was removed during the call.
	ErrNoPeer = errors.New("wireguard: no such peer; add it first")
	// ErrNoEndpoint means that the device does not know where the peer is.
	ErrNoEndpoint = errors.New("wireguard: the peer has no endpoint; set one, or wait until the peer is heard")
	// ErrNoPrivateKey means that the device has no private key, or that the key was removed during the call.
	ErrNoPrivateKey = errors.New("wireguard: the device has no private key; set one first")
	// ErrNoAnswer means that initiations led to no session. In an EventAttemptFailed, the error is about one initiation. Otherwise
	// it is about 20 initiations in a row. If the Err of an EventAttemptFailed or an EventHandshakeFailed is not ErrNoAnswer, the
	// initiation could not be sent, or answers arrived that were not authentic.
	ErrNoAnswer = errors.New("wireguard: no answer from the peer; check its endpoint, the keys of both ends and what is between them")
)

var (
	errClosed   = fmt.Errorf("wireguard: the device is closed: %w", net.ErrClosed)
	errUnopened = errors.New("wireguard: answers arrived that did not open; check the public keys and the preshared key")
)

// errorf is fmt.Errorf with the prefix "wireguard: ". It removes this prefix from the texts of the errors that it wraps, and
// joins the lines of the text into one.
func errorf(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &prefixed{"wireguard: " + oneLine.Replace(err.Error()), err}
}

var oneLine = strings.NewReplacer("wireguard: ", "", "\n", "; ")

type prefixed struct {
	text string
	err  error
}

func (e *prefixed) Error() string { return e.text }
func (e *prefixed) Unwrap() error { return e.err }

// A sendError says why a message was not sent. Its method Error calls the program's Link.String, so the caller of Error must not
// hold a lock.
type sendError struct {
	to  Endpoint
	err error
}

func (e *sendError) Error() string { return errorf("send to %v: %w", e.to, e.err).Error() }
func (e *sendError) Unwrap() error { return e.err }
