package wireguard

import (
	"encoding/binary"

	"github.com/seed-86b749af/wireguard/internal/numbered"
)

// A session is the peer and the keypair to which a 32-bit index in a message refers. The zero value means that the index refers
// to nothing.
type session struct {
	p *peer
	k *keypair // nil while the handshake is under way
}

// A sessionTable finds sessions by their local index. The zero value is ready, and has no prefix. Readers take no lock, so that
// receivers on many cores do not wait for each other.
type sessionTable struct {
	prefix IndexPrefix
	m      numbered.Table[session] // has its own lock, which is taken after a peer's mutex
}

// An IndexPrefix is the most significant bits of every session index that a device makes. An index is the 32-bit number by which
// messages to the device name their receiver. It is little-endian in the message: at byte 8 of a handshake response, and at byte 4
// of a cookie reply and of a data message (whitepaper, section 5.4). If several devices share one socket, the program gives each
// device a different prefix of the same length, and passes each message with such an index to the device whose Value is index >>
// (32 - Bits).
type IndexPrefix struct {
	Value uint16 // less than 1 << Bits
	Bits  int    // from 0 to 16
}

// number returns the index that begins with the prefix and continues with the first bits of n.
func (x IndexPrefix) number(n uint32) uint32 { return uint32(x.Value)<<(32-x.Bits) | n>>x.Bits }

func (t *sessionTable) find(index uint32) session {
	if s := t.m.Get(index); s != nil {
		return *s
	}
	return session{}
}

// reserve reserves a random free index for a handshake with p. If it fails, it returns an index that no session of the device can
// have, so that freeing that index does nothing.
func (t *sessionTable) reserve(p *peer, random func([]byte)) (index uint32, err error) {
	var b [4]byte
	for all := uint64(1) << (32 - t.prefix.Bits); ; {
		random(b[:])
		index = t.prefix.number(binary.LittleEndian.Uint32(b[:]))
		switch added, full := t.m.Add(index, &session{p: p}, all/4*3); {
		case added:
			return index, nil
		case full:
			return IndexPrefix{^t.prefix.Value, t.prefix.Bits}.number(0), refusal(DropIndexFull)
		}
	}
}

// set makes k the session of a reserved index.
func (t *sessionTable) set(index uint32, p *peer, k *keypair) { t.m.Put(index, &session{p, k}) }

// free makes the indices free again, and frees their memory.
func (t *sessionTable) free(indices ...uint32) { t.m.Delete(indices...) }
