package observe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// look calls Each once, and returns the explanation of the only peer of d.
func look(t *testing.T, x *observe.Explainer, d *wireguard.Device) (e observe.Explanation) {
	t.Helper()
	n := 0
	x.Each(d, time.Now(), func(_ *wireguard.PeerStatus, of observe.Explanation) bool { e, n = of, n+1; return true })
	if n != 1 {
		t.Fatalf("Each yielded %d peers, want 1", n)
	}
	return e
}

// watch calls look once per second for the duration long, and returns the last explanation. Before each look, it calls the
// function each.
func watch(t *testing.T, x *observe.Explainer, d *wireguard.Device, long time.Duration, each func()) (e observe.Explanation) {
	t.Helper()
	for range long / time.Second {
		if each != nil {
			each()
		}
		time.Sleep(time.Second)
		e = look(t, x, d)
	}
	return e
}

// want fails the test if e does not have the state, exactly these causes, and the text.
func want(t *testing.T, e observe.Explanation, state observe.State, text string, causes ...observe.Cause) {
	t.Helper()
	ok := e.State == state && len(e.Reasons) == len(causes) && strings.Contains(e.String(), text)
	for _, c := range causes {
		ok = ok && e.Has(c)
	}
	if !ok {
		t.Errorf("the explanation is %v, %q, with the reasons %v; want %v, a text with %q, and the causes %v", e.State, e, e.Reasons, state, text, causes)
	}
}

func TestExplain(t *testing.T) {
	stranger := func(a, b *wireguard.Config) { b.Peers = nil }
	psk := func(a, b *wireguard.Config) { a.Peers[0].PresharedKey = wireguard.NewPresharedKey() }
	for _, test := range []struct {
		name   string
		change func(a, b *wireguard.Config)
		run    func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation
		state  observe.State
		text   string
		causes []observe.Cause
	}{
		{"a device that is down", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.a.Down()
			return look(t, x, r.a)
		}, observe.Stopped, "The device is down.", []observe.Cause{observe.DeviceDown}},
		{"no private key", func(a, b *wireguard.Config) { a.PrivateKey = wireguard.PrivateKey{} }, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			return look(t, x, r.a)
		}, observe.Stopped, "no private key", []observe.Cause{observe.NoPrivateKey}},
		{"nothing to do", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			return look(t, x, r.a)
		}, observe.Idle, "Idle: there is nothing to send.", nil},
		{"no endpoint", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			return look(t, x, r.b)
		}, observe.Idle, "not known where", []observe.Cause{observe.NoEndpoint}},
		{"an initiation under way", stranger, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			return watch(t, x, r.a, time.Second, nil)
		}, observe.Connecting, "waits for its answer", nil},
		{"a session", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			return watch(t, x, r.a, time.Minute, func() { r.say(10); r.reply() })
		}, observe.Connected, "Connected.", nil},
		{"a session at rest", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			return watch(t, x, r.a, time.Minute, nil)
		}, observe.Connected, "Connected.", nil},
		{"a session that ended for its age", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			r.reply()
			return watch(t, x, r.a, 10*time.Minute, nil)
		}, observe.Idle, "nothing to send", nil},
		{"no answer, ever", stranger, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			return watch(t, x, r.a, 12*time.Second, nil)
		}, observe.Unreachable, "No answer to 3 initiations. The peer was never heard. Check its endpoint", []observe.Cause{observe.NoAnswer}},
		{"no answer any more", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			watch(t, x, r.a, 200*time.Second, nil)
			r.network.Cut(r.endA, r.endB)
			r.say(10)
			return watch(t, x, r.a, 12*time.Second, nil)
		}, observe.Unreachable, "No answer to 3 initiations. The peer was last heard at 00:00:", []observe.Cause{observe.NoAnswer}},
		{"given up", stranger, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			return watch(t, x, r.a, 5*time.Minute, nil)
		}, observe.Unreachable, "No answer to 20 initiations.", []observe.Cause{observe.NoAnswer}},
		{"another preshared key", psk, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			return watch(t, x, r.a, 12*time.Second, nil)
		}, observe.Unreachable, "do not open. Check the preshared key", []observe.Cause{observe.WrongKey}},
		{"another preshared key, seen by the other end", psk, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			look(t, x, r.b)
			r.say(10)
			return watch(t, x, r.b, 12*time.Second, nil)
		}, observe.Unreachable, "3 initiations of the peer arrived and got answers, but no session followed", []observe.Cause{observe.NotConfirmed}},
		{"silence in a session", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			r.reply()
			r.network.Cut(r.endA, r.endB)
			return watch(t, x, r.a, 27*time.Second, func() { r.say(10) })
		}, observe.Impaired, "Nothing received since 00:00:00: ", []observe.Cause{observe.NothingReceived}},
		{"foreign sources", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			r.reply()
			look(t, x, r.a)
			r.replyFrom(netip.MustParseAddr("10.0.0.77"))
			return watch(t, x, r.a, 5*time.Second, nil)
		}, observe.Impaired, "1 packet of the peer had a source that its allowed IPs do not contain.", []observe.Cause{observe.SourceNotAllowed}},
		{"foreign sources, long ago", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			r.replyFrom(netip.MustParseAddr("10.0.0.77"))
			return watch(t, x, r.a, 40*time.Second, nil)
		}, observe.Connected, "Connected.", nil},
		{"own sources that the other end refuses", func(a, b *wireguard.Config) { b.Peers[0].AllowedIPs = nil }, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			return watch(t, x, r.a, 30*time.Second, func() { r.say(10) })
		}, observe.Connected, "Connected. The peer has sent no packet since 00:00:0", []observe.Cause{observe.NoReplies}},
		{"large packets that vanish", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			r.reply()
			r.network.SetConditions(pipe.Conditions{MTU: 1300})
			seen := observe.Explanation{}
			watch(t, x, r.a, time.Minute, func() {
				if e := look(t, x, r.a); e.Has(observe.PathMTU) {
					seen = e
				}
				r.say(1380)
			})
			return seen
		}, observe.Impaired, "packets of 14", []observe.Cause{observe.PathMTU}},
		{"a socket that refuses", nil, func(t *testing.T, r *rig, x *observe.Explainer) observe.Explanation {
			r.say(10)
			r.network.SetConditions(pipe.Conditions{MTU: 1300, RefuseTooBig: true})
			r.say(1380)
			return look(t, x, r.a)
		}, observe.Impaired, "could not be sent", []observe.Cause{observe.NotSent}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, test.change)
				want(t, test.run(t, r, &observe.Explainer{}), test.state, test.text, test.causes...)
			})
		})
	}
}

// TestExplainCookie checks the explanation for a peer that is under load and asks for a cookie. The peer is under load because
// its lookups of unknown keys take long.
func TestExplainCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(a, b *wireguard.Config) {
			b.MaxLookups = 8
			b.Lookup = func(ctx context.Context, _ wireguard.PublicKey) (p wireguard.PeerConfig, err error) {
				<-ctx.Done()
				return p, ctx.Err()
			}
		})
		stranger := pipe.NewTunnel(1420)
		r.up(wireguard.Config{PrivateKey: wireguard.NewPrivateKey(), Bind: r.network.NewEnd(), Tunnel: stranger, Clock: r.clock, Peers: []wireguard.PeerConfig{{
			PublicKey: r.keyB, Endpoint: r.endB.Endpoint(51820), AllowedIPs: []netip.Prefix{netip.PrefixFrom(insideB, 32)},
		}}})
		for range 3 {
			stranger.TrySend(pipe.UDPPacket(netip.AddrPortFrom(insideA, 7), netip.AddrPortFrom(insideB, 7), nil))
			synctest.Wait()
		}
		var x observe.Explainer
		r.say(10)
		e := watch(t, &x, r.a, time.Second, nil)
		want(t, e, observe.Connecting, "asked for a cookie", observe.CookieAsked)
	})
}

// TestExplainName checks the explanation for a peer that does not answer while the name of its endpoint has another address.
func TestExplainName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(a, b *wireguard.Config) { b.Peers = nil })
		moved := netip.MustParseAddrPort("192.0.2.9:51820")
		x := observe.Explainer{Addresses: func(key wireguard.PublicKey) []netip.AddrPort {
			if key != r.keyB {
				t.Errorf("Each called Addresses for %v, want only the peer of the device", key)
			}
			return []netip.AddrPort{moved}
		}}
		r.say(10)
		want(t, watch(t, &x, r.a, 12*time.Second, nil), observe.Unreachable, "The name of the endpoint means 192.0.2.9:51820 now", observe.NoAnswer, observe.NameMoved)
		moved = r.endB.Endpoint(51820).Addr
		want(t, look(t, &x, r.a), observe.Unreachable, "No answer", observe.NoAnswer)
	})
}

// TestExplainOnce checks that Explain finds the causes that the status shows, and returns false for a key that the device does
// not know.
func TestExplainOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(a, b *wireguard.Config) { b.Peers = nil })
		r.say(10)
		time.Sleep(12 * time.Second)
		e, ok := observe.Explain(r.a, r.keyB)
		if want(t, e, observe.Unreachable, "No answer to 3 initiations.", observe.NoAnswer); !ok {
			t.Error("Explain says that the device does not have the peer")
		}
		if e, ok := observe.Explain(r.a, r.keyA); ok {
			t.Errorf("Explain explains a peer that the device does not have: %q", e)
		}
	})
}

// TestExplainerForgets checks that an Explainer forgets a peer that the device no longer has.
func TestExplainerForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(a, b *wireguard.Config) { b.Peers = nil })
		var x observe.Explainer
		r.say(10)
		want(t, watch(t, &x, r.a, 5*time.Minute, nil), observe.Unreachable, "No answer to 20", observe.NoAnswer)
		if err := r.a.RemovePeer(r.keyB); err != nil {
			t.Fatal(err)
		}
		x.Each(r.a, time.Now(), func(*wireguard.PeerStatus, observe.Explanation) bool { t.Error("a removed peer is left"); return true })
		if err := r.a.SetPeer(wireguard.PeerConfig{PublicKey: r.keyB, Endpoint: r.endB.Endpoint(51820)}); err != nil {
			t.Fatal(err)
		}
		want(t, look(t, &x, r.a), observe.Idle, "nothing to send")
	})
}

// TestExplainerIsBounded adds and removes peers, as Config.Lookup does, and ends each look early. It checks that an Explainer
// remembers no more peers than the device has, and no more bytes per peer than the comment of Explainer says.
func TestExplainerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var x observe.Explainer
		for range 100 {
			key := wireguard.NewPrivateKey().Public()
			if err := r.a.SetPeer(wireguard.PeerConfig{PublicKey: key}); err != nil {
				t.Fatal(err)
			}
			x.Each(r.a, time.Now(), func(p *wireguard.PeerStatus, _ observe.Explanation) bool { return p.PublicKey != key })
			if err := r.a.RemovePeer(key); err != nil {
				t.Fatal(err)
			}
			if peers, _ := observe.Remembered(&x); peers > 2 {
				t.Fatalf("the Explainer remembers %d peers, want at most 2", peers)
			}
		}
		if _, size := observe.Remembered(&x); size > 300 {
			t.Errorf("the Explainer remembers %d bytes per peer, want at most 300", size)
		}
	})
}

// TestExplanationJSON checks that the states and causes of an explanation are words in JSON, such as "impaired", and not numbers.
func TestExplanationJSON(t *testing.T) {
	b, err := json.Marshal(observe.Explanation{State: observe.Impaired, Reasons: []observe.Reason{{Cause: observe.PathMTU, Text: "Try."}}})
	if want := `{"state":"impaired","reasons":[{"cause":"path mtu","text":"Try."}]}`; err != nil || !bytes.Equal(b, []byte(want)) {
		t.Errorf("the JSON is %s, %v, want %s", b, err, want)
	}
	for _, unknown := range []fmt.Stringer{observe.State(200), observe.Cause(200)} {
		if unknown.String() != "unknown" {
			t.Errorf("%T 200 has the text %q, want unknown", unknown, unknown)
		}
	}
}
