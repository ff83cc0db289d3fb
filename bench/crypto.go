package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

func cryptoMeasures() (ms []measure) {
	for _, size := range []int{1420, 64} {
		ms = append(ms, measure{
			name:  fmt.Sprintf("crypto/%d", size),
			unit:  "packets/s",
			alike: true,
			run:   func(st *stage) (sample, error) { return runCrypto(st, size) },
		})
	}
	return ms
}

// runCrypto measures how many packets all cores together seal and open per second. A tunnel with both ends on this machine would
// reach this rate if all its other work took no time. As in a tunnel, packets are sealed and opened in place, in batches of 128.
func runCrypto(st *stage, size int) (sample, error) {
	var packets atomic.Int64
	var stop, failed atomic.Bool
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			if err := sealAndOpen(size, &packets, &stop); err != nil {
				failed.Store(true)
			}
		})
	}
	got, err := count(&packets, st.Warm, st.Span)
	stop.Store(true)
	wg.Wait()
	if err != nil {
		return sample{}, err
	}
	if failed.Load() {
		return sample{}, errors.New("a sealed packet did not open")
	}
	return sample{got.n / got.took.Seconds(), []aside{
		{Name: "cpu", Unit: "µs/packet", Value: got.cpu.Seconds() * 1e6 / got.n},
	}}, nil
}

// sealAndOpen seals and opens packets in its own memory until stop is true. It adds each batch to the number of packets.
func sealAndOpen(size int, packets *atomic.Int64, stop *atomic.Bool) error {
	aead, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
	if err != nil {
		return err
	}
	room := size + chacha20poly1305.Overhead
	memory := make([]byte, wireBatch*room)
	var nonce [chacha20poly1305.NonceSize]byte
	for counter := uint64(0); !stop.Load(); counter += wireBatch {
		for i := range uint64(wireBatch) {
			m := memory[int(i)*room:]
			binary.LittleEndian.PutUint64(nonce[4:], counter+i)
			aead.Seal(m[:0], nonce[:], m[:size], nil)
		}
		for i := range uint64(wireBatch) {
			m := memory[int(i)*room:]
			binary.LittleEndian.PutUint64(nonce[4:], counter+i)
			if _, err := aead.Open(m[:0], nonce[:], m[:room], nil); err != nil {
				return err
			}
		}
		packets.Add(wireBatch)
	}
	return nil
}
