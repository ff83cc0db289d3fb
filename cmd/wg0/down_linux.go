package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// longestDown is how long takeDown waits for the daemon to stop.
const longestDown = 10 * time.Second

// takeDown carries out `wg0 down`. It works for any interface that has a control socket, whichever program made it.
func takeDown(target string) error {
	path, iface, err := findTarget(target)
	if err != nil {
		return err
	}
	t := &tunnelFile{host: host{iface: iface, out: os.Stderr}, path: path, file: new(conf.File)}
	_, statErr := os.Stat(path)
	switch {
	case statErr == nil:
		if t.file, err = readFile(path); err != nil {
			return err
		}
	case errors.Is(statErr, fs.ErrPermission):
		return notReadable(path)
	case !errors.Is(statErr, fs.ErrNotExist):
		return statErr
	case path != filepath.Join(configDirectory, iface+".conf"):
		return fmt.Errorf("%s does not exist; give the file that brought up %s, or the interface's name", path, iface)
	}
	now, err := readRunning(iface)
	if err != nil {
		return err
	}
	if statErr != nil {
		fmt.Fprintf(t.out, "wg0: %s does not exist; wg0 runs no hooks\n", path)
	}
	if table := t.file.Interface.Table; (table == "" || table == conf.TableAuto) && hasDefault(now) {
		t.mark = now.Interface.FwMark
	}
	if !mayAdminister() {
		return errors.New("deleting an interface needs the capability CAP_NET_ADMIN; run wg0 as root")
	}
	ctx := context.Background()
	if err := t.hooks(ctx, t.file.Interface.PreDown, nil); err != nil {
		return err
	}
	if t.file.Interface.SaveConfig {
		if err := t.save(iface); err != nil {
			return err
		}
	}
	t.cleanUp(ctx)
	if err := t.run(ctx, "", "ip", "link", "delete", "dev", iface); err != nil {
		return err
	}
	if err := waitGone(iface); err != nil {
		return err
	}
	return t.hooks(ctx, t.file.Interface.PostDown, nil)
}

// waitGone waits until the daemon has removed its control socket, which is the last thing that it does. It fails after longestDown.
func waitGone(iface string) error {
	for end := time.Now().Add(longestDown); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Lstat(socketPath(iface)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return fmt.Errorf("%s is deleted, but its daemon is still running; end the process that holds %s", iface, socketPath(iface))
}

func socketPath(iface string) string { return "/var/run/wireguard/" + iface + ".sock" }

// readRunning asks the daemon of an interface for its configuration.
func readRunning(iface string) (*conf.File, error) {
	c, err := net.DialTimeout("unix", socketPath(iface), longestDown)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("this user may not open the control socket of %s; run wg0 as root", iface)
	case err != nil:
		return nil, fmt.Errorf("%s is not up: no daemon answers at %s", iface, socketPath(iface))
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(longestDown))
	if _, err := io.WriteString(c, "get=1\n\n"); err != nil {
		return nil, fmt.Errorf("ask the daemon of %s: %w", iface, err)
	}
	f, err := parseRunning(c)
	if err != nil {
		return nil, fmt.Errorf("read the answer of the daemon of %s: %w", iface, err)
	}
	return f, nil
}

// parseRunning reads the answer to get=1.
func parseRunning(r io.Reader) (*conf.File, error) {
	f := new(conf.File)
	peer := new(conf.Peer)
	s := bufio.NewScanner(r)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), "=")
		var err error
		switch key {
		case "errno":
			if value != "0" {
				return nil, fmt.Errorf("the daemon reports error number %s", value)
			}
			return f, nil
		case "private_key":
			err = unhex(f.Interface.PrivateKey[:], value)
		case "listen_port":
			f.Interface.ListenPort = uint16(number(value, 16, &err))
		case "fwmark":
			f.Interface.FwMark = uint32(number(value, 32, &err))
		case "public_key":
			f.Peers = append(f.Peers, conf.Peer{})
			peer = &f.Peers[len(f.Peers)-1]
			err = unhex(peer.PublicKey[:], value)
		case "preshared_key":
			err = unhex(peer.PresharedKey[:], value)
		case "endpoint":
			peer.Endpoint, err = conf.ParseEndpoint(value)
		case "allowed_ip":
			var p netip.Prefix
			p, err = netip.ParsePrefix(value)
			peer.AllowedIPs = append(peer.AllowedIPs, p)
		case "persistent_keepalive_interval":
			peer.PersistentKeepalive = time.Duration(number(value, 16, &err)) * time.Second
		}
		if err != nil {
			return nil, fmt.Errorf("cannot parse the value of %s", key)
		}
	}
	return nil, errors.Join(s.Err(), io.ErrUnexpectedEOF)
}

func number(s string, bits int, err *error) (n uint64) {
	n, *err = strconv.ParseUint(s, 10, bits)
	return n
}

func unhex(key []byte, s string) error {
	b, err := hex.DecodeString(s)
	if err == nil && len(b) != len(key) {
		err = hex.ErrLength
	}
	copy(key, b)
	return err
}

// save writes the state of the interface to its file. It keeps comments, and each Endpoint that is a host name.
func (t *tunnelFile) save(iface string) error {
	now, err := readRunning(iface)
	if err != nil {
		return err
	}
	f, err := readFile(t.path)
	if err != nil {
		return err
	}
	merge(f, now)
	if link, err := net.InterfaceByName(iface); err == nil {
		if f.Interface.MTU != 0 {
			f.Interface.MTU = link.MTU
		}
		f.Interface.Addresses = sameOrder(f.Interface.Addresses, slices.DeleteFunc(slices.Concat(t.addresses(true), t.addresses(false)),
			func(p netip.Prefix) bool {
				return p.Addr().IsLinkLocalUnicast() && !slices.Contains(f.Interface.Addresses, p)
			}))
	}
	text, err := f.Text()
	if err != nil {
		return &fileError{t.path, err}
	}
	target, err := filepath.EvalSymlinks(t.path) // a rename onto t.path would replace a link, and leave its target as it was
	if err != nil {
		return fmt.Errorf("save %s: %w", t.path, err)
	}
	return replaceFile(target, text)
}

// merge copies the keys, the port and the peers of now, the running configuration, into f, the file.
func merge(f, now *conf.File) {
	to, from := &f.Interface, &now.Interface
	to.PrivateKey, to.ListenPort = from.PrivateKey, from.ListenPort
	if to.FwMark != 0 || !hasDefault(now) || to.Table != "" && to.Table != conf.TableAuto {
		to.FwMark = from.FwMark // otherwise addDefault chose the mark, and will choose again
	}
	peers := make(map[wireguard.PublicKey]*conf.Peer, len(now.Peers))
	for i := range now.Peers {
		peers[now.Peers[i].PublicKey] = &now.Peers[i]
	}
	seen := make(map[wireguard.PublicKey]bool, len(f.Peers))
	f.Peers = slices.DeleteFunc(f.Peers, func(p conf.Peer) bool { // of several [Peer] sections with one key, the first stays
		twice := seen[p.PublicKey]
		seen[p.PublicKey] = true
		return twice || peers[p.PublicKey] == nil
	})
	for i := range f.Peers {
		old := &f.Peers[i]
		p := peers[old.PublicKey]
		delete(peers, p.PublicKey)
		old.PresharedKey, old.PersistentKeepalive = p.PresharedKey, p.PersistentKeepalive
		old.AllowedIPs = sameOrder(old.AllowedIPs, p.AllowedIPs)
		old.RemoveAllowedIPs, old.Incremental = nil, false
		if _, isAddress := old.Endpoint.AddrPort(); len(old.MoreEndpoints) == 0 && (isAddress || old.Endpoint.IsZero()) && !p.Endpoint.IsZero() {
			old.Endpoint = p.Endpoint
		}
	}
	for _, p := range now.Peers {
		if peers[p.PublicKey] != nil {
			f.Peers = append(f.Peers, p)
		}
	}
}

// sameOrder returns the prefixes of the list now. Prefixes that the list old contains too come first, in the order and the
// spelling of old.
func sameOrder(old, now []netip.Prefix) (out []netip.Prefix) {
	left := slices.Clone(now)
	for _, p := range old {
		n := slices.IndexFunc(left, func(q netip.Prefix) bool { return q == p || q == p.Masked() })
		if n >= 0 {
			out, left = append(out, p), slices.Delete(left, n, n+1)
		}
	}
	return append(out, left...)
}

func hasDefault(f *conf.File) bool {
	return slices.ContainsFunc(f.Peers, func(p conf.Peer) bool {
		return slices.ContainsFunc(p.AllowedIPs, func(a netip.Prefix) bool { return a.Bits() == 0 })
	})
}

// replaceFile replaces a file atomically. Only the owner may read the new file.
func replaceFile(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".wg0-*") // mode 0600
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("save %s: %w", path, err)
		}
	}()
	if _, err = f.Write(text); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
