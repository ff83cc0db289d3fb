package wireguard

import (
	"encoding/base64"
	"io"
	"sync"
	"sync/atomic"
)

// A keyLog writes what opens each session of a device: see Config.KeyLog.
type keyLog struct {
	mu     sync.Mutex // held while w is called, and taken last
	w      io.Writer  // nil: nothing is written
	failed atomic.Bool
}

// logKeys writes the secrets of one exchange with p, before the message that they belong to is sent. No lock is held.
func (d *Device) logKeys(id *identity, p *peer, ephemeral PrivateKey, psk *PresharedKey) {
	l := &d.keyLog
	if l.w == nil || l.failed.Load() {
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
	l.mu.Lock()
	_, err := l.w.Write(b)
	l.mu.Unlock()
	if err != nil && !l.failed.Swap(true) {
		d.warn("the key log takes no more keys", "err", err)
	}
}
