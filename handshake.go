package wireguard

import (
	"encoding/binary"

	"github.com/seed-86b749af/wireguard/internal/noise"
)

// The handshake is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (whitepaper, section 5.4):
//
//	<- s
//	...
//	-> e, es, s, ss, {t}
//	<- e, ee, se, psk, {}
//
// The functions of this file compute on values and change no peer. The caller stores their results in the peer, after it has
// checked that the peer has not changed meanwhile. Secrets are cleared after use, except for the copies that the AEADs of
// x/crypto make of their keys. The garbage collector frees those. Package internal/noise applies the tokens to the transcript.

// An initiation has type 1 (section 5.4.2). The constants say how long it is, and where its fields begin.
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

// A response has type 2 (section 5.4.3).
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
	id              *identity // the device's identity; the exchange ends when the device gets another one
	transcript      noise.Transcript
	ephemeral       PrivateKey // this device's ephemeral key, if it is the initiator
	remoteEphemeral PublicKey  // the peer's ephemeral key, if this device is the responder
	local, remote   uint32     // session indices; remote is known only if this device is the responder
}

// wipe clears the secrets of h, if there is one.
func (h *handshake) wipe() {
	if h != nil {
		*h = handshake{}
	}
}

// sessionKeys are the result of an exchange.
type sessionKeys struct{ send, receive [32]byte }

// createInitiation makes an initiation to the peer with the public key remote. static is the shared secret of the two static
// keys. The MACs stay zero.
func createInitiation(id *identity, remote *PublicKey, static *secret, ephemeral PrivateKey, ts Timestamp, local uint32) (h *handshake, m [initiationSize]byte, err error) {
	defer clear(ephemeral[:])
	h = &handshake{initiator: true, id: id, ephemeral: ephemeral, local: local}
	h.transcript = noise.Start(remote[:])
	t := &h.transcript
	binary.LittleEndian.PutUint32(m[0:], typeInitiation)
	binary.LittleEndian.PutUint32(m[initiationSender:], local)

	/* e */
	e := ephemeral.Public()
	copy(m[initiationEphemeral:], e[:])
	t.MixEphemeral(e[:])
	/* es */
	es, err := ephemeral.shared(remote)
	if err != nil {
		h.wipe()
		return nil, m, err
	}
	key := t.MixKey(es[:])
	/* s */
	t.Encrypt(m[initiationStatic:initiationTimestamp], &key, id.public[:])
	/* ss */
	key = t.MixKey(static[:])
	/* {t} */
	t.Encrypt(m[initiationTimestamp:initiationTimestamp+28], &key, ts[:])
	clear(es[:])
	clear(key[:])
	return h, m, nil
}

// consumeInitiation reads the first part of an initiation, up to the initiator's static public key. This key is not authentic
// until openTimestamp has succeeded.
func consumeInitiation(id *identity, m []byte) (h *handshake, remote PublicKey, err error) {
	h = &handshake{id: id, remote: binary.LittleEndian.Uint32(m[initiationSender:])}
	h.transcript = noise.Start(id.public[:])
	t := &h.transcript

	/* e */
	h.remoteEphemeral = PublicKey(m[initiationEphemeral:])
	t.MixEphemeral(h.remoteEphemeral[:])
	/* es */
	es, err := id.private.shared(&h.remoteEphemeral)
	if err != nil {
		return nil, remote, err
	}
	key := t.MixKey(es[:])
	/* s */
	err = t.Decrypt(remote[:0], &key, m[initiationStatic:initiationTimestamp])
	clear(es[:])
	clear(key[:])
	if err != nil {
		h.wipe()
		return nil, remote, err
	}
	return h, remote, nil
}

// openTimestamp reads the rest of the initiation. If it succeeds, the initiator has the private key of its static public key.
// static is the shared secret of the two static keys.
func (h *handshake) openTimestamp(m []byte, static *secret) (ts Timestamp, err error) {
	/* ss */
	key := h.transcript.MixKey(static[:])
	/* {t} */
	err = h.transcript.Decrypt(ts[:0], &key, m[initiationTimestamp:initiationTimestamp+28])
	clear(key[:])
	return ts, err
}

// createResponse makes the response to the initiation from which consumeInitiation made h. It does not change h, so that the
// caller can discard the response if the peer has changed meanwhile. The MACs stay zero.
func (h *handshake) createResponse(remote *PublicKey, psk *PresharedKey, ephemeral PrivateKey, local uint32) (m [responseSize]byte, keys sessionKeys, err error) {
	t := h.transcript
	var ee, se secret
	defer func() {
		t = noise.Transcript{}
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
	t.MixEphemeral(e[:])
	/* ee */
	if ee, err = ephemeral.shared(&h.remoteEphemeral); err != nil {
		return m, keys, err
	}
	t.MixSecret(ee[:])
	/* se */
	if se, err = ephemeral.shared(remote); err != nil {
		return m, keys, err
	}
	t.MixSecret(se[:])
	/* psk */
	key := t.MixPresharedKey(psk[:])
	/* {} */
	t.Encrypt(m[responseEmpty:responseEmpty+messageTag], &key, nil)
	keys.receive, keys.send = t.Split()
	clear(key[:])
	return m, keys, nil
}

// consumeResponse reads m, the response to the initiation that createInitiation returned with h. It does not change h.
func (h *handshake) consumeResponse(m []byte, psk *PresharedKey) (keys sessionKeys, remote uint32, err error) {
	t := h.transcript
	var ee, se secret
	var key [32]byte
	defer func() {
		t = noise.Transcript{}
		clear(ee[:])
		clear(se[:])
		clear(key[:])
	}()

	/* e */
	e := PublicKey(m[responseEphemeral:])
	t.MixEphemeral(e[:])
	/* ee */
	if ee, err = h.ephemeral.shared(&e); err != nil {
		return keys, 0, err
	}
	t.MixSecret(ee[:])
	/* se */
	if se, err = h.id.private.shared(&e); err != nil {
		return keys, 0, err
	}
	t.MixSecret(se[:])
	/* psk */
	key = t.MixPresharedKey(psk[:])
	/* {} */
	if err = t.Decrypt(nil, &key, m[responseEmpty:responseEmpty+messageTag]); err != nil {
		return keys, 0, err
	}
	keys.send, keys.receive = t.Split()
	return keys, binary.LittleEndian.Uint32(m[responseSender:]), nil
}

// A Timestamp is the TAI64N label in an initiation: big-endian seconds and nanoseconds. Each initiation of a peer must have a
// greater timestamp than all earlier initiations of this peer. The zero value is older than all others.
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

// next returns the least timestamp that is greater than t. The device sends this timestamp if the wall clock has not advanced
// beyond t.
func (t Timestamp) next() Timestamp {
	sec, nsec := binary.BigEndian.Uint64(t[:]), binary.BigEndian.Uint32(t[8:])+1
	if nsec >= uint32(second) {
		sec, nsec = sec+1, 0
	}
	binary.BigEndian.PutUint64(t[:], sec)
	binary.BigEndian.PutUint32(t[8:], nsec)
	return t
}
