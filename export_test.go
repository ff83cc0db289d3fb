package wireguard

import (
	"crypto/cipher"
	"time"
)

// The tests in package wireguard_test use these functions to access unexported parts of this package.

const (
	RejectAfterMessages = uint64(rejectAfterMessages)
	RekeyAfterMessages  = uint64(rekeyAfterMessages)
	WindowSize          = windowSize
)

// SetRandom makes d use the function random instead of the system's random generator. Call it before Up.
func SetRandom(d *Device, random func([]byte)) { d.random = random }

// ForceLoad puts d under load, or ends the load.
func ForceLoad(d *Device, on bool) {
	now := d.now()
	d.slow.mu.Lock()
	defer d.slow.mu.Unlock()
	for _, q := range []*messages{&d.slow.initiations, &d.slow.answers} {
		q.UnderLoad(false, 0, 1<<40, now+48*3600*second) // at this time, any earlier load has ended
		if on {
			q.UnderLoad(true, 0, 1<<40, now+24*3600*second)
		}
	}
}

// BeginLoad puts d under load, as a long queue of initiations does. The load ends as usual.
func BeginLoad(d *Device) {
	d.slow.mu.Lock()
	defer d.slow.mu.Unlock()
	d.slow.initiations.UnderLoad(true, d.drops[DropCookieRequired].Load(), 1, d.now())
}

// SetSendCounter sets the counter of the next message that d sends in its session with a peer.
func SetSendCounter(d *Device, peer PublicKey, counter uint64) {
	p := d.peers.Find(peer)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current.counter = counter
}

// SessionIndices returns the number of session indices in use, including those of handshakes in progress.
func SessionIndices(d *Device) int { return d.sessions.m.Len() }

// StagedBytes returns how many bytes of memory the staged packets of d occupy.
func StagedBytes(d *Device) int64 { return d.pool.Bytes() }

// LimitedSources returns the number of sources that the rate limiter remembers.
func LimitedSources(d *Device) int {
	d.cookieMu.Lock()
	defer d.cookieMu.Unlock()
	return d.sourceLimit.Len()
}

// Waiters returns the number of calls of Handshake and Renew that are waiting for a handshake.
func Waiters(d *Device) (n int) {
	for p := range d.allPeers() {
		p.mu.Lock()
		for w := p.waits; w != nil; w = w.next {
			n++
		}
		p.mu.Unlock()
	}
	return n
}

// InitiationFrom returns an initiation to the device with the given public key (to). The public key of its sender (static) must
// be of low order, so that the static secret is all zero and the initiation can be made without a private key.
func InitiationFrom(static, to PublicKey, now time.Time) []byte {
	return signedInitiation(&identity{public: static}, to, &secret{}, now)
}

// StrangersInitiation makes a new private key, and returns an authentic initiation from this key to the device with the given
// public key (to).
func StrangersInitiation(to PublicKey, now time.Time) []byte {
	id := newIdentity(NewPrivateKey())
	static, err := id.private.shared(&to)
	if err != nil {
		panic(err)
	}
	return signedInitiation(id, to, &static, now)
}

func signedInitiation(id *identity, to PublicKey, static *secret, now time.Time) []byte {
	_, m, err := createInitiation(id, &to, static, NewPrivateKey().clamped(), TimestampOf(now), 7)
	if err != nil {
		panic(err)
	}
	new(cookieJar).sign(m[:], to, 0)
	return m[:]
}

// Ciphers returns the ciphers with which d sends and receives in the session that has the local index, or nil if d has no such
// session.
func Ciphers(d *Device, index uint32) (send, receive cipher.AEAD) {
	if k := d.sessions.find(index).k; k != nil {
		return k.sender, k.receiver
	}
	return nil, nil
}
