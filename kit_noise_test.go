package wireguard

import (
	"crypto/ecdh"
	stdhmac "crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// This file is a second implementation of the handshake, written from the Noise specification (revision 34) and from sections
// 5.4.2 to 5.4.5 of the whitepaper. It shares no code with this package: its X25519 is crypto/ecdh and its HMAC is crypto/hmac.
// It follows the text of the Noise specification closely, and is not fast. The quoted sentences are from that specification.

// noiseIKpsk2 has the tokens of the two messages of the pattern IKpsk2 (Noise, sections 7.5 and 9.4).
var noiseIKpsk2 = [2][]string{
	{"e", "es", "s", "ss"},
	{"e", "ee", "se", "psk"},
}

func noiseHash(parts ...[]byte) []byte {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(err)
	}
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func noiseHMAC(key []byte, parts ...[]byte) []byte {
	h := stdhmac.New(func() hash.Hash {
		h, err := blake2s.New256(nil)
		if err != nil {
			panic(err)
		}
		return h
	}, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// noiseHKDF is the function HKDF of section 4.3: "Takes a chaining_key byte sequence of length HASHLEN, and an input_key_material
// byte sequence".
func noiseHKDF(chainingKey, material []byte) (one, two, three []byte) {
	temp := noiseHMAC(chainingKey, material)
	one = noiseHMAC(temp, []byte{1})
	two = noiseHMAC(temp, one, []byte{2})
	three = noiseHMAC(temp, two, []byte{3})
	return one, two, three
}

// A noiseCipher is a CipherState (section 5.1). If the key k is nil, it does not encrypt.
type noiseCipher struct {
	k []byte
	n uint64
}

// nonce returns the next nonce (section 12.3): "The 96-bit nonce is formed by encoding 32 bits of zeros followed by little-endian
// encoding of n."
func (c *noiseCipher) nonce() []byte {
	defer func() { c.n++ }()
	return binary.LittleEndian.AppendUint64(make([]byte, 4), c.n)
}

func (c *noiseCipher) encryptWithAd(ad, plaintext []byte) []byte {
	if c.k == nil {
		return plaintext
	}
	a, err := chacha20poly1305.New(c.k)
	if err != nil {
		panic(err)
	}
	return a.Seal(nil, c.nonce(), plaintext, ad)
}

func (c *noiseCipher) decryptWithAd(ad, ciphertext []byte) ([]byte, error) {
	if c.k == nil {
		return ciphertext, nil
	}
	a, err := chacha20poly1305.New(c.k)
	if err != nil {
		panic(err)
	}
	return a.Open(nil, c.nonce(), ciphertext, ad)
}

// A noiseHandshake has the fields of a SymmetricState and of a HandshakeState (sections 5.2 and 5.3).
type noiseHandshake struct {
	noiseCipher
	ck, h []byte

	initiator bool
	s, e      *ecdh.PrivateKey
	rs, re    *ecdh.PublicKey
	psk       []byte
}

// newNoiseHandshake is the function Initialize of section 5.3, with the pre-message "<- s". rs, the static key of the other side,
// is nil for the responder, because the responder learns it from the first message.
func newNoiseHandshake(initiator bool, prologue []byte, s, e *ecdh.PrivateKey, rs *ecdh.PublicKey, psk []byte) *noiseHandshake {
	name := []byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
	n := &noiseHandshake{initiator: initiator, s: s, e: e, rs: rs, psk: psk}
	n.h = noiseHash(name) // the name is longer than HASHLEN
	n.ck = n.h
	n.mixHash(prologue)
	if initiator {
		n.mixHash(rs.Bytes())
	} else {
		n.mixHash(s.PublicKey().Bytes())
	}
	return n
}

func (n *noiseHandshake) mixHash(data []byte) { n.h = noiseHash(n.h, data) }

func (n *noiseHandshake) mixKey(material []byte) {
	ck, k, _ := noiseHKDF(n.ck, material)
	n.ck, n.noiseCipher = ck, noiseCipher{k: k}
}

func (n *noiseHandshake) mixKeyAndHash(material []byte) {
	ck, h, k := noiseHKDF(n.ck, material)
	n.ck = ck
	n.mixHash(h)
	n.noiseCipher = noiseCipher{k: k}
}

func (n *noiseHandshake) encryptAndHash(plaintext []byte) []byte {
	c := n.encryptWithAd(n.h, plaintext)
	n.mixHash(c)
	return c
}

func (n *noiseHandshake) decryptAndHash(ciphertext []byte) ([]byte, error) {
	p, err := n.decryptWithAd(n.h, ciphertext)
	n.mixHash(ciphertext)
	return p, err
}

// mix handles the tokens for which writing and reading a message do the same. For the token es, it "calls MixKey(DH(e, rs)) if
// initiator, MixKey(DH(s, re)) if responder". For the token se, it does the opposite.
func (n *noiseHandshake) mix(token string) error {
	if token == "psk" {
		n.mixKeyAndHash(n.psk)
		return nil
	}
	if !n.initiator { // the first letter stands for the initiator's key
		token = string([]byte{token[1], token[0]})
	}
	own, other := n.s, n.rs
	if token[0] == 'e' {
		own = n.e
	}
	if token[1] == 'e' {
		other = n.re
	}
	dh, err := own.ECDH(other)
	if err != nil {
		return err
	}
	n.mixKey(dh)
	return nil
}

// writeMessage returns the fields of a message: one for each public key that the message contains, and one for the payload.
func (n *noiseHandshake) writeMessage(pattern []string, payload []byte) (fields [][]byte, err error) {
	for _, token := range pattern {
		switch token {
		case "e":
			e := n.e.PublicKey().Bytes()
			fields = append(fields, e)
			n.mixHash(e)
			n.mixKey(e) // section 9.2: "In handshakes that use pre-shared keys"
		case "s":
			fields = append(fields, n.encryptAndHash(n.s.PublicKey().Bytes()))
		default:
			if err := n.mix(token); err != nil {
				return nil, err
			}
		}
	}
	return append(fields, n.encryptAndHash(payload)), nil
}

// readMessage reads the fields that writeMessage returns, and returns the payload.
func (n *noiseHandshake) readMessage(pattern []string, fields [][]byte) (payload []byte, err error) {
	for _, token := range pattern {
		switch token {
		case "e":
			if n.re, err = ecdh.X25519().NewPublicKey(fields[0]); err != nil {
				return nil, err
			}
			n.mixHash(fields[0])
			n.mixKey(fields[0])
			fields = fields[1:]
		case "s":
			s, err := n.decryptAndHash(fields[0])
			if err != nil {
				return nil, err
			}
			if n.rs, err = ecdh.X25519().NewPublicKey(s); err != nil {
				return nil, err
			}
			fields = fields[1:]
		default:
			if err := n.mix(token); err != nil {
				return nil, err
			}
		}
	}
	return n.decryptAndHash(fields[0])
}

// split returns the key for data messages from the initiator and the key for data messages to the initiator.
func (n *noiseHandshake) split() (fromInitiator, toInitiator []byte) {
	one, two, _ := noiseHKDF(n.ck, nil)
	return one, two
}

// A noiseEnd is the initiator or the responder of a WireGuard handshake. It converts between the fields of a noiseHandshake and
// WireGuard's messages (whitepaper, sections 5.4.2 and 5.4.3).
type noiseEnd struct {
	*noiseHandshake
	local, remote uint32
}

func newNoiseEnd(initiator bool, s, e *ecdh.PrivateKey, rs *ecdh.PublicKey, psk []byte, local uint32) *noiseEnd {
	return &noiseEnd{newNoiseHandshake(initiator, []byte("WireGuard v1 zx2c4 Jason@zx2c4.com"), s, e, rs, psk), local, 0}
}

// write makes the message that n has to send. The initiator sends the initiation, whose payload is a timestamp, and the responder
// sends the response, whose payload is empty. The mac2 is zero, because there is no cookie.
func (n *noiseEnd) write(payload []byte) ([]byte, error) {
	m := binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0}, n.local)
	pattern := noiseIKpsk2[0]
	if !n.initiator {
		m[0], pattern = 2, noiseIKpsk2[1]
		m = binary.LittleEndian.AppendUint32(m, n.remote)
	}
	fields, err := n.writeMessage(pattern, payload)
	if err != nil {
		return nil, err
	}
	for _, f := range fields {
		m = append(m, f...)
	}
	m = append(m, noiseMAC1(n.rs.Bytes(), m)...)
	return append(m, make([]byte, 16)...), nil
}

// read reads the message m of the other side, and returns its payload.
func (n *noiseEnd) read(m []byte) (payload []byte, err error) {
	kind, size, pattern, cuts := byte(2), 92, noiseIKpsk2[1], []int{12, 44, 60}
	if !n.initiator {
		kind, size, pattern, cuts = 1, 148, noiseIKpsk2[0], []int{8, 40, 88, 116}
	}
	if len(m) != size || m[0] != kind || m[1]|m[2]|m[3] != 0 {
		return nil, fmt.Errorf("%d bytes that begin with %x are not a message of type %d", len(m), m[:min(4, len(m))], kind)
	}
	if n.initiator && binary.LittleEndian.Uint32(m[8:]) != n.local {
		return nil, errors.New("the receiver's index is not that of the initiation")
	}
	n.remote = binary.LittleEndian.Uint32(m[4:])
	last := cuts[len(cuts)-1]
	if string(noiseMAC1(n.s.PublicKey().Bytes(), m[:last])) != string(m[last:last+16]) {
		return nil, errors.New("mac1 is not valid")
	}
	var fields [][]byte
	for i, at := range cuts[:len(cuts)-1] {
		fields = append(fields, m[at:cuts[i+1]])
	}
	return n.readMessage(pattern, fields)
}

// noiseMAC1 is MAC(HASH(LABEL-MAC1 ‖ S), m) (whitepaper, section 5.4.4).
func noiseMAC1(receiver, m []byte) []byte {
	h, err := blake2s.New128(noiseHash([]byte("mac1----"), receiver))
	if err != nil {
		panic(err)
	}
	h.Write(m)
	return h.Sum(nil)
}
