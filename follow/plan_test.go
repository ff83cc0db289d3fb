package follow_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/follow"
)

func parse(t testing.TB, format string, args ...any) *conf.File {
	t.Helper()
	f, err := conf.Parse(fmt.Appendf(nil, format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPlan checks the Plan for two files that differ in everything.
func TestPlan(t *testing.T) {
	var k [5]wireguard.PublicKey
	for i := range k {
		k[i] = wireguard.NewPrivateKey().Public()
	}
	own, other, psk := wireguard.NewPrivateKey(), wireguard.NewPrivateKey(), wireguard.NewPresharedKey()
	old := parse(t, `[Interface]
PrivateKey = %s
Address = 10.0.0.1
DNS = 10.0.0.53
[Peer]
PublicKey = %v
AllowedIPs = 10.0.0.2, 10.0.0.3
Endpoint = no.such.name.invalid:1
[Peer]
PublicKey = %v
[Peer]
PublicKey = %v
Endpoint = 192.0.2.1:1
[Peer]
PublicKey = %v
AllowedIPs = 10.1.0.1/16
Endpoint = 192.0.2.1:1
`, own.Text(), k[0], k[1], k[2], k[3])
	new := parse(t, `[Interface]
PrivateKey = %s
ListenPort = 7
FwMark = 1
MTU = 1300
Address = 10.0.0.1
[Peer]
PublicKey = %v
AllowedIPs = 10.0.0.3, 10.0.0.2/32
Endpoint = no.such.name.invalid:1
[Peer]
PublicKey = %v
PresharedKey = %s
PersistentKeepalive = 25
Endpoint = 192.0.2.1:1
Endpoint = 192.0.2.2:1
AllowedIPs = 10.2.0.1
[Peer]
PublicKey = %v
AllowedIPs = 10.1.0.9/16
[Peer]
PublicKey = %v
`, other.Text(), k[0], k[2], psk.Text(), k[3], k[4])
	p, err := follow.NewPlan(old, new)
	if err != nil {
		t.Fatal(err)
	}
	keys := func(ks ...wireguard.PublicKey) []wireguard.PublicKey { return ks }
	for name, c := range map[string]struct{ got, want []wireguard.PublicKey }{
		"Added": {p.Added, keys(k[4])}, "Removed": {p.Removed, keys(k[1])}, "Kept": {p.Kept, keys(k[0], k[3])},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	want := fmt.Sprintf(`change the interface's PrivateKey; all sessions end
change the interface's ListenPort
change the interface's FwMark
remove the peer %v
add the peer %v
change the peer %v: PresharedKey, Endpoint, PersistentKeepalive, AllowedIPs
keep 2 peers as they are
leave DNS as it is until the tunnel is opened anew
leave MTU as it is until the tunnel is opened anew
`, k[1], k[4], k[2])
	if got := p.String(); got != want {
		t.Errorf("the plan is\n%swant\n%s", got, want)
	}
	if p, err := follow.NewPlan(new, new); err != nil || p.String() != "keep 4 peers as they are\n" {
		t.Errorf("the plan for two equal files is %v, error %v; want all 4 peers kept", p, err)
	}
	if _, err := follow.NewPlan(old, parse(t, "[Peer]\nAllowedIPs = 10.0.0.1\n")); err == nil || !strings.Contains(err.Error(), "the new file: line 1") {
		t.Errorf("NewPlan with a peer without a key: error %v, want one for line 1 of the new file", err)
	}
}

// TestApply checks that Apply keeps the session and the endpoint of a peer that stays. Apply adds a peer whose name resolves, and
// changes nothing if the name does not resolve.
func TestApply(t *testing.T) {
	inWorld(t, second, nil, func(w *world) {
		added := wireguard.NewPrivateKey().Public()
		text := fmt.Sprintf("[Interface]\nPrivateKey=%s\n[Peer]\nPublicKey=%v\nAllowedIPs=10.0.0.1\nEndpoint=%s:%d\n", w.key.Text(), w.serverKey.Public(), host, port)
		old := parse(w, "%s", text)
		w.follower.Set(follow.Endpoints(old))
		w.resolves(nil, second)
		w.wantHeard(10*time.Second, "the follower finds the server at its second address")
		w.tunnel.TrySend() // queues no packet
		time.Sleep(11 * time.Second)
		before, _ := w.client.Peer(w.serverKey.Public())
		apply := func(to *conf.File) error {
			p, err := follow.NewPlan(old, to)
			if err != nil {
				w.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
			defer cancel()
			return w.follower.Apply(ctx, p)
		}
		more := parse(w, "%s[Peer]\nPublicKey=%v\nEndpoint=%s:9\nAllowedIPs=10.0.0.9\n", text, added, host)
		broken := errors.New("no DNS today")
		w.resolves(broken)
		if err := apply(more); !errors.Is(err, broken) || !strings.Contains(err.Error(), "line 9: Endpoint") {
			w.Errorf("Apply returned %v, want the error of the resolver", err)
		}
		if n := w.client.Status().Peers; n != 1 {
			w.Errorf("the device has %d peers after an Apply that failed, want 1", n)
		}
		w.resolves(nil, first)
		if err := apply(more); err != nil {
			w.Fatal(err)
		}
		if p, ok := w.client.Peer(added); !ok || p.Endpoint.Addr != netip.AddrPortFrom(first, 9) || p.AllowedIPs != 1 {
			w.Errorf("the added peer is %+v, want the resolved endpoint and one allowed IP", p)
		}
		after, _ := w.client.Peer(w.serverKey.Public())
		if !after.Session || after.SessionAge != before.SessionAge || after.Endpoint != before.Endpoint {
			w.Errorf("the peer that stays was %+v and is %+v, want its session and endpoint kept", before, after)
		}
		synctest.Wait()

		// An added Endpoint line does not change the endpoint of a peer whose present endpoint is still in the file.
		two := parse(w, "%s", strings.Replace(text, "Endpoint=", "Endpoint=192.0.2.1:51820\nEndpoint=192.0.2.2:51820\n#", 1))
		if err := apply(two); err != nil {
			w.Fatal(err)
		}
		w.wantEndpoint(second, "the present endpoint is one of the new endpoints")
		if _, ok := w.client.Peer(added); ok {
			w.Error("Apply kept a peer that the new file does not name")
		}
		one := parse(w, "%s", strings.Replace(text, "Endpoint=", "Endpoint=192.0.2.1:51820\n#", 1))
		if err := apply(one); err != nil {
			w.Fatal(err)
		}
		w.wantEndpoint(first, "the present endpoint is not one of the new endpoints")
		if err := w.follower.Apply(w.Context(), new(follow.Plan)); err == nil {
			w.Error("Apply accepted an empty plan")
		}
	})
}

// TestPlanOfMovedPrefix checks that a plan lists a peer that loses a prefix because a later peer has it too.
func TestPlanOfMovedPrefix(t *testing.T) {
	own, a, b := wireguard.NewPrivateKey(), wireguard.NewPrivateKey().Public(), wireguard.NewPrivateKey().Public()
	one := fmt.Sprintf("[Interface]\nPrivateKey = %s\n[Peer]\nPublicKey = %v\nAllowedIPs = 10.0.0.0/24\n", own.Text(), a)
	two := one + fmt.Sprintf("[Peer]\nPublicKey = %v\nAllowedIPs = 10.0.0.9/24\n", b)
	p, err := follow.NewPlan(parse(t, "%s", one), parse(t, "%s", two))
	if err != nil {
		t.Fatal(err)
	}
	if want := []follow.Difference{{Peer: a, Keys: []string{"AllowedIPs"}}}; !reflect.DeepEqual(p.Changed, want) || len(p.Kept) != 0 {
		t.Errorf("the plan is\n%vwant a change of the AllowedIPs of %v", p, a)
	}
	if p, err = follow.NewPlan(parse(t, "%s", two), parse(t, "%s", two)); err != nil || len(p.Kept) != 2 {
		t.Errorf("the plan for the same file is\n%vwith error %v; want two peers kept", p, err)
	}
}

// TestRunning checks that Running returns the new file with the old values of what Apply leaves as it is, even if the program
// has changed both files since.
func TestRunning(t *testing.T) {
	own := wireguard.NewPrivateKey()
	old := parse(t, "[Interface]\nPrivateKey = %s\nFwMark = 1\nAddress = 10.0.0.1\nDNS = 10.0.0.53, a.example\nMTU = 1300\nTable = 7\n"+
		"PreUp = a\nPostUp = b\nPreDown = c\nPostDown = d\nSaveConfig = true\n", own.Text())
	next := parse(t, "[Interface]\nPrivateKey = %s\nFwMark = 2\nListenPort = 9\n[Peer]\nPublicKey = %v\n", own.Text(), wireguard.NewPrivateKey().Public())
	p, err := follow.NewPlan(old, next)
	if err != nil {
		t.Fatal(err)
	}
	want := old.Interface
	want.ListenPort, want.FwMark = 9, 2
	old.Interface.Addresses[0], old.Interface.PostUp[0], next.Interface.ListenPort, next.Peers = netip.Prefix{}, "", 0, nil
	want.Addresses, want.PostUp = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, []string{"b"}
	f := p.Running()
	i := f.Interface
	for _, v := range []struct{ got, want any }{
		{i.ListenPort, want.ListenPort}, {i.FwMark, want.FwMark}, {i.Addresses, want.Addresses}, {i.DNS, want.DNS}, {i.Search, want.Search},
		{i.MTU, want.MTU}, {i.Table, want.Table}, {i.PreUp, want.PreUp}, {i.PostUp, want.PostUp}, {i.PreDown, want.PreDown},
		{i.PostDown, want.PostDown}, {i.SaveConfig, want.SaveConfig}, {len(f.Peers), 1},
	} {
		if !reflect.DeepEqual(v.got, v.want) {
			t.Errorf("Running has %v, want %v", v.got, v.want)
		}
	}
	if (&follow.Plan{}).Running() != nil {
		t.Error("Running of an empty Plan returned a file, want nil")
	}
}
