package main

import "runtime"

func scalingMeasures() []measure {
	return []measure{{name: "seal/scaling", unit: "x", run: runScaling}}
}

// runScaling measures the rate at which one source sends to one peer on two cores, divided by the rate on one core. The wire
// discards the datagrams, so only three steps take time: reading from the source, sealing, and passing datagrams to the wire.
// Within a sample, runScaling alternates between one core and two.
func runScaling(st *stage) (sample, error) {
	w := newWire(st, st.lib.landings())
	ab, ba := newFlow(mtu, addrA, addrB), newFlow(mtu, addrB, addrA)
	if err := tunnel(st, w, ab, ba); err != nil {
		return sample{}, err
	}
	from := &w.ends[0]
	from.void.Store(true)
	ab.open(0)
	defer ab.stop()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	const turns = 4
	var rate [2]float64
	for range turns {
		for i := range rate {
			runtime.GOMAXPROCS(i + 1)
			s, err := count(&from.voided, st.Warm/turns, st.Span/turns)
			if err != nil {
				return sample{}, err
			}
			rate[i] += s.n / s.took.Seconds() / turns
		}
	}
	return sample{rate[1] / rate[0], []aside{
		{Name: "on one core", Unit: "packets/s", Value: rate[0]},
		{Name: "on two", Unit: "packets/s", Value: rate[1]},
	}}, nil
}
