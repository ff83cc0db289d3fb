package follow

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Changes calls changed after each change of the machine's network, and each time the machine resumes from sleep. Call
// [wireguard.Device.Wake] in changed. A [Follower] does that already. Changes returns nil when ctx ends, and an error if the
// system does not report changes; that error wraps errors.ErrUnsupported on systems other than those below. When Changes
// returns, its goroutines have ended and its sockets are closed. It calls changed on one goroutine, so calls do not overlap.
//
// A change is an address, a link with an address, or a default route that appears, disappears or is replaced. Addresses whose
// scope is only the link or the host do not count. Changes of the device's own interface, and of routes through it, do not count
// either: tunnel is the name of that interface, or "" if the device has no interface.
//
// Changes in quick succession cause one call: Changes waits until nothing has changed for 500 ms, or until 5 s have passed
// since the first change.
//
// Linux reports all this without polling, through netlink and a timer of the kernel. macOS and the BSDs report it through the
// route socket, and Windows through NotifyIpInterfaceChange and NotifyUnicastIpAddressChange. On macOS, the BSDs and Windows, a
// check every 15 s detects a resume. On Windows, a change of default route that changes no address goes unnoticed. Only Linux is
// tested. Since version 11, Android does not let apps open these sockets, and Changes returns an error: use ConnectivityManager
// there.
func Changes(ctx context.Context, tunnel string, changed func()) error {
	network, err := openNetwork(tunnel)
	if err != nil {
		return fmt.Errorf("follow: watching the network: %w", err)
	}
	defer network.Close()
	sleep, err := openSleep()
	if err != nil {
		return fmt.Errorf("follow: watching for a resume: %w", err)
	}
	defer sleep.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan struct{}, 1)
	signal := func() {
		select {
		case signals <- struct{}{}:
		default: // a signal is already waiting
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, w := range []watch{network, sleep} {
		wg.Go(func() {
			if err := w.watch(signal); err != nil {
				cancel(fmt.Errorf("follow: watching for changes: %w", err))
			}
		})
		defer w.Close() // ends the call of watch, before wg.Wait
	}
	merge(ctx, signals, changed)
	if err := context.Cause(ctx); err != ctx.Err() {
		return err
	}
	return nil
}

// A watch is a source of signals.
type watch interface {
	// watch calls signal for each change, until Close or until it fails. It returns nil after Close.
	watch(signal func()) error
	Close() error
}

const (
	quiet   = 500 * time.Millisecond // how long merge waits after the last signal of a burst
	longest = 5 * time.Second        // how long merge waits at most after the first signal of a burst
)

// merge calls changed once for each burst of signals, until ctx ends.
func merge(ctx context.Context, signals <-chan struct{}, changed func()) {
	for {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		latest := time.After(longest)
		for more := true; more; {
			select {
			case <-signals:
			case <-time.After(quiet):
				more = false
			case <-latest:
				more = false
			case <-ctx.Done():
				return
			}
		}
		changed()
	}
}
