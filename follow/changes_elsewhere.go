//go:build darwin || dragonfly || freebsd || netbsd || openbsd || windows

package follow

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// A scene is the state of the network at the last call of the method changed. The system also reports events when nothing has
// changed, so changed compares the new state with the old one.
type scene struct {
	tunnel string // the name of the device's own interface, whose changes do not count
	last   string
}

// changed reads the interfaces that have addresses, and reports whether they differ from those at the last call. An error of the
// system counts as a difference.
func (s *scene) changed() bool {
	now, err := look(s.tunnel)
	if err == nil && now == s.last {
		return false
	}
	s.last = now
	return true
}

// look returns one line for each interface that has an address, except for the interface named tunnel. An address whose scope is
// only the link or the host does not count.
func look(tunnel string) (string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			return "", err
		}
		var texts []string
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
				texts = append(texts, p.String())
			}
		}
		if len(texts) > 0 && i.Name != tunnel {
			slices.Sort(texts)
			fmt.Fprintln(&b, i.Index, i.Name, i.Flags&(net.FlagUp|net.FlagRunning), texts)
		}
	}
	return b.String(), nil
}

const (
	tick = 15 * time.Second
	late = 10 * time.Second // how late a tick may be on a loaded machine that did not sleep
)

// A sleep detects that the machine slept: the next tick is then late by the wall clock or by the monotonic clock. A sleep also
// reports a wall clock that someone sets forward.
type sleep struct {
	done chan struct{}
	once sync.Once
}

func openSleep() (*sleep, error) { return &sleep{done: make(chan struct{})}, nil }

func (s *sleep) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (s *sleep) watch(signal func()) error {
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	for last := time.Now(); ; {
		select {
		case <-ticks.C:
		case <-s.done:
			return nil
		}
		now := time.Now()
		if max(now.Sub(last), now.Round(0).Sub(last.Round(0))) > tick+late {
			signal()
		}
		last = now
	}
}
