package observe

import (
	"unsafe"

	"github.com/seed-86b749af/wireguard"
)

// Remembered returns how many peers x remembers, and how many bytes it remembers per peer.
func Remembered(x *Explainer) (peers int, size uintptr) {
	return len(x.memories), unsafe.Sizeof(wireguard.PublicKey{}) + unsafe.Sizeof(&memory{}) + unsafe.Sizeof(memory{})
}
