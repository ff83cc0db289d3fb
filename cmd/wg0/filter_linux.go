package main

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// The filter has the names of wg-quick(8)'s, so that either of the two removes what the other one made: the table
// wg-quick-IFACE of nft, or rules of iptables with a comment. It drops packets for the tunnel's addresses that do not come
// through the tunnel, unless from this host, and keeps the mark of datagrams with their connection.

func (h *host) nftTable() string { return "wg-quick-" + h.iface }
func (h *host) marker() string {
	return fmt.Sprintf(`-m comment --comment "wg-quick(8) rule for %s"`, h.iface)
}

// addFilter adds the filter for the family of a default route.
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
	fmt.Fprintf(h.out, "wg0: there is neither nft nor %s-restore: packets for the tunnel's addresses are not kept out of other interfaces, and a strict rp_filter drops answers\n", iptables)
	return nil
}

func (h *host) nftRules(v4 bool, mark uint32) string {
	pf, name := "ip6", h.nftTable()
	if v4 {
		pf = "ip"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "add table %s %s\n", pf, name)
	fmt.Fprintf(&b, "flush table %s %s\n", pf, name) // of one that was left behind
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

// removeFilter removes what is there of the filter.
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

// nftDeletes makes commands of the lines of nft list tables, such as "table ip wg-quick-wg0".
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

// iptablesDeletes makes of what iptables-save prints an input for iptables-restore that deletes the rules with marker.
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
