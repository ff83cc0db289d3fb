// Package keylog writes the secrets of handshakes in the form that Wireshark reads.
package keylog

import (
	"encoding/base64"
	"io"
	"sync"
)

// A Log writes to W until a write fails. If W is nil, nothing is written. Any goroutine may call Write.
type Log struct {
	W      io.Writer
	mu     sync.Mutex // held while W is called, and taken last; guards the field failed
	failed bool
}

// Write writes the secrets of one exchange. After a failed write, which returns the error, all further calls write nothing and
// return nil.
func (l *Log) Write(localStatic, remoteStatic, localEphemeral, preshared [32]byte) (err error) {
	if l.W == nil {
		return nil
	}
	var room [4 * 80]byte
	b := room[:0]
	for _, line := range []struct {
		name string
		key  [32]byte
	}{
		{"LOCAL_STATIC_PRIVATE_KEY = ", localStatic},
		{"REMOTE_STATIC_PUBLIC_KEY = ", remoteStatic},
		{"LOCAL_EPHEMERAL_PRIVATE_KEY = ", localEphemeral},
		{"PRESHARED_KEY = ", preshared},
	} {
		b = append(b, line.name...)
		b = base64.StdEncoding.AppendEncode(b, line.key[:])
		b = append(b, '\n')
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.failed {
		_, err = l.W.Write(b)
		l.failed = err != nil
	}
	return err
}
