package follow

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// addrOf returns the nth of many addresses.
func addrOf(n int) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24+uint32(n))))
}

// TestManyAddresses checks that the peer's other endpoints are still among its places if a DNS answer has thousands of addresses.
func TestManyAddresses(t *testing.T) {
	var answer []netip.Addr
	for n := range 5000 {
		answer = append(answer, addrOf(n))
	}
	addrs := interleave(answer)
	if len(addrs) != maxAddrs {
		t.Errorf("interleave returned %d addresses, want %d", len(addrs), maxAddrs)
	}
	var key wireguard.PublicKey
	other := conf.Endpoint{Host: "192.0.2.1", Port: 1}
	f := &Follower{}
	f.Set(map[wireguard.PublicKey][]conf.Endpoint{key: {{Host: "vpn.example.com", Port: 1}, other}})
	r := &run{Follower: f, names: map[string]*name{"vpn.example.com": {addrs: addrs}}}
	s := &search{first: wireguard.EndpointOf(netip.MustParseAddrPort("192.0.2.2:1"))}
	places := r.places(key, s)
	if n := len(places); n != maxAddrs+2 || places[n-2].Addr.String() != "192.0.2.1:1" || places[n-1] != s.first {
		t.Errorf("the places are %v, want %d of the name, the other endpoint, and the present endpoint", places, maxAddrs)
	}
}

// TestOtherAddressesEachTime checks that a search keeps at most maxPlaces places if a name resolves to other addresses each time.
func TestOtherAddressesEachTime(t *testing.T) {
	var s search
	now := time.Now()
	for n := range 10 * maxPlaces {
		s.ask(wireguard.EndpointOf(netip.AddrPortFrom(addrOf(n), 1)), now.Add(time.Duration(n)))
	}
	if len(s.tried) != maxPlaces {
		t.Errorf("the search keeps %d places, want %d", len(s.tried), maxPlaces)
	}
	if last := wireguard.EndpointOf(netip.AddrPortFrom(addrOf(10*maxPlaces-1), 1)); s.last(last).IsZero() {
		t.Error("the search does not keep the latest place")
	}
}

// TestRoom checks that peers that are never found do not prevent the search for another peer.
func TestRoom(t *testing.T) {
	r := &run{searches: make(map[wireguard.PublicKey]*search)}
	began := time.Now()
	var oldest wireguard.PublicKey
	for n := range maxSearches {
		key := wireguard.PublicKey{byte(n), byte(n >> 8), 1}
		if n == 0 {
			oldest = key
		}
		r.searches[key] = &search{began: began.Add(time.Duration(n))}
	}
	if r.room(began.Add(share - 1)) {
		t.Error("room ended a search before its share of the time was over")
	}
	if !r.room(began.Add(share)) || r.searches[oldest] != nil || len(r.searches) != maxSearches-1 {
		t.Errorf("%d searches are left, want %d, without the oldest", len(r.searches), maxSearches-1)
	}
}
