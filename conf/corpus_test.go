package conf_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/conf"
)

// The corpus has files with random keys in the forms that providers and server panels write, and unusual files. Beside each file
// NAME.conf there is NAME.want. The first line of NAME.want says whether wg understands the file as this package does. The other
// lines say how this package understands the file, in the format of outcome.
var update = flag.Bool("update", false, "write the corpus's .want files anew; needs wg, wg-quick and root")

// Possible first lines of a .want file. Each says how wg and wg-quick understand the file, compared with this package.
const (
	sameAsWg = "wg: the same"
	refused  = "wg: refuses the file"
	differs  = "wg: differs"
)

func corpus(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/corpus/*.conf")
	if err != nil || len(names) < 60 {
		t.Fatalf("the corpus has %d files, error %v; want at least 60", len(names), err)
	}
	return names
}

// everywhere is a resolver that gives every name the same address.
type everywhere struct{ netip.Addr }

func (e everywhere) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{e.Addr}, nil
}

var someAddress = netip.MustParseAddr("192.0.2.250")

// outcome describes how this package understands a file.
func outcome(name string) string {
	f, err := conf.ReadFile(name)
	if err == nil {
		err = f.Resolve(context.Background(), conf.Resolution{Resolver: everywhere{someAddress}})
	}
	if err != nil {
		return "error: " + strings.ReplaceAll(err.Error(), name+": ", "") + "\n"
	}
	text, err := describe(f)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	return text + quickPart(f)
}

// describe returns the configuration that a new device gets from f, as text with peers and prefixes sorted.
func describe(f *conf.File) (string, error) {
	c, err := f.Config()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "private key %s, port %d, mark %#x\n", c.PrivateKey.Text(), c.ListenPort, c.FirewallMark)
	owner := make(map[netip.Prefix]int) // maps each prefix to the index of the last peer that has it
	for i, p := range c.Peers {
		for _, a := range p.AllowedIPs {
			owner[a.Masked()] = i
		}
	}
	var peers []string
	for i, p := range c.Peers {
		var prefixes []string
		for a, n := range owner {
			if n == i {
				prefixes = append(prefixes, " "+a.String())
			}
		}
		slices.Sort(prefixes)
		endpoint := "none"
		if p.Endpoint.IsValid() {
			endpoint = p.Endpoint.Addr.String()
		}
		peers = append(peers, fmt.Sprintf("peer %v, preshared key %s, endpoint %s, keepalive %v, prefixes%s\n",
			p.PublicKey, p.PresharedKey.Text(), endpoint, p.PersistentKeepalive, strings.Join(prefixes, "")))
	}
	slices.Sort(peers)
	return b.String() + strings.Join(peers, ""), nil
}

// quickPart returns the values of f that only wg-quick uses, as text.
func quickPart(f *conf.File) string {
	i := &f.Interface
	mtu := ""
	if i.MTU != 0 {
		mtu = fmt.Sprint(i.MTU)
	}
	return quickText(map[string][]string{
		"Address": texts(i.Addresses), "DNS": texts(i.DNS), "Search": i.Search, "MTU": {mtu}, "Table": {i.Table},
		"SaveConfig": {fmt.Sprint(i.SaveConfig)}, "PreUp": i.PreUp, "PostUp": i.PostUp, "PreDown": i.PreDown, "PostDown": i.PostDown,
	})
}

// quickText returns the values of keys as text, in the order of the keys' names and without empty values.
func quickText(values map[string][]string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(func(yield func(string) bool) {
		for k := range values {
			if !yield(k) {
				return
			}
		}
	}) {
		for _, v := range values[key] {
			if v != "" && !(key == "SaveConfig" && v == "false") {
				fmt.Fprintf(&b, "%s: %s\n", key, v)
			}
		}
	}
	return b.String()
}

func texts[T fmt.Stringer](vs []T) (out []string) {
	for _, v := range vs {
		out = append(out, v.String())
	}
	return out
}

// TestCorpus checks that this package understands each file of the corpus as its .want file says. TestCorpusWithWg compares this
// package with wg and wg-quick.
func TestCorpus(t *testing.T) {
	for _, name := range corpus(t) {
		want, err := os.ReadFile(strings.TrimSuffix(name, ".conf") + ".want")
		if err != nil {
			t.Error(err)
			continue
		}
		_, text, _ := strings.Cut(string(want), "\n")
		if got := outcome(name); got != text && !*update {
			t.Errorf("%s: this package understands the file as\n%s\nwant\n%s", name, got, text)
		}
	}
}
