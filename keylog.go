package wireguard

import (
	"encoding/base64"
	"io"
	"sync"
)

// A keyLog writes what opens each session of a device: see Config.KeyLog.
type keyLog struct {
	w      io.Writer  // nil: nothing is written
	mu     sync.Mutex // held while w is called, and taken last; guards failed
	failed bool
}

// logKeys writes the secrets of one exchange with p, before the message that they belong to is sent. No lock is held.
func (d *Device) logKeys(id *identity, p *peer, ephemeral PrivateKey, psk *PresharedKey) {
	l := &d.keyLog
	if l.w == nil {
		return
	}
	var room [4 * 80]byte
	b := room[:0]
	for _, line := range []struct {
		name string
		key  [32]byte
	}{
		{"LOCAL_STATIC_PRIVATE_KEY = ", id.private},
		{"REMOTE_STATIC_PUBLIC_KEY = ", p.key},
		{"LOCAL_EPHEMERAL_PRIVATE_KEY = ", ephemeral},
		{"PRESHARED_KEY = ", *psk},
	} {
		b = append(b, line.name...)
		b = base64.StdEncoding.AppendEncode(b, line.key[:])
		b = append(b, '\n')
	}
	if err := l.write(b); err != nil {
		d.warn("the key log takes no more keys", "err", err)
	}
}

// write writes b, unless a write has failed before.
func (l *keyLog) write(b []byte) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.failed {
		_, err = l.w.Write(b)
		l.failed = err != nil
	}
	return err
}
