//go:build race

package wireguard

// raceEnabled says that the race detector allocates, and that sync.Pool forgets at random.
const raceEnabled = true
