package conf

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	wireguard "github.com/seed-86b749af/wireguard"
)

// A kind says how many values a key may have, and how the file lists them.
type kind uint8

const (
	single kind = iota // one value: that of the last line with the key
	list               // any number of lines, each with values separated by commas
	lines              // one value per line
)

// A field describes a key. T is Interface or Peer.
type field[T any] struct {
	name   string
	kind   kind
	quick  bool                   // whether only wg-quick(8) knows the key, and not wg(8)
	parse  func(*T, string) error // adds a line's value to the earlier values
	values func(*T) []string      // returns the values to write
}

var interfaceFields = []field[Interface]{
	{"PrivateKey", single, false, parsePrivateKey, func(i *Interface) []string {
		return unless(i.PrivateKey.IsZero(), i.PrivateKey.Text)
	}},
	{"ListenPort", single, false, parseListenPort, func(i *Interface) []string { return number(int64(i.ListenPort)) }},
	{"FwMark", single, false, parseFwMark, func(i *Interface) []string {
		return unless(i.FwMark == 0, func() string { return fmt.Sprintf("%#x", i.FwMark) })
	}},
	{"Address", list, true, parseAddress, func(i *Interface) []string { return texts(i.Addresses, "") }},
	{"DNS", list, true, parseDNS, func(i *Interface) []string { return append(texts(i.DNS, ""), i.Search...) }},
	{"MTU", single, true, parseMTU, func(i *Interface) []string { return number(int64(i.MTU)) }},
	{"Table", single, true, parseTable, func(i *Interface) []string {
		return unless(i.Table == "", func() string { return i.Table })
	}},
	{"PreUp", lines, true, hook(func(i *Interface) *[]string { return &i.PreUp }), func(i *Interface) []string { return i.PreUp }},
	{"PostUp", lines, true, hook(func(i *Interface) *[]string { return &i.PostUp }), func(i *Interface) []string { return i.PostUp }},
	{"PreDown", lines, true, hook(func(i *Interface) *[]string { return &i.PreDown }), func(i *Interface) []string { return i.PreDown }},
	{"PostDown", lines, true, hook(func(i *Interface) *[]string { return &i.PostDown }), func(i *Interface) []string { return i.PostDown }},
	{"SaveConfig", single, true, parseSaveConfig, func(i *Interface) []string {
		return unless(!i.SaveConfig, func() string { return "true" })
	}},
}

var peerFields = []field[Peer]{
	{"PublicKey", single, false, parsePublicKey, func(p *Peer) []string { return unless(p.PublicKey.IsZero(), p.PublicKey.String) }},
	{"PresharedKey", single, false, parsePresharedKey, func(p *Peer) []string {
		return unless(p.PresharedKey.IsZero(), p.PresharedKey.Text)
	}},
	{"AllowedIPs", list, false, parseAllowedIPs, allowedIPsValues},
	{"Endpoint", lines, false, parsePeerEndpoint, func(p *Peer) []string { return texts(p.Endpoints(), "") }},
	{"PersistentKeepalive", single, false, parseKeepalive, func(p *Peer) []string {
		return number(int64(p.PersistentKeepalive / time.Second))
	}},
}

// find returns the field whose name is key, in upper or lower case, or nil.
func find[T any](fields []field[T], key string) *field[T] {
	for i := range fields {
		if strings.EqualFold(fields[i].name, key) {
			return &fields[i]
		}
	}
	return nil
}

func names[T any](fields []field[T]) (names []string) {
	for _, f := range fields {
		names = append(names, f.name)
	}
	return names
}

// distance returns how many letters must be inserted, deleted or replaced to turn a into b. If b is more than twice as long as a,
// it returns len(b) instead.
func distance(a, b string) int {
	if len(b) > 2*len(a) {
		return len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func unless(absent bool, text func() string) []string {
	if absent {
		return nil
	}
	return []string{text()}
}

func number(n int64) []string {
	return unless(n == 0, func() string { return strconv.FormatInt(n, 10) })
}

func texts[T fmt.Stringer](vs []T, before string) (ts []string) {
	for _, v := range vs {
		ts = append(ts, before+v.String())
	}
	return ts
}

// keyError removes the prefix that package wireguard adds, such as "wireguard: private key: ", from an error.
func keyError(err error) error {
	if err == nil {
		return nil
	}
	return errors.Unwrap(err)
}

func parsePrivateKey(i *Interface, v string) (err error) {
	i.PrivateKey, err = wireguard.ParsePrivateKey(squeeze(v))
	return keyError(err)
}

func parsePublicKey(p *Peer, v string) (err error) {
	p.PublicKey, err = wireguard.ParsePublicKey(squeeze(v))
	return keyError(err)
}

func parsePresharedKey(p *Peer, v string) (err error) {
	p.PresharedKey, err = wireguard.ParsePresharedKey(squeeze(v))
	return keyError(err)
}

// decimal parses a number without a sign.
func decimal(v string, bits int) (uint64, bool) {
	n, err := strconv.ParseUint(v, 10, bits)
	return n, err == nil
}

func parseListenPort(i *Interface, v string) error {
	n, ok := decimal(squeeze(v), 16)
	if !ok {
		return fmt.Errorf("%s: want a port from 1 to 65535, or 0 for any", quote(v))
	}
	i.ListenPort = uint16(n)
	return nil
}

func parseFwMark(i *Interface, v string) error {
	v = squeeze(v)
	if strings.EqualFold(v, "off") {
		i.FwMark = 0
		return nil
	}
	n, ok := decimal(v, 32)
	if digits, found := strings.CutPrefix(v, "0x"); found {
		var err error
		n, err = strconv.ParseUint(digits, 16, 32)
		ok = err == nil
	}
	if !ok {
		return fmt.Errorf("%s: want a number of 32 bits, such as 51820 or 0xca6c, or off", quote(v))
	}
	i.FwMark = uint32(n)
	return nil
}

func parseKeepalive(p *Peer, v string) error {
	v = squeeze(v)
	if strings.EqualFold(v, "off") {
		p.PersistentKeepalive = 0
		return nil
	}
	n, ok := decimal(v, 16)
	if !ok {
		return fmt.Errorf("%s: want seconds from 1 to 65535, or off", quote(v))
	}
	p.PersistentKeepalive = time.Duration(n) * time.Second
	return nil
}

func parseMTU(i *Interface, v string) error {
	if v == "" {
		i.MTU = 0
		return nil
	}
	n, ok := decimal(v, 16)
	if !ok || n < 68 {
		return fmt.Errorf("%s: want bytes from 68 to 65535; 1420 is usual, and IPv6 needs at least 1280", quote(v))
	}
	i.MTU = int(n)
	return nil
}

var tableName = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,64}$`)

func parseTable(i *Interface, v string) error {
	switch lower := strings.ToLower(v); {
	case v == "":
	case lower == TableAuto || lower == TableOff:
		v = lower
	case !tableName.MatchString(v) || v[0] == '-':
		return fmt.Errorf("%s: want auto, off, or a routing table's number or name", quote(v))
	}
	i.Table = v
	return nil
}

func parseSaveConfig(i *Interface, v string) error {
	switch {
	case strings.EqualFold(v, "true"):
		i.SaveConfig = true
	case strings.EqualFold(v, "false"):
		i.SaveConfig = false
	default:
		return fmt.Errorf("%s: want true or false", quote(v))
	}
	return nil
}

func hook(of func(*Interface) *[]string) func(*Interface, string) error {
	return func(i *Interface, v string) error {
		if v == "" {
			return nil
		}
		hooks := of(i)
		*hooks = append(*hooks, v)
		return nil
	}
}

// split splits the value of a key of wg-quick(8) at commas and white space.
func split(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ',' || strings.ContainsRune(space, r) })
}

func parseAddress(i *Interface, v string) error {
	var errs []error
	for _, s := range split(v) {
		p, err := parsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: want an address with a length, such as 10.0.0.1/24 or fd00::1/64", quote(s)))
			continue
		}
		i.Addresses = append(i.Addresses, p)
	}
	return errors.Join(errs...)
}

// parsePrefix parses a prefix, or an address, which becomes a prefix of full length. It refuses zones and IPv4-mapped addresses.
func parsePrefix(s string) (netip.Prefix, error) {
	address, length, hasLength := strings.Cut(s, "/")
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Prefix{}, errors.New("no address")
	}
	bits := uint64(a.BitLen())
	if hasLength {
		var ok bool
		if bits, ok = decimal(length, 8); !ok || bits > uint64(a.BitLen()) {
			return netip.Prefix{}, errors.New("no length")
		}
	}
	return netip.PrefixFrom(a, int(bits)), nil
}

var domain = regexp.MustCompile(`^[A-Za-z0-9_~][A-Za-z0-9_.~-]{0,253}$`)

func parseDNS(i *Interface, v string) error {
	var errs []error
	for _, s := range split(v) {
		a, err := netip.ParseAddr(s)
		switch {
		case err == nil:
			i.DNS = append(i.DNS, a)
		case strings.Contains(s, ":") || strings.Trim(s, "0123456789.") == "" || !domain.MatchString(s):
			errs = append(errs, fmt.Errorf("%s: want the address of a server, or a domain to search", quote(s)))
		default:
			i.Search = append(i.Search, s)
		}
	}
	return errors.Join(errs...)
}

func parsePeerEndpoint(p *Peer, v string) error {
	e, err := ParseEndpoint(squeeze(v))
	switch {
	case err != nil:
		return err
	case p.Endpoint.IsZero():
		p.Endpoint = e
	default:
		p.MoreEndpoints = append(p.MoreEndpoints, e)
	}
	return nil
}

// parseAllowedIPs adds the prefixes of one line to p. If p has the same prefix with and without a minus sign, the later of the
// two replaces the other.
func parseAllowedIPs(p *Peer, v string) error {
	v = squeeze(v)
	if v == "" {
		return nil
	}
	var errs []error
	for s := range strings.SplitSeq(v, ",") {
		sign, rest := "", s
		if strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
			sign, rest = s[:1], s[1:]
		}
		prefix, err := parsePrefix(rest)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: want a prefix, such as 10.0.0.0/24 or fd00::/64, and a comma between two", quote(s)))
			continue
		}
		p.Incremental = p.Incremental || sign != ""
		same := func(q netip.Prefix) bool { return q.Masked() == prefix.Masked() }
		if sign == "-" {
			p.AllowedIPs = slices.DeleteFunc(p.AllowedIPs, same)
			p.RemoveAllowedIPs = append(p.RemoveAllowedIPs, prefix)
		} else {
			p.RemoveAllowedIPs = slices.DeleteFunc(p.RemoveAllowedIPs, same)
			p.AllowedIPs = append(p.AllowedIPs, prefix)
		}
	}
	return errors.Join(errs...)
}

// isIncremental reports whether p changes the prefixes of a peer instead of replacing them all. It also returns true if a program
// has set RemoveAllowedIPs without Incremental.
func (p *Peer) isIncremental() bool { return p.Incremental || len(p.RemoveAllowedIPs) > 0 }

func allowedIPsValues(p *Peer) []string {
	plus := ""
	if p.isIncremental() {
		plus = "+"
	}
	return append(texts(p.AllowedIPs, plus), texts(p.RemoveAllowedIPs, "-")...)
}
