package noise

import (
	"bytes"
	"crypto/ecdh"
	stdhmac "crypto/hmac"
	"encoding/hex"
	"fmt"
	"hash"
	"testing"

	"golang.org/x/crypto/blake2s"
	"pgregory.net/rapid"
)

func private(t *testing.T, s string) *ecdh.PrivateKey {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdh.X25519().NewPrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func wantHex(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s:\n got %x\nwant %s", what, got, want)
	}
}

func newBLAKE2s() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(err)
	}
	return h
}

// slowHMAC is hmac, computed with the standard library.
func slowHMAC(key, data []byte) []byte {
	h := stdhmac.New(newBLAKE2s, key)
	h.Write(data)
	return h.Sum(nil)
}

// slowKDF is KDFn, computed as the whitepaper defines it (section 5.4).
func slowKDF(key, input []byte, n int) (out [][]byte) {
	prk := slowHMAC(key, input)
	var last []byte
	for i := 1; i <= n; i++ {
		last = slowHMAC(prk, append(bytes.Clone(last), byte(i)))
		out = append(out, last)
	}
	return out
}

func TestKDFAgainstStandardLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		input := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "input")
		if got, want := hmac(&key, input), slowHMAC(key[:], input); !bytes.Equal(got[:], want) {
			t.Fatalf("hmac returned %x, want %x", got, want)
		}
		n := rapid.IntRange(1, 3).Draw(t, "n")
		want := slowKDF(key[:], input, n)
		got := make([][32]byte, n)
		out := make([]*[32]byte, n)
		for i := range out {
			out[i] = &got[i]
		}
		if rapid.Bool().Draw(t, "into key") {
			out[0] = &key // as MixKey does with the chaining key
		}
		kdf(&key, input, out...)
		for i := range out {
			if !bytes.Equal(out[i][:], want[i]) {
				t.Fatalf("output %d of %d of kdf is %x, want %x", i+1, n, *out[i], want[i])
			}
		}
	})
}

// TestInitialTranscript compares the initial chaining key and hash with the constants of other implementations.
func TestInitialTranscript(t *testing.T) {
	wantHex(t, "HASH(construction)", initial.chainKey[:], "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36")
	wantHex(t, "HASH(HASH(construction), identifier)", initial.hash[:], "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3")
}

// TestNoiseVector checks the test vector for Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s that the Noise library cacophony publishes. It
// calls, in the order of the tokens, the functions that make WireGuard's messages. Its prologue and payloads differ from
// WireGuard's.
func TestNoiseVector(t *testing.T) {
	si := private(t, "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1")
	sr := private(t, "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893")
	ei := private(t, "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a")
	er := private(t, "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b")
	psk := []byte("This is my Austrian perspective!")
	public := func(k *ecdh.PrivateKey) [32]byte { return [32]byte(k.PublicKey().Bytes()) }
	siPublic, srPublic, eiPublic, erPublic := public(si), public(sr), public(ei), public(er)
	shared := func(k, p *ecdh.PrivateKey) []byte {
		s, err := k.ECDH(p.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	var s Transcript
	s.chainKey = blake2s.Sum256([]byte(construction))
	s.hash = s.chainKey
	s.mixHash([]byte("John Galt"))
	s.mixHash(srPublic[:])

	payload := []byte("Ludwig von Mises")
	m := append([]byte(nil), eiPublic[:]...)
	s.MixEphemeral(eiPublic[:])
	key := s.MixKey(shared(ei, sr))
	static := make([]byte, 48)
	s.Encrypt(static, &key, siPublic[:])
	key = s.MixKey(shared(si, sr))
	sealed := make([]byte, len(payload)+16)
	s.Encrypt(sealed, &key, payload)
	wantHex(t, "first message", append(append(m, static...), sealed...), "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"+
		"001e21de9f98ddd8e2ad57527207feb56253c9c94a9e496782ecfcb2a75fbcaf1b52948cc48daefe660c62119ab50009"+
		"80c84831215f2441eba616548e832985464cf17e51ee93109008399a21f7e13f")

	payload = []byte("Murray Rothbard")
	s.MixEphemeral(erPublic[:])
	s.MixKey(shared(er, ei))
	s.MixKey(shared(er, si))
	key = s.MixPresharedKey(psk)
	sealed = make([]byte, len(payload)+16)
	s.Encrypt(sealed, &key, payload)
	wantHex(t, "second message", append(erPublic[:], sealed...), "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"+
		"cb765f2caef0751b8f007572dab0322217755c0632f365717edbf34d33e87a")

	first, second := s.Split()
	if s != (Transcript{}) {
		t.Error("Split did not clear the Transcript")
	}
	for i, c := range []struct {
		key     *[32]byte
		payload string
		want    string
	}{
		{&first, "F. A. Hayek", "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7"},
		{&second, "Carl Menger", "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef"},
		{&first, "Jean-Baptiste Say", "6ab1467c0448cc78394494abaaf23afce0e234315d6e2624dcbfa8a21c1c4d073d"},
		{&second, "Eugen B\xf6hm von Bawerk", "dfc346c0d2296ae6cf1acf6f12b8456a1dba228cf8d8b774aacf1c47fc53aa80ebc7a4c292"},
	} {
		nonce := make([]byte, 12)
		nonce[4] = byte(i / 2)
		wantHex(t, "transport message", AEAD(c.key).Seal(nil, nonce, []byte(c.payload), nil), c.want)
	}
}

// TestDecrypt checks that Decrypt mixes the ciphertext that it opened into the hash, so that both peers compute the same next
// key. Decrypt must refuse forged ciphertext.
func TestDecrypt(t *testing.T) {
	a := Start(make([]byte, 32))
	b := a
	key := a.MixKey([]byte("input"))
	b.MixKey([]byte("input"))
	sealed := make([]byte, 4+16)
	a.Encrypt(sealed, &key, []byte("text"))
	for i := range sealed {
		forged, c := bytes.Clone(sealed), b
		forged[i] ^= 1
		if err := c.Decrypt(nil, &key, forged); err == nil || c != b {
			t.Fatalf("Decrypt with byte %d changed: error %v, want an error and an unchanged Transcript", i, err)
		}
	}
	text := make([]byte, 4)
	if err := b.Decrypt(text[:0], &key, sealed); err != nil || string(text) != "text" || a != b {
		t.Errorf("Decrypt returned %q, error %v; want the text and the same Transcript as the sender", text, err)
	}
}

// TestMACIsKeyedBLAKE2s compares the MAC with Python's hashlib.blake2s(data, key=key, digest_size=16). data is n bytes of the
// value n+1, and key is 1+n%32 bytes of the value n.
func TestMACIsKeyedBLAKE2s(t *testing.T) {
	for n, want := range map[int]string{
		0:   "01d7f4cea32638032b156c74aec7e87a",
		1:   "e42c75a466ac1b9658150b0b31e45d6a",
		2:   "db80a48c516c268e2fc956289294d721",
		16:  "ef4d37a0dcb7ebab0410ad743d75f88d",
		31:  "8e31f6ff6eb90d84add1557ef970446f",
		32:  "a8fc8b5009f6e89b43abcfb40915af13",
		63:  "c668f9f727efa94d87ed4c140e63401c",
		64:  "3e244161171057ff83fb907657d21bfc",
		65:  "0b2646dba678aca5b95ea74d21fdb236",
		116: "d3f6afd321e1aeb28341f5afb49b48a5",
		128: "9a3a8f50985285f891feff7b8fec5e9b",
		129: "e9d273f22feccc1cfdac250934cefd22",
		199: "a18b733ae24fdc858ee159757429119f",
	} {
		key, data := bytes.Repeat([]byte{byte(n)}, 1+n%32), bytes.Repeat([]byte{byte(n + 1)}, n)
		m := NewMAC(key).Of(data)
		wantHex(t, fmt.Sprintf("MAC of %d bytes under %d", n, len(key)), m[:], want)
		for i := range m {
			forged := m
			forged[i] ^= 1
			if !NewMAC(key).Verify(data, m[:]) || NewMAC(key).Verify(data, forged[:]) || NewMAC(key).Verify(data, m[:i]) {
				t.Errorf("Verify refused the MAC of %d bytes, or accepted a forged or short MAC", n)
			}
		}
	}
}
