package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/seed-86b749af/wireguard/conf"
)

// setDNS makes the host use only the DNS servers of i.
func (h *host) setDNS(ctx context.Context, i *conf.Interface) error {
	switch {
	case len(i.DNS) == 0: // like wg-quick(8), ignore search domains without servers
		return nil
	case has("resolvconf"):
		var b strings.Builder
		for _, a := range i.DNS {
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
		if len(i.Search) > 0 {
			fmt.Fprintf(&b, "search %s\n", strings.Join(i.Search, " "))
		}
		return h.run(ctx, b.String(), "resolvconf", "-a", resolvconfPrefix()+h.iface, "-m", "0", "-x")
	case has("resolvectl"):
		args := []string{"dns", h.iface}
		for _, a := range i.DNS {
			args = append(args, a.String())
		}
		if err := h.run(ctx, "", "resolvectl", args...); err != nil {
			return err
		}
		return h.run(ctx, "", "resolvectl", append([]string{"domain", h.iface, "~."}, i.Search...)...)
	}
	return errors.New("cannot set DNS: this host has neither resolvconf nor resolvectl; install openresolv or systemd-resolved, or remove DNS from the file")
}

// unsetDNS undoes setDNS.
func (h *host) unsetDNS(ctx context.Context, i *conf.Interface) {
	switch {
	case len(i.DNS) == 0:
	case has("resolvconf"):
		h.warn(h.run(ctx, "", "resolvconf", "-d", resolvconfPrefix()+h.iface, "-f"))
	case has("resolvectl"):
		h.output(ctx, "resolvectl", "revert", h.iface) // ignore errors: deleting the interface has the same effect
	}
}

var interfaceOrder = regexp.MustCompile(`^([A-Za-z0-9-]+)\*$`)

// resolvconfPrefix returns a prefix that makes Debian's resolvconf sort an interface to the front.
func resolvconfPrefix() string {
	f, err := os.Open("/etc/resolvconf/interface-order")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if m := interfaceOrder.FindStringSubmatch(s.Text()); m != nil {
			return m[1] + "."
		}
	}
	return ""
}
