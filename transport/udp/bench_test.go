package udp

import (
	"fmt"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// BenchmarkEcho measures the round-trip time of one small datagram between two sockets of this process on loopback.
//
//	here ──send──▶ a ═══loopback═══▶ b ──Receive──▶ goroutine ──send──▶ b ═══▶ a ──Receive──▶ here
func BenchmarkEcho(b *testing.B) {
	for _, v := range variants {
		b.Run(v.name, func(b *testing.B) {
			x, y := v.pair(b, ipv4)
			go echo(y)
			ts := []wireguard.Train{{Data: make([]byte, 64), Size: 64, Endpoint: y.at(ipv4)}}
			in := x.receiver(ipv4)
			b.ReportAllocs()
			for b.Loop() {
				x.Send(ts)
				if _, err := in.Receive(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// echo sends each datagram that y receives back to its sender, until y is closed.
func echo(y *end) {
	in := y.receiver(ipv4)
	for {
		ts, err := in.Receive()
		if err != nil {
			return
		}
		y.Send(ts)
	}
}

// BenchmarkTrains measures sending trains in one direction. At most 512 datagrams are under way after each Send, so that no
// datagram is lost.
func BenchmarkTrains(b *testing.B) {
	for _, v := range variants {
		for _, shape := range []struct{ datagrams, size int }{{1, 1452}, {8, 1452}, {44, 1452}, {1, 96}} {
			b.Run(fmt.Sprintf("%s/%dx%d", v.name, shape.datagrams, shape.size), func(b *testing.B) {
				oneWay(b, v, 1, shape.datagrams, shape.size)
			})
		}
	}
}

// BenchmarkPeers measures calls of Send with 64 trains of one datagram each, like the trains for 64 peers. All trains go to the
// same socket.
func BenchmarkPeers(b *testing.B) {
	for _, v := range variants {
		b.Run(v.name, func(b *testing.B) { oneWay(b, v, 64, 1, 1452) })
	}
}

func oneWay(b *testing.B, v variant, trains, datagrams, size int) {
	x, y := v.pair(b, ipv4)
	var ts []wireguard.Train
	for range trains {
		ts = append(ts, wireguard.Train{Data: make([]byte, datagrams*size), Size: size, Endpoint: y.at(ipv4)})
	}
	call := trains * datagrams
	window := make(chan int, 1<<20)
	go func() {
		in := y.receiver(ipv4)
		for {
			got, err := in.Receive()
			if err != nil {
				return
			}
			n := 0
			for i := range got {
				n += got[i].Len()
			}
			window <- n
		}
	}()
	b.SetBytes(int64(call * size))
	b.ReportAllocs()
	flying := 0
	start := time.Now()
	for b.Loop() {
		x.Send(ts)
		for flying += call; flying > 512; {
			flying -= <-window
		}
	}
	for flying > 0 {
		flying -= <-window
	}
	b.ReportMetric(float64(b.N*call)/time.Since(start).Seconds(), "datagrams/s")
	b.ReportMetric(float64(y.Stats().ReceivedDatagrams)/float64(y.Stats().ReceiveCalls), "datagrams/recv")
}

// BenchmarkSharedTrial measures the time per tenant that it takes to try an initiation that fits no tenant's key.
func BenchmarkSharedTrial(b *testing.B) {
	s, _, _ := share(b, 1000)
	x := &stranger{endpoint: somewhere}
	for b.Loop() {
		s.try(x)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/tenant")
}

// BenchmarkSharedDispatch measures how long it takes to find a datagram's tenant among n tenants, to copy the datagram into the
// tenant's mailbox and to receive it from there.
func BenchmarkSharedDispatch(b *testing.B) {
	for _, n := range []int{1, 1000, maxTenants} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, tenants, sockets := share(b, n)
			var trains []wireguard.Train
			for i := range tenants {
				trains = append(trains, wireguard.Train{Data: tenants[i].messageFor(typeData, 232), Size: 232, Endpoint: somewhere})
			}
			at := 0
			for b.Loop() {
				s.dispatch(&trains[at])
				sockets[at].Receive()
				at = (at*7 + 1) % n
			}
		})
	}
}
