package follow

import (
	"sync"

	"golang.org/x/sys/windows"
)

// A network is a registration for changes of interfaces and addresses. The system calls back on its own threads.
type network struct {
	scene   scene
	events  chan struct{} // has an element after an event that watch has not seen
	handles []windows.Handle

	once sync.Once
	done chan struct{}
}

// watching holds all networks. A callback for Windows cannot be freed, so all networks use the same callback.
var watching struct {
	mu       sync.Mutex // guards the map all; the callback locks mu, so no goroutine may hold mu while it calls the system
	all      map[*network]bool
	callback func() uintptr
}

func init() {
	watching.callback = sync.OnceValue(func() uintptr {
		return windows.NewCallback(func(context, row, kind uintptr) uintptr {
			watching.mu.Lock()
			defer watching.mu.Unlock()
			for n := range watching.all {
				select {
				case n.events <- struct{}{}:
				default:
				}
			}
			return 0
		})
	})
}

func openNetwork(tunnel string) (*network, error) {
	n := &network{scene: scene{tunnel: tunnel}, events: make(chan struct{}, 1), done: make(chan struct{})}
	n.scene.changed()
	watching.mu.Lock()
	if watching.all == nil {
		watching.all = make(map[*network]bool)
	}
	watching.all[n] = true
	watching.mu.Unlock()
	var h windows.Handle
	if err := windows.NotifyIpInterfaceChange(windows.AF_UNSPEC, watching.callback(), nil, false, &h); err != nil {
		n.Close()
		return nil, err
	}
	n.handles = append(n.handles, h)
	if err := windows.NotifyUnicastIpAddressChange(windows.AF_UNSPEC, watching.callback(), nil, false, &h); err != nil {
		n.Close()
		return nil, err
	}
	n.handles = append(n.handles, h)
	return n, nil
}

func (n *network) Close() error {
	n.once.Do(func() {
		for _, h := range n.handles {
			windows.CancelMibChangeNotify2(h)
		}
		watching.mu.Lock()
		delete(watching.all, n)
		watching.mu.Unlock()
		close(n.done)
	})
	return nil
}

func (n *network) watch(signal func()) error {
	for {
		select {
		case <-n.events:
			if n.scene.changed() {
				signal()
			}
		case <-n.done:
			return nil
		}
	}
}
