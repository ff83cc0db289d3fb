package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// A default route must not route the tunnel's own datagrams into the tunnel. The rules that prevent it are those of wg-quick(8):
//
//	packets that a specific route in main matches ──▶ rule "table main suppress_prefixlength 0" (first) ──▶ main
//	other packets without the mark ──▶ rule "not fwmark M table M" ──▶ table M: the default route, into the interface
//	datagrams of the tunnel, with the mark ──▶ main, as before
//
// Answers to marked datagrams must pass the kernel's check of source addresses (rp_filter). So the filter sets the mark on
// these answers too, and src_valid_mark makes the check respect the mark.

const firstTable = 51820

// addRoutes adds a route for each allowed prefix that does not have one yet.
func (t *tunnelFile) addRoutes(ctx context.Context, d *wireguard.Device, i *conf.Interface) error {
	if i.Table == conf.TableOff {
		return nil
	}
	for _, p := range longestFirst(d) {
		if t.skips(p) {
			continue
		}
		var err error
		switch {
		case i.Table != "" && i.Table != conf.TableAuto:
			if !t.hasRoute(ctx, p, "exact", "table", i.Table) {
				if err = t.ip(ctx, p.Addr(), "route", "add", p.String(), "dev", t.iface, "table", i.Table); err != nil {
					err = fmt.Errorf("%w; set Table to a number, or to a name that ip route knows (rt_tables)", err)
				}
			}
		case p.Bits() == 0:
			err = t.addDefault(ctx, d, p)
		case !t.hasRoute(ctx, p, "match"):
			err = t.ip(ctx, p.Addr(), "route", "add", p.String(), "dev", t.iface)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// findIPv6 finds out whether the system has IPv6 turned off. If IPv6 is off and the file has IPv4 addresses too, wg0 warns
// and leaves IPv6 out. If the file has only IPv6 addresses, wg0 leaves out nothing, and adding the first address fails with
// an error.
func (t *tunnelFile) findIPv6(f *conf.File) {
	off := func(p netip.Prefix) bool { return p.Addr().Is6() }
	has4 := slices.ContainsFunc(f.Interface.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() })
	has6 := slices.ContainsFunc(f.Interface.Addresses, off) ||
		slices.ContainsFunc(f.Peers, func(p conf.Peer) bool { return slices.ContainsFunc(p.AllowedIPs, off) })
	if t.only4 = has4 && isIPv6Off(t.iface); t.only4 && has6 {
		fmt.Fprintf(t.out, "wg0: warning: IPv6 is off on this host, so %s gets no IPv6 addresses and routes; to turn it on, run: sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0\n", t.iface)
	}
}

// isIPv6Off reports whether the kernel has no IPv6, or has it turned off on an interface.
func isIPv6Off(iface string) bool {
	if _, err := os.Stat("/proc/sys/net/ipv4"); err != nil {
		return false // without /proc, assume that there is IPv6
	}
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + iface + "/disable_ipv6")
	return errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) == "1"
}

// skips reports whether wg0 leaves out the address or route p.
func (t *tunnelFile) skips(p netip.Prefix) bool { return t.only4 && p.Addr().Is6() }

// hasRoute reports whether the interface has a route that contains p (how is "match") or equals p ("exact").
func (t *tunnelFile) hasRoute(ctx context.Context, p netip.Prefix, how string, more ...string) bool {
	args := append([]string{family(p.Addr()), "route", "show", "dev", t.iface, how, p.String()}, more...)
	out, _ := t.output(ctx, "ip", args...)
	return strings.TrimSpace(out) != ""
}

// addDefault routes everything except the tunnel's own datagrams into the tunnel.
func (t *tunnelFile) addDefault(ctx context.Context, d *wireguard.Device, p netip.Prefix) error {
	mark := d.Status().FirewallMark
	if mark == 0 {
		mark = t.freeTable(ctx)
		if err := d.Configure(wireguard.Change{FirewallMark: &mark}); err != nil {
			return fmt.Errorf("%w; a default route needs a firewall mark: run wg0 as root, or set Table", err)
		}
		fmt.Fprintf(t.out, "[#] wg set %s fwmark %#x\n", t.iface, mark)
	}
	t.mark = mark
	table := strconv.FormatUint(uint64(mark), 10)
	if !t.hasRoute(ctx, p, "exact", "table", table) {
		if err := t.ip(ctx, p.Addr(), "route", "add", p.String(), "dev", t.iface, "table", table); err != nil {
			return err
		}
	}
	rules := t.rules(ctx, family(p.Addr()))
	if !rules.has(mark) {
		if err := t.ip(ctx, p.Addr(), "rule", "add", "not", "fwmark", table, "table", table); err != nil {
			return err
		}
	}
	if !rules.suppress {
		if err := t.ip(ctx, p.Addr(), "rule", "add", "table", "main", "suppress_prefixlength", "0"); err != nil {
			return err
		}
	}
	if p.Addr().Is4() {
		if err := t.countMarks(); err != nil {
			return err
		}
	}
	return t.addFilter(ctx, p.Addr(), mark)
}

// freeTable returns the number of an empty routing table.
func (t *tunnelFile) freeTable(ctx context.Context) uint32 {
	for table := uint32(firstTable); ; table++ {
		four, _ := t.output(ctx, "ip", "-4", "route", "show", "table", fmt.Sprint(table))
		six, _ := t.output(ctx, "ip", "-6", "route", "show", "table", fmt.Sprint(table))
		if strings.TrimSpace(four+six) == "" {
			return table
		}
	}
}

const srcValidMark = "/proc/sys/net/ipv4/conf/all/src_valid_mark"

// countMarks makes the kernel's check of source addresses (rp_filter) respect marks.
func (t *tunnelFile) countMarks() error {
	if v, err := os.ReadFile(srcValidMark); err == nil && strings.TrimSpace(string(v)) == "1" {
		return nil
	}
	fmt.Fprintln(t.out, "[#] sysctl -q net.ipv4.conf.all.src_valid_mark=1")
	if err := os.WriteFile(srcValidMark, []byte("1"), 0); err != nil {
		return fmt.Errorf("cannot set net.ipv4.conf.all.src_valid_mark=1, which a default route needs: %w; set this sysctl for the host or the container", err)
	}
	return nil
}

// rules holds the policy rules of one address family that a default route uses.
type rules struct {
	marks    []uint32 // M of each rule "not fwmark M table M"
	suppress bool
}

func (r *rules) has(mark uint32) bool {
	return slices.Contains(r.marks, mark)
}

func (h *host) rules(ctx context.Context, family string) rules {
	out, _ := h.output(ctx, "ip", family, "rule", "show")
	return parseRules(out)
}

// parseRules reads lines such as
//
//	32764:	from all lookup main suppress_prefixlength 0
//	32765:	not from all fwmark 0xca6c lookup 51820
func parseRules(out string) (r rules) {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 8 && f[1] == "not" && f[4] == "fwmark" && f[6] == "lookup":
			mark, err := strconv.ParseUint(f[5], 0, 32)
			if err == nil && f[7] == strconv.FormatUint(mark, 10) {
				r.marks = append(r.marks, uint32(mark))
			}
		case strings.Contains(line, "from all lookup main suppress_prefixlength 0"):
			r.suppress = true
		}
	}
	return r
}

// removeRules removes the rules for mark, unless another interface now uses their table. All interfaces with a default route
// share the rule for the table main, so only the last one removes it.
func (h *host) removeRules(ctx context.Context, mark uint32) {
	table := strconv.FormatUint(uint64(mark), 10)
	for _, family := range []string{"-4", "-6"} {
		r := h.rules(ctx, family)
		if !r.has(mark) || !h.isOurs(ctx, family, table) {
			continue
		}
		h.warn(h.run(ctx, "", "ip", family, "rule", "delete", "not", "fwmark", table, "table", table))
		if len(r.marks) == 1 && r.suppress {
			h.warn(h.run(ctx, "", "ip", family, "rule", "delete", "table", "main", "suppress_prefixlength", "0"))
		}
	}
}

// isOurs reports whether all routes of a table lead into the interface.
func (h *host) isOurs(ctx context.Context, family, table string) bool {
	out, _ := h.output(ctx, "ip", family, "route", "show", "table", table)
	for line := range strings.Lines(out) {
		m := deviceOf.FindStringSubmatch(line)
		if m == nil || m[1] != h.iface {
			return false
		}
	}
	return true
}

// addresses returns the interface's addresses of one family.
func (h *host) addresses(v4 bool) (as []netip.Prefix) {
	i, err := net.InterfaceByName(h.iface)
	if err != nil {
		return nil
	}
	all, _ := i.Addrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() == v4 {
			as = append(as, p)
		}
	}
	return as
}

// longestFirst returns the allowed IPs of all peers, the most specific first.
func longestFirst(d *wireguard.Device) (ps []netip.Prefix) {
	for p := range d.Peers() {
		ps = slices.AppendSeq(ps, d.AllowedIPs(p.PublicKey))
	}
	slices.SortStableFunc(ps, func(a, b netip.Prefix) int { return b.Bits() - a.Bits() })
	return ps
}
