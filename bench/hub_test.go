package main

import (
	"encoding/binary"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// TestReturns checks that the generator writes a report for every returnStep packets that the hub forwards to it, and for each
// packet whose counter is not higher than that of the session's previous packet.
func TestReturns(t *testing.T) {
	const nests, size, perTrain = 2, 64, 64
	var got reportReader
	steps := make(chan int, 100)
	r := returns{nests: nests, steps: steps, out: &got}
	n := &nest{peers: []*initiator{{}, {}}} // peers 1 and 3 of the crowd; the other nest has peers 2 and 4
	counters := map[uint32]uint64{}
	train := func(index uint32) wireguard.Train {
		data := make([]byte, perTrain*size)
		for at := 0; at < len(data); at += size {
			data[at] = 4
			binary.LittleEndian.PutUint32(data[at+4:], index)
			binary.LittleEndian.PutUint64(data[at+8:], counters[index])
			counters[index]++
		}
		return wireguard.Train{Data: data, Size: size}
	}
	for range returnStep / (2 * perTrain) {
		r.take(n, []wireguard.Train{train(2), train(4)})
	}
	if got.packets.Load() != returnStep || got.late.Load() != 0 || len(steps) != returnStep/manyStep {
		t.Errorf("%d packets, %d out of order, %d steps; want %d, 0 and %d", got.packets.Load(), got.late.Load(), len(steps), returnStep, returnStep/manyStep)
	}
	late := train(2)
	binary.LittleEndian.PutUint64(late.Data[8:], 3)
	keepalive := wireguard.Train{Data: make([]byte, 32), Size: 32}
	keepalive.Data[0] = 4
	r.take(n, []wireguard.Train{late, keepalive})
	if got.late.Load() != 1 || r.received.Load() != returnStep+perTrain {
		t.Errorf("%d of %d packets are out of order; want 1 of %d, since a keepalive is not a packet", got.late.Load(), r.received.Load(), returnStep+perTrain)
	}
}
