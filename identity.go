package wireguard

import (
	"bytes"
	"crypto/subtle"

	"github.com/cloudflare/circl/dh/x25519"
)

// A PrivateKey is a Curve25519 private key. The zero value means that there is no key.
//
// It prints as "(private key)", and encoders such as encoding/json and encoding/gob refuse it: only Text returns the key. This
// package cannot prevent two exceptions. Package fmt prints the bytes of a key in an unexported field of a struct, and
// encoding/binary writes the bytes of any array.
type PrivateKey [32]byte

// A PublicKey is a Curve25519 public key, which names a device or a peer. It prints as base64, and %x prints its bytes in
// hexadecimal. It can be the key of a map. The zero value means that there is no key.
type PublicKey [32]byte

// A PresharedKey is a symmetric key that two peers share beside their key pairs. It prints as "(preshared key)", and encoders
// refuse it, with the same two exceptions as for a PrivateKey. The zero value means that there is no key.
type PresharedKey [32]byte

// clamped returns k in the form that the curve uses (RFC 7748, section 5) and wg(8) stores. Zero stays zero.
func (k PrivateKey) clamped() PrivateKey {
	if k.IsZero() {
		return k
	}
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// Public computes the public key of k. Each call costs an X25519. The zero key has the zero public key.
func (k PrivateKey) Public() PublicKey {
	if k.IsZero() {
		return PublicKey{}
	}
	secret, public := x25519.Key(k), x25519.Key{}
	x25519.KeyGen(&public, &secret)
	clear(secret[:])
	return PublicKey(public)
}

// IsZero reports whether k is the zero key, in constant time.
func (k PrivateKey) IsZero() bool { return subtle.ConstantTimeCompare(k[:], make([]byte, 32)) == 1 }

// IsZero reports whether k is the zero key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// after reports whether k is greater than l. This decides which peer waits when two initiations cross.
func (k PublicKey) after(l PublicKey) bool { return bytes.Compare(k[:], l[:]) > 0 }

// IsZero reports whether k is the zero key, in constant time.
func (k PresharedKey) IsZero() bool { return subtle.ConstantTimeCompare(k[:], make([]byte, 32)) == 1 }

// An identity is a device's private key and the values derived from it. It never changes: a new key makes a new identity.
type identity struct {
	private   PrivateKey
	public    PublicKey
	mac1Key   [32]byte // for mac1 in messages to this device
	cookieKey [32]byte // for the cookie replies of this device
}

func newIdentity(private PrivateKey) *identity {
	if private.IsZero() {
		return nil
	}
	id := &identity{private: private.clamped(), public: private.Public()}
	id.mac1Key, id.cookieKey = mac1Key(id.public), cookieKey(id.public)
	return id
}

// publicKey returns the public key of id, or the zero key if id is nil.
func (id *identity) publicKey() PublicKey {
	if id == nil {
		return PublicKey{}
	}
	return id.public
}

// A secret is the result of a Diffie-Hellman function. "An all-zero result ends the handshake" (Noise, section 12.1).
type secret [32]byte

func (k *PrivateKey) shared(public *PublicKey) (s secret, err error) {
	if !x25519.Shared((*x25519.Key)(&s), (*x25519.Key)(k), (*x25519.Key)(public)) {
		return secret{}, refusal(DropLowOrder)
	}
	return s, nil
}
