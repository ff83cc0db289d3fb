package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard/follow"
)

func isReload(sig os.Signal) bool { return slices.Contains(reloadSignals, sig) }

// reloadTime is how long a reload may try to resolve the names of endpoints. Signals that arrive meanwhile are handled after
// the reload.
const reloadTime = 10 * time.Second

// reload reads the file again, prints what changes, and applies the changes. If it fails before the device has changed,
// everything stays as it was.
func (p *program) reload(ctx context.Context) error {
	next, err := p.options.settings()
	if err != nil {
		return p.options.explain(err)
	}
	add, remove := difference(next.services, p.services), difference(p.services, next.services)
	plan, err := follow.NewPlan(p.file, next.file)
	if err != nil {
		return err
	}
	lines := slices.Concat(planServices(add, remove), planExit(p.exit, next.exit), planFixed(p.settings, next))
	for line := range strings.Lines(plan.String() + strings.Join(lines, "")) {
		p.say("plan: %s", strings.TrimSuffix(line, "\n"))
	}
	certs := make(map[*server]*tls.Certificate) // of the services that stay, because a certificate may have been renewed
	for s, srv := range p.running {
		if s.certFile == "" || slices.Contains(remove, s) {
			continue
		}
		cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
		if err != nil {
			return fmt.Errorf("%v: %w", s, p.options.explain(err))
		}
		certs[srv] = &cert
	}
	names, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	if _, err := p.tunnel.Reload(names, next.file); err != nil {
		return err
	}
	if p.exit == nil || next.exit == nil {
		next.exit = p.exit
	}
	if next.exit != nil {
		p.gateway.reload(next.exit, next.file, plan.Removed)
	}
	for srv, cert := range certs {
		srv.cert.Store(cert)
	}
	for _, s := range remove {
		p.stop(s)
	}
	next.alive, next.every, next.family = p.alive, p.every, p.settings.family
	next.file = plan.Running()
	next.services = difference(p.services, remove)
	p.settings = next
	var errs []error
	for _, s := range add {
		if err := p.startServices([]service{s}); err != nil {
			errs = append(errs, p.options.explain(err))
			continue
		}
		next.services = append(next.services, s)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("everything except these services was reloaded: %w", err)
	}
	p.say("reloaded %s", p.path)
	return nil
}

// difference returns the services of a that b does not have.
func difference(a, b []service) (out []service) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

func planServices(add, remove []service) (lines []string) {
	for _, s := range remove {
		lines = append(lines, fmt.Sprintf("stop %v, with its connections\n", s))
	}
	for _, s := range add {
		lines = append(lines, fmt.Sprintf("start %v\n", s))
	}
	return lines
}

// planFixed returns a line for each of wgproxy's own settings that differs in the new file, and that a reload does not
// change.
func planFixed(old, next *settings) (lines []string) {
	for _, c := range []struct {
		name string
		same bool
	}{
		{"ResolveStrategy", old.family == next.family},
		{"CheckAlive", slices.Equal(old.alive, next.alive) && old.every == next.every},
	} {
		if !c.same {
			lines = append(lines, fmt.Sprintf("leave %s as it is until wgproxy starts again\n", c.name))
		}
	}
	return lines
}
