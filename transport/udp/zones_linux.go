package udp

import (
	"net"
	"strconv"
	"sync"
)

// zones caches the names and indexes of interfaces, which link-local addresses contain. Without this cache, a socket would have
// to ask the system for each datagram to or from such an address. The zero value is empty. A value of type zones is safe for
// concurrent use. If an interface is renamed, both its names remain in the cache. Call forget after an interface has disappeared.
type zones struct {
	mu      sync.RWMutex
	names   map[uint32]string
	indexes map[string]uint32
}

const maxZones = 256

// name returns the zone of the interface with this index: its name, or its number if the interface no longer exists.
func (z *zones) name(index uint32) string {
	z.mu.RLock()
	name, ok := z.names[index]
	z.mu.RUnlock()
	if ok {
		return name
	}
	i, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return strconv.FormatUint(uint64(index), 10)
	}
	z.learn(i)
	return i.Name
}

// index is the inverse of name. It returns the index of the interface with this name. If there is no such interface, it returns
// the number that name consists of, or 0 if name is not a number.
func (z *zones) index(name string) uint32 {
	z.mu.RLock()
	index, ok := z.indexes[name]
	z.mu.RUnlock()
	if ok {
		return index
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		n, _ := strconv.ParseUint(name, 10, 32)
		return uint32(n)
	}
	z.learn(i)
	return uint32(i.Index)
}

func (z *zones) learn(i *net.Interface) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.names == nil || len(z.names) >= maxZones || len(z.indexes) >= maxZones {
		z.names, z.indexes = make(map[uint32]string), make(map[string]uint32)
	}
	z.names[uint32(i.Index)], z.indexes[i.Name] = i.Name, uint32(i.Index)
}

// forget empties the cache. Call it after an error that can mean that an interface has disappeared or has a new index.
func (z *zones) forget() {
	z.mu.Lock()
	z.names, z.indexes = nil, nil
	z.mu.Unlock()
}
