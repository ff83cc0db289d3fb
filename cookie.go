package wireguard

import (
	"crypto/cipher"
	"encoding/binary"

	"golang.org/x/crypto/blake2s"

	"github.com/seed-86b749af/wireguard/internal/noise"
)

// Initiations and responses end in two MACs (whitepaper, section 5.4.4). mac1 shows that the sender knows the receiver's public
// key. mac2 shows that the sender receives at the address from which it sends. If a receiver under load gets a message without a
// valid mac2, it only answers with a cookie reply, type 3 (section 5.4.7).
//
//	 0      4          8            32                64
//	| type | receiver | nonce (24) | cookie (16+16) |
const (
	macSize        = noise.MACSize
	cookieSize     = 64
	cookieReceiver = 4
	cookieNonce    = 8
	cookieCookie   = 32
	cookieMaxUse   = cookieSecretLife - 5*second // a message with an older cookie may arrive after the receiver has a new secret
	mac1Label      = "mac1----"
	cookieKeyMark  = "cookie--"
)

func mac1Key(k PublicKey) [32]byte   { return blake2s.Sum256(append([]byte(mac1Label), k[:]...)) }
func cookieKey(k PublicKey) [32]byte { return blake2s.Sum256(append([]byte(cookieKeyMark), k[:]...)) }

// A cookieJar holds what this device needs to make the MACs of its messages to one peer. It is kept after the handshake, because
// a cookie reply to a response arrives after the handshake. The zero value has no cookie.
type cookieJar struct {
	mac1     [macSize]byte // the mac1 of the last message sent; zero while no cookie reply is accepted
	cookie   [macSize]byte
	received int64 // when the cookie arrived; 0 means that there is no cookie
}

// sign puts the MACs into m, a handshake message to the peer whose public key is remote.
func (j *cookieJar) sign(m []byte, remote PublicKey, now int64) {
	at := len(m) - 2*macSize
	key := mac1Key(remote)
	j.mac1 = noise.NewMAC(key[:]).Of(m[:at])
	copy(m[at:], j.mac1[:])
	if j.valid(now) {
		mac2 := noise.NewMAC(j.cookie[:]).Of(m[:at+macSize])
		copy(m[at+macSize:], mac2[:])
	}
}

// valid reports whether the jar has a cookie that is younger than cookieMaxUse.
func (j *cookieJar) valid(now int64) bool { return j.received != 0 && now-j.received < cookieMaxUse }

// wantsReply reports whether a cookie reply to the last message is still accepted.
func (j *cookieJar) wantsReply() bool { return j.mac1 != [macSize]byte{} }

// consume reports whether m, a cookie reply from the peer whose public key is remote, is an authentic reply to the last message
// sent. If it is, consume stores its cookie. It accepts at most one reply to each message sent.
func (j *cookieJar) consume(m []byte, remote PublicKey, now int64) bool {
	if !j.wantsReply() {
		return false
	}
	key := cookieKey(remote)
	var cookie [macSize]byte
	if _, err := noise.XAEAD(&key).Open(cookie[:0], m[cookieNonce:cookieCookie], m[cookieCookie:cookieSize], j.mac1[:]); err != nil {
		return false
	}
	j.cookie, j.received, j.mac1 = cookie, now, [macSize]byte{}
	return true
}

// A cookieSecret is the secret with which a device makes its cookies. The zero value is ready, and has no secret yet.
type cookieSecret struct {
	key  [32]byte
	made int64 // when the key was made; 0 means that there is no secret yet
}

// expired reports whether there is no secret, or the secret is at least 120 s old.
func (s *cookieSecret) expired(now int64) bool { return s.made == 0 || now-s.made >= cookieSecretLife }

// renew makes a new secret if the last one has expired.
func (s *cookieSecret) renew(now int64, random func([]byte)) {
	if s.expired(now) {
		random(s.key[:])
		s.made = now
	}
}

// A cookieChecker checks the MACs of the messages that a device receives. Each goroutine has a separate cookieChecker, with a
// copy of the device's secret. The zero value is ready.
type cookieChecker struct {
	secret cookieSecret

	key    [32]byte  // the secret for which the next field was made
	cookie noise.MAC // computes cookies with that secret; the zero MAC means that no cookie was needed yet
	id     *identity // the identity for which the next two fields were made
	mac1   noise.MAC
	seal   cipher.AEAD // encrypts cookies

	source [24]byte         // memory for the source to which a cookie is bound
	sealed [macSize]byte    // memory for the cookie in a reply
	made   [cookieSize]byte // memory for the last reply
}

// prepare makes c.mac1 and c.seal for id, an identity of the device, unless they were made for id already.
func (c *cookieChecker) prepare(id *identity) {
	if c.id != id {
		c.id, c.mac1, c.seal = id, noise.NewMAC(id.mac1Key[:]), noise.XAEAD(&id.cookieKey)
	}
}

// validMAC1 reports whether m, a handshake message, has a valid mac1 for the identity id.
func (c *cookieChecker) validMAC1(m []byte, id *identity) bool {
	c.prepare(id)
	at := len(m) - 2*macSize
	return c.mac1.Verify(m[:at], m[at:at+macSize])
}

// validMAC2 reports whether m, whose mac1 is valid, has a mac2 made with the cookie of source.
func (c *cookieChecker) validMAC2(m []byte, source []byte, now int64, random func([]byte)) bool {
	at := len(m) - macSize
	if [macSize]byte(m[at:]) == [macSize]byte{} {
		return false // the sender of m has no cookie
	}
	cookie := c.cookieOf(source, now, random)
	return noise.NewMAC(cookie[:]).Verify(m[:at], m[at:])
}

// cookieOf returns the cookie of a source: a MAC of the data from appendSource, with the device's secret as the key.
func (c *cookieChecker) cookieOf(source []byte, now int64, random func([]byte)) [macSize]byte {
	if c.secret.renew(now, random); c.cookie == (noise.MAC{}) || c.key != c.secret.key {
		c.key, c.cookie = c.secret.key, noise.NewMAC(c.secret.key[:])
	}
	return c.cookie.Of(source)
}

// reply makes the cookie reply to m, a handshake message from source whose mac1 is valid.
func (c *cookieChecker) reply(m []byte, source []byte, id *identity, now int64, random func([]byte)) [cookieSize]byte {
	r := &c.made
	binary.LittleEndian.PutUint32(r[:], typeCookie)
	copy(r[4:8], m[4:8]) // the sender index of m is the receiver index of the reply
	random(r[cookieNonce:cookieCookie])
	c.prepare(id)
	c.sealed = c.cookieOf(source, now, random)
	at := len(m) - 2*macSize
	c.seal.Seal(r[cookieCookie:cookieCookie], r[cookieNonce:cookieCookie], c.sealed[:], m[at:at+macSize])
	return *r
}

// appendSource appends the data that a cookie is bound to: the address and the port, or the key of the Link.
func (e *Endpoint) appendSource(b []byte) []byte {
	if e.Link != nil {
		key := e.Link.Key()
		return append(b, key[:]...)
	}
	b = append(b, e.Addr.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(b, e.Addr.Port())
}
