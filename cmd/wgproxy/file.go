package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard/conf"
)

// The sections of a file that describe services. Names, keys and meanings are those of wireproxy.
const (
	kindSOCKS  = "Socks5"
	kindHTTP   = "http"
	kindSNI    = "SNI"
	kindClient = "TCPClientTunnel" // from the host into the tunnel
	kindServer = "TCPServerTunnel" // from the tunnel to the host
	kindUDP    = "UDPProxyTunnel"  // from the host into the tunnel
	kindStdio  = "STDIOTunnel"     // standard input and output into the tunnel
)

// sectionGateway makes the tunnel an exit for its peers. wireproxy has no such section.
const sectionGateway = "Gateway"

var syntax = conf.Syntax{
	Sections: map[string][]string{
		"":             {"WGConfig"},
		"Interface":    {"CheckAlive", "CheckAliveInterval"},
		"Resolve":      {"ResolveStrategy"},
		sectionGateway: {"Allow", "MaxFlows", "BytesPerSecond"},
		kindSOCKS:      {"BindAddress", "Username", "Password"},
		kindHTTP:       {"BindAddress", "Username", "Password", "CertFile", "KeyFile"},
		kindSNI:        {"BindAddress"},
		kindClient:     {"BindAddress", "Target"},
		kindServer:     {"ListenPort", "Target"},
		kindUDP:        {"BindAddress", "Target", "InactivityTimeout"},
		kindStdio:      {"Target"},
	},
	Semicolons: true,
}

// A service is what one section, or one flag of the command line, describes. Services are comparable: a reload keeps a service
// that is equal to one in the new file.
type service struct {
	kind               string
	bind, target       string // addresses to listen on and to dial, "host:port"
	username, password string
	certFile, keyFile  string
	idle               time.Duration // how long a UDP flow may be idle; negative means for ever
}

// String names a service without its secrets.
func (s service) String() string {
	switch s.kind {
	case kindClient, kindUDP:
		return fmt.Sprintf("[%s] %s to %s in the tunnel", s.kind, s.bind, s.target)
	case kindServer:
		return fmt.Sprintf("[%s] %s in the tunnel to %s", s.kind, s.bind, s.target)
	case kindStdio:
		return fmt.Sprintf("[%s] to %s in the tunnel", s.kind, s.target)
	}
	return fmt.Sprintf("[%s] on %s", s.kind, s.bind)
}

// settings are the contents of a configuration file.
type settings struct {
	path     string
	included string     // path of the file that the key WGConfig names, or empty
	file     *conf.File // describes the tunnel; it is the file that WGConfig names, if there is one
	services []service
	exit     *exitSettings // the section [Gateway], or nil
	alive    []netip.Addr  // CheckAlive
	every    time.Duration // CheckAliveInterval
	family   string        // "4" or "6" if names are resolved to one family alone, or empty
}

const usualAliveInterval = 5 * time.Second

// readSettings reads and checks a file. Its error lists all that is wrong with the file.
func readSettings(path string) (*settings, error) {
	f, err := readFile(path)
	if err != nil {
		return nil, err
	}
	s := &settings{path: path, file: f, every: usualAliveInterval}
	p := parser{settings: s}
	for _, section := range f.Sections() {
		p.section(section)
	}
	if err := errors.Join(p.errs...); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if p.other != "" {
		if err := s.include(p.other); err != nil {
			return nil, err
		}
	}
	if len(s.alive) == 0 && p.hasInterval {
		return nil, fmt.Errorf("%s: CheckAliveInterval has no effect without CheckAlive; add the addresses to ping, or remove the line", path)
	}
	if err := s.routeAll(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// check finds what would keep wgproxy from starting: a tunnel without a key or an address, services on the same address, and
// certificates that cannot be read.
func (s *settings) check() error {
	type place struct{ network, address string }
	taken := make(map[place]service)
	var errs []error
	if s.file.Interface.PrivateKey.IsZero() {
		errs = append(errs, errors.New("[Interface] has no PrivateKey; add the line PrivateKey = and what `wg genkey` prints"))
	}
	if len(s.file.Interface.Addresses) == 0 {
		errs = append(errs, errors.New("[Interface] has no Address; add the address that the other end routes to this one, as in Address = 10.0.0.2"))
	}
	for _, v := range s.services {
		at := place{"tcp", v.bind}
		switch v.kind {
		case kindServer:
			at.network = "tunnel"
		case kindUDP:
			at.network = "udp"
		}
		_, port, _ := net.SplitHostPort(v.bind)
		if other, ok := taken[at]; ok && port != "0" && v.bind != "" {
			errs = append(errs, fmt.Errorf("%v: %s is also the address of %v; give each its own port", v, v.bind, other))
		}
		taken[at] = v
		if v.certFile != "" {
			if _, err := tls.LoadX509KeyPair(v.certFile, v.keyFile); err != nil {
				errs = append(errs, fmt.Errorf("%v: %w", v, err))
			}
		}
	}
	return errors.Join(errs...)
}

// readFile parses a file in which values may name environment variables.
func readFile(path string) (*conf.File, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := parseFile(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

func parseFile(text string) (*conf.File, error) {
	expanded, err := expandKeys(text)
	if err != nil {
		return nil, err
	}
	f, err := syntax.Parse([]byte(expanded))
	if err != nil {
		return nil, err
	}
	errs := []error{f.Validate()}
	for _, e := range f.Unknown() {
		errs = append(errs, e)
	}
	return f, errors.Join(errs...)
}

// include takes the tunnel from the file that WGConfig names. The services of the including file stay. As in wireproxy, the
// [Interface] and [Peer] sections of the including file do not count.
func (s *settings) include(other string) error {
	if _, err := os.Stat(other); err != nil && !filepath.IsAbs(other) {
		other = filepath.Join(filepath.Dir(s.path), other)
	}
	f, err := readFile(other)
	if err != nil {
		return fmt.Errorf("%s: WGConfig: %w", s.path, err)
	}
	s.file, s.included = f, other
	p := parser{settings: s}
	for _, section := range f.Sections() {
		if section.Name == "Interface" {
			p.section(section)
		}
	}
	if err := errors.Join(p.errs...); err != nil {
		return fmt.Errorf("%s: %w", other, err)
	}
	return nil
}

// routeAll gives each peer without AllowedIPs all addresses, as wireproxy does. With [Gateway] each peer needs its own
// AllowedIPs, because peers cannot reach addresses inside any AllowedIPs.
func (s *settings) routeAll() error {
	for i := range s.file.Peers {
		p := &s.file.Peers[i]
		if len(p.AllowedIPs) > 0 || len(p.RemoveAllowedIPs) > 0 {
			continue
		}
		if s.exit != nil {
			return fmt.Errorf("the peer %v has no AllowedIPs, which [Gateway] needs; write the peer's own addresses, as in AllowedIPs = 10.7.0.2/32", p.PublicKey)
		}
		p.AllowedIPs = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	return nil
}

var (
	variable = regexp.MustCompile(`^\$[A-Za-z_][A-Za-z0-9_]*$`)
	// hookKeys are the keys of hooks. Their values are not expanded, because the shell does that.
	hookKeys = regexp.MustCompile(`(?i)^\s*(PreUp|PostUp|PreDown|PostDown)\s*=`)
)

// expandKeys replaces each value $NAME in [Interface] and [Peer] by the value of the environment variable. In other sections,
// values may contain a #, so the program expands them only where it uses them.
func expandKeys(text string) (string, error) {
	var b strings.Builder
	ours, line := false, 0
	var errs []error
	for l := range strings.Lines(text) {
		line++
		content, _, _ := strings.Cut(l, "#")
		trimmed := strings.ToLower(strings.TrimSpace(content))
		if strings.HasPrefix(trimmed, "[") {
			name := strings.Join(strings.Fields(trimmed), "") // conf ignores white space in names
			ours = name == "[interface]" || name == "[peer]"
		}
		key, value, ok := strings.Cut(content, "=")
		if value = strings.TrimSpace(value); !ours || !ok || !strings.HasPrefix(value, "$") || hookKeys.MatchString(l) {
			b.WriteString(l)
			continue
		}
		v, err := expand(value)
		if err == nil && strings.ContainsAny(v, "#\r\n\x00") {
			err = fmt.Errorf("the value of %s has a #, or more than one line", value)
		}
		if err != nil {
			errs = append(errs, &conf.Error{Line: line, Key: strings.TrimSpace(key), Err: err})
		}
		b.WriteString(key + "= " + v + "\n")
	}
	return b.String(), errors.Join(errs...)
}

// expand returns the value of $NAME, and v itself if it is not $NAME. $$NAME is the text $NAME.
func expand(v string) (string, error) {
	if strings.HasPrefix(v, "$$") {
		return v[1:], nil
	}
	if !variable.MatchString(v) {
		return v, nil
	}
	set, ok := os.LookupEnv(v[1:])
	if !ok {
		return "", fmt.Errorf("the variable %s is not set in the environment; set it, or write $%s for the text itself", v, v)
	}
	return set, nil
}

// A parser reads the sections that conf does not know.
type parser struct {
	*settings
	other       string // the value of WGConfig
	hasInterval bool
	errs        []error
}

func (p *parser) section(s conf.Section) {
	svc := service{kind: s.Name, idle: -1}
	given := make(map[string]bool)
	if s.Name == sectionGateway {
		if p.exit != nil {
			p.errs = append(p.errs, &conf.Error{Line: s.Line, Key: "[" + s.Name + "]", Err: errors.New("a second section with this name; write all keys into one")})
		}
		p.exit = new(exitSettings)
	}
	for _, e := range s.Entries {
		v, err := unquote(e.Value)
		if err == nil {
			v, err = expand(v)
		}
		if err == nil {
			err = p.entry(&svc, e.Key, v)
		}
		if err != nil {
			p.errs = append(p.errs, &conf.Error{Line: e.Line, Key: e.Key, Err: err})
		}
		given[e.Key] = true
	}
	switch s.Name {
	case "", "Interface", "Resolve", sectionGateway:
		return
	}
	for _, key := range []string{"BindAddress", "ListenPort", "Target"} {
		if slices.Contains(syntax.Sections[s.Name], key) && !given[key] {
			p.errs = append(p.errs, &conf.Error{Line: s.Line, Key: "[" + s.Name + "]", Err: fmt.Errorf("%s is missing", key)})
		}
	}
	if svc.certFile == "" != (svc.keyFile == "") {
		p.errs = append(p.errs, &conf.Error{Line: s.Line, Key: "[" + s.Name + "]", Err: errors.New("CertFile and KeyFile belong together: give both or neither")})
	}
	p.services = append(p.services, svc)
}

// unquote removes the quotes that an INI file may have around a value. It refuses a value that only begins with a quote, because
// package conf ends a value at a #, even between quotes.
func unquote(v string) (string, error) {
	for _, q := range []string{`"`, "`", "'"} {
		if !strings.HasPrefix(v, q) {
			continue
		}
		if len(v) < 2 || !strings.HasSuffix(v, q) {
			return "", fmt.Errorf("the quote %s is not closed; # begins a comment, so put a value with # into a variable, as in Password = $PASSWORD", q)
		}
		return v[1 : len(v)-1], nil
	}
	return v, nil
}

func (p *parser) entry(s *service, key, v string) (err error) {
	switch key {
	case "WGConfig":
		p.other = v
	case "BindAddress":
		s.bind = v
		return address(v)
	case "Target":
		s.target = v
		return address(v)
	case "ListenPort":
		if _, err := strconv.ParseUint(v, 10, 16); err != nil {
			return fmt.Errorf("want a port from 0 to 65535")
		}
		s.bind = ":" + v
	case "Username":
		s.username = v
	case "Password":
		s.password = v
	case "CertFile":
		s.certFile = v
	case "KeyFile":
		s.keyFile = v
	case "InactivityTimeout":
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return fmt.Errorf("want seconds, or 0 for ever")
		}
		if n > 0 {
			s.idle = time.Duration(n) * time.Second
		}
	case "ResolveStrategy":
		families := map[string]string{"ipv4": "4", "ipv6": "6", "auto": ""}
		family, ok := families[strings.ToLower(v)]
		if !ok {
			return fmt.Errorf("want ipv4, ipv6 or auto")
		}
		p.family = family
	case "CheckAlive":
		for a := range strings.SplitSeq(v, ",") {
			if a = strings.TrimSpace(a); a == "" {
				continue
			}
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return fmt.Errorf("want addresses to ping through the tunnel, with commas between them")
			}
			if !slices.Contains(p.alive, addr) {
				p.alive = append(p.alive, addr)
			}
		}
	case "CheckAliveInterval":
		p.hasInterval = true
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("want seconds from 1 to 65535")
		}
		p.every = time.Duration(n) * time.Second
	default:
		return p.exitEntry(key, v)
	}
	return nil
}

// address checks "host:port".
func address(v string) error {
	_, port, err := net.SplitHostPort(v)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q: want host:port, such as 127.0.0.1:1080 or [::1]:1080", v)
	}
	return nil
}
