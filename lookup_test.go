package wireguard

import (
	"context"
	"testing"
)

// TestReplacedInitiationIsWiped checks that if several initiations wait for the same lookup, the device keeps only the newest
// one, and clears the secrets of the others.
func TestReplacedInitiationIsWiped(t *testing.T) {
	e := newEndOf(t, Config{PrivateKey: testKey(1), Lookup: func(ctx context.Context, _ PublicKey) (PeerConfig, error) {
		<-ctx.Done()
		return PeerConfig{}, ctx.Err()
	}})
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	put := func(label byte) *initiation {
		in := &initiation{handshake: &handshake{remote: 1, remoteEphemeral: PublicKey{1}}, key: PublicKey{7}, static: secret{1},
			timestamp: Timestamp{label}, r: e.running.Load()}
		e.lookUp(in)
		return in
	}
	wiped := func(in *initiation) bool { return *in.handshake == (handshake{}) && in.static == secret{} }
	first, before := put(1), e.drops.load()
	if wiped(first) {
		t.Fatal("an initiation that still waits for its lookup was wiped")
	}
	second := put(2)
	if !wiped(first) || wiped(second) {
		t.Errorf("after a newer initiation, the older one is wiped: %v, want true; the newer one is wiped: %v, want false", wiped(first), wiped(second))
	}
	if recording := put(1); !wiped(recording) || wiped(second) {
		t.Errorf("after a replayed initiation, the replayed one is wiped: %v, want true; the newest one is wiped: %v, want false", wiped(recording), wiped(second))
	}
	e.wantDrops(t, before, DropOldTimestamp, 1, "the replayed initiation is counted")
}
