package main

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// The filter is the nft table wg-quick-IFACE, or a set of iptables rules with a comment. Its names are those of wg-quick(8),
// so wg0 and wg-quick can remove each other's filters. The filter drops packets to the tunnel's addresses that arrive outside
// the tunnel, unless this host sent them. It also copies the mark of outgoing datagrams to their conntrack entry, and from
// there to the answers.

func (h *host) nftTable() string { return "wg-quick-" + h.iface }
func (h *host) marker() string {
	return fmt.Sprintf(`-m comment --comment "wg-quick(8) rule for %s"`, h.iface)
}

// addFilter adds the filter for the address family of a default route. Without nft and iptables it only prints a warning.
func (h *host) addFilter(ctx context.Context, of netip.Addr, mark uint32) error {
	iptables := "iptables"
	if !of.Is4() {
		iptables = "ip6tables"
	}
	switch {
	case has("nft"):
		return h.run(ctx, h.nftRules(of.Is4(), mark), "nft", "-f", "-")
	case has(iptables + "-restore"):
		return h.run(ctx, h.iptablesRules(of.Is4(), mark), iptables+"-restore", "-n")
	}
	fmt.Fprintf(h.out, "wg0: neither nft nor %s-restore is installed: other interfaces accept packets to the tunnel's addresses, and a strict rp_filter drops answers\n", iptables)
	return nil
}

func (h *host) nftRules(v4 bool, mark uint32) string {
	pf, name := "ip6", h.nftTable()
	if v4 {
		pf = "ip"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "add table %s %s\n", pf, name)
	fmt.Fprintf(&b, "flush table %s %s\n", pf, name) // a table from an earlier run may exist
	fmt.Fprintf(&b, "add chain %s %s preraw { type filter hook prerouting priority -300; }\n", pf, name)
	fmt.Fprintf(&b, "add chain %s %s premangle { type filter hook prerouting priority -150; }\n", pf, name)
	fmt.Fprintf(&b, "add chain %s %s postmangle { type filter hook postrouting priority -150; }\n", pf, name)
	for _, a := range h.addresses(v4) {
		fmt.Fprintf(&b, "add rule %s %s preraw iifname != \"%s\" %s daddr %s fib saddr type != local drop\n", pf, name, h.iface, pf, a.Addr())
	}
	fmt.Fprintf(&b, "add rule %s %s postmangle meta l4proto udp mark %d ct mark set mark\n", pf, name, mark)
	fmt.Fprintf(&b, "add rule %s %s premangle meta l4proto udp meta mark set ct mark\n", pf, name)
	return b.String()
}

func (h *host) iptablesRules(v4 bool, mark uint32) string {
	var b strings.Builder
	b.WriteString("*raw\n")
	for _, a := range h.addresses(v4) {
		fmt.Fprintf(&b, "-I PREROUTING ! -i %s -d %s -m addrtype ! --src-type LOCAL -j DROP %s\n", h.iface, a.Addr(), h.marker())
	}
	b.WriteString("COMMIT\n*mangle\n")
	fmt.Fprintf(&b, "-I POSTROUTING -m mark --mark %d -p udp -j CONNMARK --save-mark %s\n", mark, h.marker())
	fmt.Fprintf(&b, "-I PREROUTING -p udp -j CONNMARK --restore-mark %s\nCOMMIT\n", h.marker())
	return b.String()
}

// removeFilter removes the filter, whichever program made it.
func (h *host) removeFilter(ctx context.Context) {
	if has("nft") {
		out, _ := h.output(ctx, "nft", "list", "tables")
		if remove := nftDeletes(out, h.nftTable()); remove != "" {
			h.warn(h.run(ctx, remove, "nft", "-f", "-"))
		}
	}
	for _, iptables := range []string{"iptables", "ip6tables"} {
		if !has(iptables + "-save") {
			continue
		}
		out, _ := h.output(ctx, iptables+"-save")
		if remove := iptablesDeletes(out, h.marker()); remove != "" {
			h.warn(h.run(ctx, remove, iptables+"-restore", "-n"))
		}
	}
}

func (h *host) warn(err error) {
	if err != nil {
		printError(h.out, err)
	}
}

// nftDeletes returns the nft commands that delete the tables with this name. tables is the output of nft list tables, with
// lines such as "table ip wg-quick-wg0".
func nftDeletes(tables, name string) string {
	var b strings.Builder
	for line := range strings.Lines(tables) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == name {
			fmt.Fprintf(&b, "delete %s\n", strings.TrimSpace(line))
		}
	}
	return b.String()
}

var appended = regexp.MustCompile(`^-A `)

// iptablesDeletes converts the output of iptables-save into an input for iptables-restore that deletes the rules with marker.
func iptablesDeletes(saved, marker string) string {
	var b strings.Builder
	found := false
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*") || line == "COMMIT":
			b.WriteString(line + "\n")
		case appended.MatchString(line) && strings.Contains(line, marker):
			found = true
			b.WriteString(appended.ReplaceAllString(line, "-D ") + "\n")
		}
	}
	if !found {
		return ""
	}
	return b.String()
}
