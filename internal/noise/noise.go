// Package noise is the symmetric part of Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, the handshake of WireGuard: it keeps the chaining
// key and the hash of an exchange, and mixes the tokens of the handshake into both (whitepaper, section 5.4). The package also has
// the AEADs, and the MAC at the end of handshake messages. It takes no lock, reads no clock and uses no randomness.
package noise

import (
	"crypto/cipher"
	"crypto/subtle"
	"hash"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

const (
	construction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
	identifier   = "WireGuard v1 zx2c4 Jason@zx2c4.com"
)

// A Transcript is the chaining key and the hash of an exchange so far (Noise, SymmetricState). Both are secrets. As in the
// whitepaper, comments call the chaining key C and the hash H.
type Transcript struct{ chainKey, hash [32]byte }

var initial = func() (t Transcript) {
	t.chainKey = blake2s.Sum256([]byte(construction))
	t.hash = t.chainKey
	t.mixHash([]byte(identifier))
	return t
}()

// Start begins an exchange with the responder that has this public key.
func Start(responder []byte) Transcript {
	t := initial
	t.mixHash(responder)
	return t
}

// mixHash sets H := HASH(H ‖ data).
func (t *Transcript) mixHash(data []byte) {
	var b [32 + 64]byte
	n := copy(b[:], t.hash[:])
	n += copy(b[n:], data)
	t.hash = blake2s.Sum256(b[:n])
}

// MixEphemeral processes the token e, an ephemeral key. Because the handshake has a preshared key, e is mixed into the chaining
// key as well as into the hash.
func (t *Transcript) MixEphemeral(e []byte) {
	t.mixHash(e)
	kdf(&t.chainKey, e, &t.chainKey)
}

// MixKey sets (C, key) := KDF2(C, input).
func (t *Transcript) MixKey(input []byte) (key [32]byte) {
	kdf(&t.chainKey, input, &t.chainKey, &key)
	return key
}

// MixSecret does what MixKey does, but makes no key to encrypt with: C := KDF1(C, input).
func (t *Transcript) MixSecret(input []byte) { kdf(&t.chainKey, input, &t.chainKey) }

// MixPresharedKey processes the token psk: (C, τ, key) := KDF3(C, Q), H := HASH(H ‖ τ).
func (t *Transcript) MixPresharedKey(psk []byte) (key [32]byte) {
	var tau [32]byte
	kdf(&t.chainKey, psk, &t.chainKey, &tau, &key)
	t.mixHash(tau[:])
	clear(tau[:])
	return key
}

// Split ends the exchange and clears t: the initiator sends with the first key and receives with the second.
func (t *Transcript) Split() (first, second [32]byte) {
	kdf(&t.chainKey, nil, &first, &second)
	*t = Transcript{}
	return first, second
}

var zeroNonce [chacha20poly1305.NonceSize]byte

// Encrypt seals plaintext into dst, which is 16 bytes longer, and mixes the result into the hash.
func (t *Transcript) Encrypt(dst []byte, key *[32]byte, plaintext []byte) {
	AEAD(key).Seal(dst[:0], zeroNonce[:], plaintext, t.hash[:])
	t.mixHash(dst)
}

// Decrypt decrypts ciphertext, appends the plaintext to dst, and mixes ciphertext into the hash. Decrypt fails if ciphertext is
// forged.
func (t *Transcript) Decrypt(dst []byte, key *[32]byte, ciphertext []byte) error {
	_, err := AEAD(key).Open(dst, zeroNonce[:], ciphertext, t.hash[:])
	if err == nil {
		t.mixHash(ciphertext)
	}
	return err
}

// kdf is HKDF with HMAC-BLAKE2s and no info (KDFn): τ0 := HMAC(key, input), τi := HMAC(τ0, τi-1 ‖ i). It stores τ1 to τn in out.
// key may also be one of out.
func kdf(key *[32]byte, input []byte, out ...*[32]byte) {
	prk := hmac(key, input)
	var block [33]byte
	n := 0
	for i, o := range out {
		block[n] = byte(i + 1)
		*o = hmac(&prk, block[:n+1])
		n = copy(block[:], o[:])
	}
	clear(prk[:])
	clear(block[:])
}

// innerPad and outerPad are the inputs of HMAC's two hashes for a key of zeros: a block of padding, and room for the data.
var innerPad, outerPad = hmacPad(0x36), hmacPad(0x5c)

func hmacPad(pad byte) (b [128]byte) {
	for i := range 64 {
		b[i] = pad
	}
	return b
}

// hmac is HMAC-BLAKE2s (RFC 2104) of at most 64 bytes of data. crypto/hmac computes the same, but allocates.
func hmac(key *[32]byte, data []byte) [32]byte {
	inner, outer := innerPad, outerPad
	subtle.XORBytes(inner[:], inner[:len(key)], key[:])
	subtle.XORBytes(outer[:], outer[:len(key)], key[:])
	sum := blake2s.Sum256(inner[:64+copy(inner[64:], data)])
	copy(outer[64:], sum[:])
	clear(inner[:])
	sum = blake2s.Sum256(outer[:96])
	clear(outer[:])
	return sum
}

// AEAD returns ChaCha20-Poly1305 with a key.
func AEAD(key *[32]byte) cipher.AEAD {
	a, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(err) // only the length of the key could be wrong
	}
	return a
}

// XAEAD returns XChaCha20-Poly1305 with a key.
func XAEAD(key *[32]byte) cipher.AEAD {
	a, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic(err) // only the length of the key could be wrong
	}
	return a
}

// MACSize is the length of a MAC in bytes.
const MACSize = 16

// A MAC is MAC(key, ·): BLAKE2s with a key and an output of 16 bytes. One goroutine at a time uses it.
type MAC struct {
	h   hash.Hash
	sum *[MACSize]byte // the last result; it is stored here so that Of does not allocate
}

// NewMAC returns the MAC with a key of 1 to 32 bytes.
func NewMAC(key []byte) MAC {
	h, err := blake2s.New128(key)
	if err != nil {
		panic(err) // every key of 1 to 32 bytes is accepted
	}
	return MAC{h, new([MACSize]byte)}
}

// Of returns the MAC of data.
func (m MAC) Of(data []byte) [MACSize]byte {
	m.h.Reset()
	m.h.Write(data)
	m.h.Sum(m.sum[:0])
	return *m.sum
}

// Verify reports whether sum is the MAC of data, in a time that does not depend on sum.
func (m MAC) Verify(data, sum []byte) bool {
	own := m.Of(data)
	return subtle.ConstantTimeCompare(own[:], sum) == 1
}
