package forms

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

const (
	// taiEpoch is the label of 1970-01-01 00:00:00 UTC, in seconds. WireGuard does not count the leap seconds since then.
	taiEpoch = 1<<62 + 10
	// labelStep is the resolution of a label, in nanoseconds.
	labelStep = 1 << 24
)

// Label returns the TAI64N label of a wall time, rounded down to a multiple of 2^24 ns.
func Label(wall time.Time) (b [12]byte) {
	binary.BigEndian.PutUint64(b[:], taiEpoch+uint64(wall.Unix()))
	binary.BigEndian.PutUint32(b[8:], uint32(wall.Nanosecond())&^(labelStep-1))
	return b
}

// LabelTime returns the wall time of a label, or the zero Time if the label is zero.
func LabelTime(b [12]byte) time.Time {
	if b == [12]byte{} {
		return time.Time{}
	}
	return time.Unix(int64(binary.BigEndian.Uint64(b[:])-taiEpoch), int64(binary.BigEndian.Uint32(b[8:])))
}

// ParseLabel sets b to the label in its external form: "@" and 24 hexadecimal digits.
func ParseLabel(b *[12]byte, text []byte) error {
	digits, ok := strings.CutPrefix(string(text), "@")
	label, err := hex.DecodeString(digits)
	if !ok || err != nil || len(label) != len(b) {
		return fmt.Errorf("wireguard: timestamp %q: want @ and 24 hexadecimal digits", text)
	}
	*b = [12]byte(label)
	return nil
}
