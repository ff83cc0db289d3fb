package netstack

import (
	"net/netip"
	"strconv"
	"strings"
)

// validName reports whether the resolver sends queries for the name s. A valid name consists of letters, digits, hyphens and
// underscores, in labels of at most 63 bytes. It has at most 253 bytes without the final dot. As in package net, a name of digits
// and dots alone is not valid, because it usually is a mistyped IP address.
func validName(s string) bool {
	if s == "." {
		return true
	}
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return false
	}
	named := false
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case '0' <= c && c <= '9':
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
				named = true
			default:
				return false
			}
		}
	}
	return named
}

// lower returns s with its ASCII letters in lower case. DNS compares names in this way (RFC 4343).
func lower(s string) string {
	return strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, s)
}

// searchList returns the names that the resolver tries, in order, when a program looks up host. The names are in lower case and
// end in a dot. If host ends in a dot, it is the only name. If host has at least ndots dots, host itself is first, followed by
// host with each domain of search appended. If host has fewer dots, host itself is last.
func searchList(host string, search []string, ndots int) []string {
	host = lower(host)
	if strings.HasSuffix(host, ".") {
		return []string{host}
	}
	whole := host + "."
	var names []string
	for _, domain := range search {
		if name := whole + domain; validName(name) {
			names = append(names, name)
		}
	}
	if strings.Count(host, ".") >= ndots {
		return append([]string{whole}, names...)
	}
	return append(names, whole)
}

// searchDomain returns s, a domain of Config.Search, in lower case and with a final dot. It returns "" for an entry that the
// resolver appends to no name: the root, and a domain that systemd-resolved uses only for routing.
func searchDomain(s string) string {
	if s = lower(strings.TrimSuffix(s, ".")); s == "" || strings.HasPrefix(s, "~") {
		return ""
	}
	return s + "."
}

// A nameUse is a rule about a domain that the resolver applies without asking a server.
type nameUse int

const (
	ordinary nameUse = iota
	// "Name resolution APIs and libraries SHOULD recognize localhost names as special and SHOULD always return the IP loopback
	// address" (RFC 6761, section 6.3).
	loopback
	notExists // .invalid (RFC 6761, section 6.4) and .onion (RFC 7686, section 2)
)

func nameUseOf(host string) nameUse {
	host = "." + lower(strings.TrimSuffix(host, "."))
	switch {
	case strings.HasSuffix(host, ".localhost"):
		return loopback
	case strings.HasSuffix(host, ".invalid"), strings.HasSuffix(host, ".onion"):
		return notExists
	}
	return ordinary
}

// reverseName returns the name that has a PTR record for a (RFC 1035, section 3.5; RFC 3596, section 2.5).
func reverseName(a netip.Addr) string {
	b := a.Unmap().AsSlice()
	var s strings.Builder
	for i := len(b) - 1; i >= 0; i-- {
		if len(b) == 4 {
			s.WriteString(strconv.Itoa(int(b[i])) + ".")
			continue
		}
		const hex = "0123456789abcdef"
		s.Write([]byte{hex[b[i]&15], '.', hex[b[i]>>4], '.'})
	}
	if len(b) == 4 {
		return s.String() + "in-addr.arpa."
	}
	return s.String() + "ip6.arpa."
}
