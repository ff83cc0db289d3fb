package conf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tool returns the path of a command of wireguard-tools.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s: install wireguard-tools", name)
	}
	return path
}

// TestAsSetconf checks that wg setconf and this package accept and refuse the same lines. wg reads the whole file before it finds
// out that the interface does not exist. So its error shows whether the file or only the interface is wrong.
func TestAsSetconf(t *testing.T) {
	wg := tool(t, "wg")
	const peer = "[Peer]\nPublicKey = " + publicText + "\n"
	cases := []string{
		"", "# c", "[Interface]\n", "[interface] # c\n", "[Inter face]\r\nListen Port = 1\r\n", "[Peers]\n", "; c\n[Interface]\n", "ListenPort = 1\n",
		"[Interface]\nListenPort\n", peer, "[Peer]\nAllowedIPs = 1.2.3.4\n", "[Interface]\n" + peer + "[Interface",
	}
	for _, l := range []string{
		"PrivateKey = " + privateText, "privatekey=" + privateText, "PrivateKey = " + privateText[1:], "PrivateKey = " + privateText[:43],
		"PrivateKey = " + privateText[:42] + "l=", "ListenPort = 1", "ListenPort = 0", "ListenPort = x", "ListenPort = 0x10", "ListenPort =",
		"FwMark = 0", "FwMark = oFF", "FwMark = 0xffffffff", "FwMark = 4294967295", "FwMark = 4294967296", "FwMark = 0x100000000", "FwMark = 010",
		"FwMark = 0X1", "FwMark = -1", "FwMark = 0x", "FwMark = on", "PrivateKey = " + privateText + "; c", "PrivateKey = " + privateText + " # c",
	} {
		cases = append(cases, "[Interface]\n"+l+"\n")
	}
	for _, l := range []string{
		"PublicKey = " + publicText[1:], "PresharedKey = " + pskText, "PresharedKey = x", "AllowedIPs = 10.0.0.0/8", "AllowedIPs = 10.0.0.1",
		"AllowedIPs = 10.0.0.0/8,::/0 , 1.2.3.4", "AllowedIPs = 10.0.0.0/33", "AllowedIPs = ::/129", "AllowedIPs = 10.0.0.0/8,", "AllowedIPs = ,",
		"AllowedIPs = 10.0.0.0/", "AllowedIPs = 10.0.0/8", "AllowedIPs = fe80::1%lo/64", "AllowedIPs = host", "AllowedIPs = 10.0.0.0/8 10.1.0.0/16",
		"AllowedIPs = 10.0.0.0/+8", "allowed ips = 1.2.3.4 / 3 2", "AllowedIPs = 010.0.0.0/8",
		"Endpoint = 192.0.2.1:1", "Endpoint = [2001:db8::1]:1", "Endpoint = fe80::1:51820", "Endpoint = 192.0.2.1", "Endpoint = [2001:db8::1]", "Endpoint = :1",
		"Endpoint = 192.0.2.1:", "Endpoint =", "Endpoint = [2001:db8::1:1",
		"PersistentKeepalive = 1", "PersistentKeepalive = 0", "PersistentKeepalive = OFF", "PersistentKeepalive = 65535", "PersistentKeepalive = 65536",
		"PersistentKeepalive = 0x1", "PersistentKeepalive = -1", "PersistentKeepalive = 1s",
	} {
		cases = append(cases, peer+l+"\n")
	}
	file := filepath.Join(t.TempDir(), "x.conf")
	for _, text := range cases {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(wg, "setconf", "nosuchwg", file).CombinedOutput()
		if err == nil {
			t.Fatal("wg setconf succeeded, although no interface nosuchwg should exist")
		}
		refused := bytes.Contains(out, []byte("Configuration parsing error")) || bytes.Contains(out, []byte("Invalid configuration"))
		f, err := Parse([]byte(text))
		if err == nil {
			err = f.Validate()
		}
		if err == nil && len(f.Unknown()) > 0 {
			err = f.Unknown()[0]
		}
		if refused != (err != nil) {
			t.Errorf("%q: wg prints %q, but this package returns %v", text, out, err)
		}
	}
}

// TestAsStrip checks that wg-quick strip prints what Strip returns.
func TestAsStrip(t *testing.T) {
	quick := tool(t, "wg-quick")
	if os.Getuid() != 0 {
		t.Skip("needs root, which wg-quick requires")
	}
	file := filepath.Join(t.TempDir(), "wgstrip.conf")
	if err := os.WriteFile(file, []byte(full), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(quick, "strip", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	stripped, err := parse(t, full).Strip()
	if err != nil {
		t.Fatal(err)
	}
	// wg-quick removes the white space around each line, and adds an empty line at the end.
	trim := func(text []byte) (s string) {
		for l := range strings.Lines(strings.TrimRight(string(text), "\n")) {
			s += strings.TrimSpace(l) + "\n"
		}
		return s
	}
	if got := must(stripped.Text()); trim(got) != trim(out) {
		t.Errorf("Strip returned\n%s\nwant, as wg-quick strip prints,\n%s", got, out)
	}
}

// TestAsPubkey checks that wg pubkey computes the same public key as this package.
func TestAsPubkey(t *testing.T) {
	cmd := exec.Command(tool(t, "wg"), "pubkey")
	cmd.Stdin = strings.NewReader(privateText)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, full).Interface.PrivateKey.Public().String(); got != strings.TrimSpace(string(out)) {
		t.Errorf("the public key is %s, want %s as wg pubkey prints", got, out)
	}
}
