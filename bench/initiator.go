package main

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"hash"
	"time"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/seed-86b749af/wireguard"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// An initiator is a minimal WireGuard peer for a device under measurement. It makes one handshake as the initiator and seals data
// messages. It shares no code with either library, so that the generator does the same work for both.
type initiator struct {
	index       uint32
	remote      wireguard.PublicKey
	private     wireguard.PrivateKey
	ephemeral   x25519.Key
	chain, hash [32]byte
	receiver    uint32
	counter     uint64
	sealer      cipher.AEAD
	packet      []byte // the padded packet that seal encrypts; nil means a keepalive
	heard       uint64 // the counter of the last data message from the device, plus one
	nonce       []byte

	prefix          []byte   // the bytes of the initiation before the sealed timestamp
	stampKey, stamp [32]byte // the key that seals the timestamp, and the handshake hash before the timestamp
}

const (
	initiationSize = 148
	responseSize   = 92
)

var errResponse = errors.New("the response of the device is not authentic")

func keyed(key []byte, parts ...[]byte) (sum [16]byte) {
	h, err := blake2s.New128(key)
	if err != nil {
		panic(err) // impossible: the key has a constant length
	}
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}

func sum(parts ...[]byte) (out [32]byte) {
	h, _ := blake2s.New256(nil)
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(out[:0])
	return out
}

// mac computes HMAC-BLAKE2s.
func mac(key []byte, parts ...[]byte) (out [32]byte) {
	var pad [64]byte
	round := func(flip byte, parts ...[]byte) (out [32]byte) {
		h, _ := blake2s.New256(nil)
		for i := range pad {
			pad[i] = flip
			if i < len(key) {
				pad[i] ^= key[i]
			}
		}
		write(h, append([][]byte{pad[:]}, parts...)...)
		h.Sum(out[:0])
		return out
	}
	inner := round(0x36, parts...)
	return round(0x5c, inner[:])
}

func write(h hash.Hash, parts ...[]byte) {
	for _, p := range parts {
		h.Write(p)
	}
}

// mix mixes input into the chaining key. It returns the second and the third output of the KDF; the first output is the new
// chaining key.
func (n *initiator) mix(input []byte) (second, third [32]byte) {
	prk := mac(n.chain[:], input)
	n.chain = mac(prk[:], []byte{1})
	second = mac(prk[:], n.chain[:], []byte{2})
	return second, mac(prk[:], second[:], []byte{3})
}

func (n *initiator) shared(own, public x25519.Key) []byte {
	var s x25519.Key
	x25519.Shared(&s, &own, &public)
	return s[:]
}

func aead(key [32]byte) cipher.AEAD {
	a, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(err)
	}
	return a
}

// initiation makes an initiation from a new ephemeral private key.
func (n *initiator) initiation(ephemeral [32]byte) []byte {
	n.prepare(ephemeral)
	return n.stamped()
}

// prepare does all the work of an initiation that needs X25519.
func (n *initiator) prepare(ephemeral [32]byte) {
	n.chain = sum([]byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"))
	n.hash = sum(n.chain[:], []byte("WireGuard v1 zx2c4 Jason@zx2c4.com"))
	n.hash = sum(n.hash[:], n.remote[:])
	n.ephemeral = ephemeral
	var public x25519.Key
	x25519.KeyGen(&public, &n.ephemeral)

	m := make([]byte, 0, initiationSize)
	m = binary.LittleEndian.AppendUint32(m, 1)
	m = append(m, 0, 0, 0, 0) // the function stamped writes n.index here
	m = append(m, public[:]...)
	n.hash = sum(n.hash[:], public[:])
	n.mix(public[:])

	static, remote := n.private.Public(), x25519.Key(n.remote)
	key, _ := n.mix(n.shared(n.ephemeral, remote))
	m = n.seals(m, key, static[:])
	n.stampKey, _ = n.mix(n.shared(x25519.Key(n.private), remote))
	n.prefix, n.stamp = m, n.hash
}

// seals appends the sealed plaintext to m and mixes it into the hash.
func (n *initiator) seals(m []byte, key [32]byte, plain []byte) []byte {
	at, zero := len(m), [12]byte{}
	m = aead(key).Seal(m, zero[:], plain, n.hash[:])
	n.hash = sum(n.hash[:], m[at:])
	return m
}

// stamped completes the initiation that prepare began, with the present time as its timestamp. It may be called more than once.
func (n *initiator) stamped() []byte {
	m := append(make([]byte, 0, initiationSize), n.prefix...)
	binary.LittleEndian.PutUint32(m[4:], n.index)
	n.hash = n.stamp
	var stamp [12]byte
	now := time.Now()
	binary.BigEndian.PutUint64(stamp[:], 1<<62+10+uint64(now.Unix()))
	binary.BigEndian.PutUint32(stamp[8:], uint32(now.Nanosecond()))
	m = n.seals(m, n.stampKey, stamp[:])

	macKey := sum([]byte("mac1----"), n.remote[:])
	mac1 := keyed(macKey[:], m)
	m = append(m, mac1[:]...)
	return append(m, make([]byte, 16)...)
}

// response processes the device's response m and derives the session's key, so that seal can be called.
func (n *initiator) response(m []byte) error {
	n.receiver = binary.LittleEndian.Uint32(m[4:])
	e := x25519.Key(m[12:44])
	n.hash = sum(n.hash[:], e[:])
	n.mix(e[:])
	n.mix(n.shared(n.ephemeral, e))
	n.mix(n.shared(x25519.Key(n.private), e))
	tau, key := n.mix(make([]byte, 32))
	n.hash = sum(n.hash[:], tau[:])
	var zero [12]byte
	if _, err := aead(key).Open(nil, zero[:], m[44:60], n.hash[:]); err != nil {
		return errResponse
	}
	prk := mac(n.chain[:])
	n.sealer = aead(mac(prk[:], []byte{1}))
	n.nonce = make([]byte, 12)
	return nil
}

// seal writes the next data message to m. The message contains the packet, and m must be 32 bytes longer than the packet.
func (n *initiator) seal(m []byte) {
	binary.LittleEndian.PutUint32(m, 4)
	binary.LittleEndian.PutUint32(m[4:], n.receiver)
	binary.LittleEndian.PutUint64(m[8:], n.counter)
	binary.LittleEndian.PutUint64(n.nonce[4:], n.counter)
	n.counter++
	n.sealer.Seal(m[16:16], n.nonce, n.packet, nil)
}
