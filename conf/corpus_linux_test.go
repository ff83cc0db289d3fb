package conf_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/conf"
)

// TestCorpusWithWg checks whether wg and wg-quick understand each file of the corpus as the first line of its .want file says. It
// compares the device's configuration with the one that `wg-quick strip | wg setconf` makes, and the settings of wg-quick with
// those that wg-quick's own parser reads.
func TestCorpusWithWg(t *testing.T) {
	d := newDevice(t)
	program, err := exec.LookPath("wg-quick")
	if err != nil {
		t.Skip("needs wg-quick: install wireguard-tools")
	}
	names := corpus(t)
	for i, q := range runQuick(t, program, names) {
		name := names[i]
		ours, theirs := outcome(name), d.outcome(name, q)
		verdict := sameAsWg
		switch {
		case strings.HasPrefix(theirs, "error: "):
			verdict = refused
		case theirs != ours:
			verdict = differs
		}
		want := strings.TrimSuffix(name, ".conf") + ".want"
		if *update {
			if err := os.WriteFile(want, []byte(verdict+"\n"+ours), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(want)
		if err != nil {
			t.Fatal(err)
		}
		if first, _, _ := strings.Cut(string(text), "\n"); first != verdict {
			t.Errorf("%s: the verdict is '%s', want '%s'\nwg understands the file as\n%s\nthis package understands it as\n%s", name, verdict, first, theirs, ours)
		}
	}
}

var exampleName = regexp.MustCompile(`[a-z0-9.-]+\.example\b`)

// A quick is what wg-quick reads from a file.
type quick struct {
	stripped string // what `wg-quick strip` prints
	values   map[string][]string
	refused  bool
}

// runQuick runs the parser of wg-quick on the files, in one process.
func runQuick(t *testing.T, program string, names []string) (out []quick) {
	t.Helper()
	script, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	_, parser, begins := bytes.Cut(script, []byte("\nWG_CONFIG="))
	parser, _, ends := bytes.Cut(parser, []byte("\nauto_su() {"))
	if !begins || !ends {
		t.Skip("needs a wg-quick whose parser this test can find")
	}
	args := []string{"-c", "shopt -s extglob; WG_CONFIG=" + string(parser) + `
show() { local key="$1" v; shift; for v in "$@"; do printf "%s\n%s\n" "$key" "$v"; done; }
for f; do
	(
		parse_options "$f"
		show Address "${ADDRESSES[@]}"; show DNS "${DNS[@]}"; show Search "${DNS_SEARCH[@]}"
		show MTU "$MTU"; show Table "$TABLE"; show SaveConfig "$SAVE_CONFIG"
		show PreUp "${PRE_UP[@]}"; show PostUp "${POST_UP[@]}"; show PreDown "${PRE_DOWN[@]}"; show PostDown "${POST_DOWN[@]}"
		printf "stripped\n%s" "$WG_CONFIG"
	) || printf refused
	printf "\0"
done`, program}
	dir := t.TempDir()
	for i, name := range names { // gives each file a short name, because wg-quick limits the length of names
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, fmt.Sprintf("c%d.conf", i))
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	said, err := exec.Command("bash", args...).Output()
	parts := strings.Split(string(said), "\x00")
	if err != nil || len(parts) != len(names)+1 {
		t.Fatalf("wg-quick's parser returned error %v and %d answers for %d files", err, len(parts)-1, len(names))
	}
	for _, part := range parts[:len(names)] {
		q := quick{values: make(map[string][]string), refused: strings.HasSuffix(part, "refused")}
		for part != "" && !q.refused {
			key, rest, _ := strings.Cut(part, "\n")
			if key == "stripped" {
				q.stripped = rest
				break
			}
			value, rest, _ := strings.Cut(rest, "\n")
			q.values[key] = append(q.values[key], inOurWords(key, value))
			part = rest
		}
		out = append(out, q)
	}
	return out
}

// outcome describes how wg-quick and wg understand a file, in the format of the function outcome.
func (d *device) outcome(name string, q quick) string {
	d.Helper()
	if q.refused {
		return "error: wg-quick\n"
	}
	setconf := filepath.Join(d.TempDir(), "stripped")
	if err := os.WriteFile(setconf, []byte(exampleName.ReplaceAllString(q.stripped, someAddress.String())), 0o600); err != nil {
		d.Fatal(err)
	}
	if out, err := exec.Command("wg", "setconf", d.iface, setconf).CombinedOutput(); err != nil {
		return fmt.Sprintf("error: wg: %s\n", out)
	}
	device, err := describe(d.showconf())
	if err != nil {
		d.Fatalf("%s: Config refused the output of wg showconf: %v", name, err)
	}
	return device + quickText(q.values)
}

// inOurWords returns a value of wg-quick in the spelling of this package.
func inOurWords(key, value string) string {
	switch key {
	case "Address":
		if p, err := netip.ParsePrefix(value); err == nil {
			return p.String()
		}
		if a, err := netip.ParseAddr(value); err == nil {
			return netip.PrefixFrom(a, a.BitLen()).String()
		}
	case "DNS":
		if a, err := netip.ParseAddr(value); err == nil {
			return a.String()
		}
	case "SaveConfig":
		return map[string]string{"0": "false", "1": "true"}[value]
	case "Table":
		if strings.EqualFold(value, conf.TableAuto) || strings.EqualFold(value, conf.TableOff) {
			return strings.ToLower(value)
		}
	}
	return value
}
