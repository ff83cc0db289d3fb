package wireguard

import (
	"crypto/subtle"
	"encoding/binary"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// The handshake is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (whitepaper, section 5.4):
//
//	<- s
//	...
//	-> e, es, s, ss, {t}
//	<- e, ee, se, psk, {}
//
// The functions of this file compute on values and change no peer. The caller commits what they return, after it has
// checked that nothing changed meanwhile. Secrets are cleared after use, except for the copies that the AEADs of x/crypto
// make of their keys. The garbage collector frees those.
const (
	construction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
	identifier   = "WireGuard v1 zx2c4 Jason@zx2c4.com"
)

// The initiation, type 1, and where its fields begin (section 5.4.2).
//
//	 0      4        8                40               88                   116    132    148
//	| type | sender | ephemeral (32) | static (32+16) | timestamp (12+16) | mac1 | mac2 |
const (
	initiationSize      = 148
	initiationSender    = 4
	initiationEphemeral = 8
	initiationStatic    = 40
	initiationTimestamp = 88
)

// The response, type 2 (section 5.4.3).
//
//	 0      4        8          12               44            60     76     92
//	| type | sender | receiver | ephemeral (32) | empty (16) | mac1 | mac2 |
const (
	responseSize      = 92
	responseSender    = 4
	responseReceiver  = 8
	responseEphemeral = 12
	responseEmpty     = 44
)

// A handshake is the state of an exchange that is under way, after the initiation was sent or received.
type handshake struct {
	initiator       bool
	id              *identity // the device's during this exchange, which ends when the device gets another
	transcript      transcript
	ephemeral       PrivateKey // of this device, as initiator
	remoteEphemeral PublicKey  // of the peer, as responder
	local, remote   uint32     // indices; only a responder knows remote
}

// wipe clears the secrets of h, if there is one.
func (h *handshake) wipe() {
	if h != nil {
		*h = handshake{}
	}
}

// sessionKeys are the result of an exchange.
type sessionKeys struct{ send, receive [32]byte }

// createInitiation makes an initiation to the peer remote. static is the secret of the two static keys. The MACs stay
// zero.
func createInitiation(id *identity, remote *PublicKey, static *secret, ephemeral PrivateKey, ts Timestamp, local uint32) (h *handshake, m [initiationSize]byte, err error) {
	defer clear(ephemeral[:])
	h = &handshake{initiator: true, id: id, ephemeral: ephemeral, local: local}
	t := &h.transcript
	t.start(remote)
	binary.LittleEndian.PutUint32(m[0:], typeInitiation)
	binary.LittleEndian.PutUint32(m[initiationSender:], local)

	/* e */
	e := ephemeral.Public()
	copy(m[initiationEphemeral:], e[:])
	t.mixEphemeral(&e)
	/* es */
	es, err := ephemeral.shared(remote)
	if err != nil {
		h.wipe()
		return nil, m, err
	}
	key := t.mixKey(es[:])
	/* s */
	t.encrypt(m[initiationStatic:initiationTimestamp], &key, id.public[:])
	/* ss */
	key = t.mixKey(static[:])
	/* {t} */
	t.encrypt(m[initiationTimestamp:initiationTimestamp+28], &key, ts[:])
	clear(es[:])
	clear(key[:])
	return h, m, nil
}

// consumeInitiation begins to read an initiation, up to the initiator's static key. The key proves nothing until
// openTimestamp has succeeded.
func consumeInitiation(id *identity, m []byte) (h *handshake, remote PublicKey, err error) {
	h = &handshake{id: id, remote: binary.LittleEndian.Uint32(m[initiationSender:])}
	t := &h.transcript
	t.start(&id.public)

	/* e */
	h.remoteEphemeral = PublicKey(m[initiationEphemeral:])
	t.mixEphemeral(&h.remoteEphemeral)
	/* es */
	es, err := id.private.shared(&h.remoteEphemeral)
	if err != nil {
		return nil, remote, err
	}
	key := t.mixKey(es[:])
	/* s */
	err = t.decrypt(remote[:0], &key, m[initiationStatic:initiationTimestamp])
	clear(es[:])
	clear(key[:])
	if err != nil {
		h.wipe()
		return nil, remote, err
	}
	return h, remote, nil
}

// openTimestamp reads the rest of the initiation, which proves that the initiator has the static key. static is the
// secret of the two static keys.
func (h *handshake) openTimestamp(m []byte, static *secret) (ts Timestamp, err error) {
	/* ss */
	key := h.transcript.mixKey(static[:])
	/* {t} */
	err = h.transcript.decrypt(ts[:0], &key, m[initiationTimestamp:initiationTimestamp+28])
	clear(key[:])
	return ts, err
}

// createResponse answers the initiation that h consumed. It does not change h, so that the caller can discard a result
// that arrives too late. The MACs stay zero.
func (h *handshake) createResponse(remote *PublicKey, psk *PresharedKey, ephemeral PrivateKey, local uint32) (m [responseSize]byte, keys sessionKeys, err error) {
	t := h.transcript
	var ee, se secret
	defer func() {
		t.wipe()
		clear(ephemeral[:])
		clear(ee[:])
		clear(se[:])
	}()
	binary.LittleEndian.PutUint32(m[0:], typeResponse)
	binary.LittleEndian.PutUint32(m[responseSender:], local)
	binary.LittleEndian.PutUint32(m[responseReceiver:], h.remote)

	/* e */
	e := ephemeral.Public()
	copy(m[responseEphemeral:], e[:])
	t.mixEphemeral(&e)
	/* ee */
	if ee, err = ephemeral.shared(&h.remoteEphemeral); err != nil {
		return m, keys, err
	}
	t.mixSecret(&ee)
	/* se */
	if se, err = ephemeral.shared(remote); err != nil {
		return m, keys, err
	}
	t.mixSecret(&se)
	/* psk */
	key := t.mixPresharedKey(psk)
	/* {} */
	t.encrypt(m[responseEmpty:responseEmpty+messageTag], &key, nil)
	keys.receive, keys.send = t.split()
	clear(key[:])
	return m, keys, nil
}

// consumeResponse reads the response m to the initiation that h created. It does not change h.
func (h *handshake) consumeResponse(m []byte, psk *PresharedKey) (keys sessionKeys, remote uint32, err error) {
	t := h.transcript
	var ee, se secret
	var key [32]byte
	defer func() {
		t.wipe()
		clear(ee[:])
		clear(se[:])
		clear(key[:])
	}()

	/* e */
	e := PublicKey(m[responseEphemeral:])
	t.mixEphemeral(&e)
	/* ee */
	if ee, err = h.ephemeral.shared(&e); err != nil {
		return keys, 0, err
	}
	t.mixSecret(&ee)
	/* se */
	if se, err = h.id.private.shared(&e); err != nil {
		return keys, 0, err
	}
	t.mixSecret(&se)
	/* psk */
	key = t.mixPresharedKey(psk)
	/* {} */
	if err = t.decrypt(nil, &key, m[responseEmpty:responseEmpty+messageTag]); err != nil {
		return keys, 0, err
	}
	keys.send, keys.receive = t.split()
	return keys, binary.LittleEndian.Uint32(m[responseSender:]), nil
}

// A transcript is the chaining key and the hash of an exchange so far (Noise, SymmetricState).
type transcript struct{ chainKey, hash [32]byte }

var initialTranscript = func() (t transcript) {
	t.chainKey = blake2s.Sum256([]byte(construction))
	t.hash = t.chainKey
	t.mixHash([]byte(identifier))
	return t
}()

func (t *transcript) start(responder *PublicKey) {
	*t = initialTranscript
	t.mixHash(responder[:])
}

func (t *transcript) wipe() { *t = transcript{} }

// mixHash sets H := HASH(H ‖ data).
func (t *transcript) mixHash(data []byte) {
	var b [32 + 64]byte
	n := copy(b[:], t.hash[:])
	n += copy(b[n:], data)
	t.hash = blake2s.Sum256(b[:n])
}

// mixEphemeral is the token e: with a preshared key, ephemeral keys are mixed into the chaining key too.
func (t *transcript) mixEphemeral(e *PublicKey) {
	t.mixHash(e[:])
	kdf(&t.chainKey, e[:], &t.chainKey)
}

// mixKey sets (C, key) := KDF2(C, input).
func (t *transcript) mixKey(input []byte) (key [32]byte) {
	kdf(&t.chainKey, input, &t.chainKey, &key)
	return key
}

// mixSecret is mixKey where nothing is encrypted with the key: C := KDF1(C, input).
func (t *transcript) mixSecret(input *secret) { kdf(&t.chainKey, input[:], &t.chainKey) }

// mixPresharedKey is the token psk: (C, τ, key) := KDF3(C, Q), H := HASH(H ‖ τ).
func (t *transcript) mixPresharedKey(psk *PresharedKey) (key [32]byte) {
	var tau [32]byte
	kdf(&t.chainKey, psk[:], &t.chainKey, &tau, &key)
	t.mixHash(tau[:])
	clear(tau[:])
	return key
}

// split ends the exchange: the initiator sends with the first key and receives with the second.
func (t *transcript) split() (first, second [32]byte) {
	kdf(&t.chainKey, nil, &first, &second)
	t.wipe()
	return first, second
}

var zeroNonce [chacha20poly1305.NonceSize]byte

// encrypt seals plaintext into dst, which is 16 bytes longer, and mixes the result into the hash.
func (t *transcript) encrypt(dst []byte, key *[32]byte, plaintext []byte) {
	newAEAD(key).Seal(dst[:0], zeroNonce[:], plaintext, t.hash[:])
	t.mixHash(dst)
}

// decrypt appends the opened ciphertext to dst and mixes ciphertext into the hash.
func (t *transcript) decrypt(dst []byte, key *[32]byte, ciphertext []byte) error {
	if _, err := newAEAD(key).Open(dst, zeroNonce[:], ciphertext, t.hash[:]); err != nil {
		return refusal(DropForged)
	}
	t.mixHash(ciphertext)
	return nil
}

// kdf is HKDF with HMAC-BLAKE2s and no info: τ0 := HMAC(key, input), τi := HMAC(τ0, τi-1 ‖ i) go to out
// (section 5.4, KDFn). key may be one of out.
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

// innerPad and outerPad are what HMAC hashes under a key of zeros: a block of padding, and room for the data.
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

// A Timestamp is a TAI64N label as initiations carry it: big-endian seconds and nanoseconds. Each initiation of a peer has a
// greater one than the last. The zero value is older than all others.
type Timestamp [12]byte

// After reports whether t is later than u.
func (t Timestamp) After(u Timestamp) bool { return string(t[:]) > string(u[:]) }

// latest returns the later one of t and u.
func (t Timestamp) latest(u Timestamp) Timestamp {
	if u.After(t) {
		return u
	}
	return t
}

// next returns the least label that is greater than t. It is sent if the wall clock did not advance.
func (t Timestamp) next() Timestamp {
	sec, nsec := binary.BigEndian.Uint64(t[:]), binary.BigEndian.Uint32(t[8:])+1
	if nsec >= uint32(second) {
		sec, nsec = sec+1, 0
	}
	binary.BigEndian.PutUint64(t[:], sec)
	binary.BigEndian.PutUint32(t[8:], nsec)
	return t
}
