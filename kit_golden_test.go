package wireguard

// These are the fixed transcripts of TestHandshakeTranscript. The initiation does not depend on the preshared key.
const (
	goldenInitiation = "0100000004030201" + // type, sender
		"542db8be3bdf8ceeb44a3cc6d1380f436558d8fb1e7da23888eefaff12bc8100" + // ephemeral
		"f8ba4cac1dabe77b2e317e85201f5d6685cc78a7224c302b64c98bbe35b395f6804baa95a74e4d96349052fab2a9f144" + // static
		"e4e32394c7b3cca2aeebb2690979797deded326e7f7b7311bb16e7ff" + // timestamp
		"68c268db6de0a2fba80a1a18bc5cf566" + // mac1
		"00000000000000000000000000000000" // mac2

	goldenResponse = "020000000d0c0b0a04030201" + // type, sender, receiver
		"4aea987e8430e423a41a0e69c923554cdf0706e4cf1ddbed7a53ccdb2949c412" + // ephemeral
		"9b701645a5926629a732486c24bc7f37" + // empty
		"99f5ded7903c792764c78b3a00cf63ec" + // mac1
		"00000000000000000000000000000000" // mac2
	goldenSend    = "08f791166d2a812df1609f1c1784baa19b21fc0519eea3cb3d8a698b2f5447a4"
	goldenReceive = "f97b537d8a91a3f21d4e8a36e1fd40b81598b83ebb9d58e01d097bf6c54e3a5b"

	goldenResponsePSK = "020000000d0c0b0a04030201" +
		"4aea987e8430e423a41a0e69c923554cdf0706e4cf1ddbed7a53ccdb2949c412" +
		"e05b282e765d9f3b5ec8a42f49cf88fd" +
		"89939cfc9290924b0f4c167470542f7f" +
		"00000000000000000000000000000000"
	goldenSendPSK    = "c09fe7b7cc44081b333bbcd6d166b579e8f838cfb33af2dabe95acef4f53bac4"
	goldenReceivePSK = "b9ddb6251a5b22cac4d57b89e33fda84d2861e3adbbc249cceb1d0dbdeb61dff"
)

// goldenCookieReply is the cookie reply of a device under load to goldenInitiation from 192.0.2.1:1000, and goldenMAC2 is the
// mac2 that the initiator then makes (TestCookieTranscript). These values, and the mac1 of goldenInitiation, were computed in
// Python, with hashlib's BLAKE2s, the ChaCha20-Poly1305 and X25519 of OpenSSL, and a HChaCha20 that was checked against
// draft-irtf-cfrg-xchacha-03, section 2.2.1.
const (
	goldenCookieReply = "0300000004030201" + // type, receiver
		"010101010101010101010101010101010101010101010101" + // nonce
		"8f9824d0b9715a69ea1b2e8297538000702b44464b1252fc21da5d819dbc49fb" // cookie, encrypted
	goldenCookie = "27ea98c259c1956ed8d75e2e1276d56a" // made with a secret whose 32 bytes are all 2
	goldenMAC2   = "9f442ee235ee40e4343a0fb1ddddaa63" // the mac2 of goldenInitiation
)
