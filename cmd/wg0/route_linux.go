package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// How a default route into the tunnel leaves the tunnel's own datagrams out of it, as wg-quick(8) does it:
//
//	all packets without the mark ──▶ rule "not fwmark M table M" ──▶ table M: the default route, into the interface
//	            but for those that main has a route for ──▶ rule "table main suppress_prefixlength 0", which comes first
//	datagrams of the tunnel, with the mark ──▶ main, as before
//
// Answers to marked datagrams must pass the check of their source address: a filter gives them the mark again, and
// src_valid_mark says that it counts.

const firstTable = 51820

// addRoutes adds a route for each allowed prefix that has none yet.
func (t *tunnelFile) addRoutes(ctx context.Context, d *wireguard.Device, i *conf.Interface) error {
	if i.Table == conf.TableOff {
		return nil
	}
	for _, p := range longestFirst(d) {
		var err error
		switch {
		case i.Table != "" && i.Table != conf.TableAuto:
			if !t.hasRoute(ctx, p, "exact", "table", i.Table) {
				if err = t.ip(ctx, p.Addr(), "route", "add", p.String(), "dev", t.iface, "table", i.Table); err != nil {
					err = fmt.Errorf("%w; Table wants a number, or a name that ip route knows (rt_tables)", err)
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

// hasRoute reports whether the interface has a route of which p is a part, or that is exactly p.
func (t *tunnelFile) hasRoute(ctx context.Context, p netip.Prefix, how string, more ...string) bool {
	args := append([]string{family(p.Addr()), "route", "show", "dev", t.iface, how, p.String()}, more...)
	out, _ := t.output(ctx, "ip", args...)
	return strings.TrimSpace(out) != ""
}

// addDefault routes everything into the tunnel but its own datagrams.
func (t *tunnelFile) addDefault(ctx context.Context, d *wireguard.Device, p netip.Prefix) error {
	mark := d.Status().FirewallMark
	if mark == 0 {
		mark = t.freeTable(ctx)
		if err := d.Configure(wireguard.Change{FirewallMark: &mark}); err != nil {
			return fmt.Errorf("%w; a default route needs marks: run as root, or set Table", err)
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

// freeTable is a number of a routing table without a route.
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

// countMarks makes the check of source addresses heed marks.
func (t *tunnelFile) countMarks() error {
	if v, err := os.ReadFile(srcValidMark); err == nil && strings.TrimSpace(string(v)) == "1" {
		return nil
	}
	fmt.Fprintln(t.out, "[#] sysctl -q net.ipv4.conf.all.src_valid_mark=1")
	if err := os.WriteFile(srcValidMark, []byte("1"), 0); err != nil {
		return fmt.Errorf("a default route needs the sysctl net.ipv4.conf.all.src_valid_mark=1, which cannot be set here: %w; set it for the host or the container", err)
	}
	return nil
}

// rules are the policy rules of one family that this file is about.
type rules struct {
	marks    []uint32 // of the rules "not fwmark M table M"
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

// removeRules removes the rules for mark, unless another interface has come to use their table. The rule about main,
// which all interfaces of this kind share, goes with the last of them.
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

// isOurs reports whether a table has no route but into the interface.
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

// addresses are those of the interface, of one family.
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
