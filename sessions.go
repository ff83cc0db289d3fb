package wireguard

import (
	"encoding/binary"
	"sync"
)

// A session is what a 32-bit index in a message names. The zero value is nothing.
type session struct {
	p *peer
	k *keypair // nil while the handshake is under way
}

// A sessionTable finds sessions by their local index. The zero value is ready.
type sessionTable struct {
	mu sync.RWMutex // guards m; taken after a peer's
	m  map[uint32]session
}

func (t *sessionTable) find(index uint32) session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[index]
}

// reserve takes a free index, at random, for a handshake with p.
func (t *sessionTable) reserve(p *peer, random func([]byte)) uint32 {
	var b [4]byte
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = make(map[uint32]session)
	}
	for {
		random(b[:])
		index := binary.LittleEndian.Uint32(b[:])
		if _, taken := t.m[index]; !taken {
			t.m[index] = session{p: p}
			return index
		}
	}
}

// set makes a reserved index that of k.
func (t *sessionTable) set(index uint32, p *peer, k *keypair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.m[index] = session{p, k}
}

// free gives indices up. The memory goes back when none is left.
func (t *sessionTable) free(indices ...uint32) {
	if len(indices) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, index := range indices {
		delete(t.m, index)
	}
	if len(t.m) == 0 {
		t.m = nil
	}
}
