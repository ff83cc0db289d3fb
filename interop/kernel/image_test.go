//go:build linux

package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// initScript is the program of the machine's first process. It loads the kernel modules, and then runs the scripts that arrive on
// the virtio port. Each line that arrives on the port is one script: its number, its time limit in seconds, and its text in base64.
// The process writes the script's output to the port, and after it the line "=== NUMBER STATUS".
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t debugfs debug /sys/kernel/debug
while read -r m; do insmod /modules/$m; done </modules/order
ip link set lo up
echo 'module wireguard +p' >/sys/kernel/debug/dynamic_debug/control
until [ -e /dev/vport*p1 ]; do usleep 10000; done
port=$(echo /dev/vport*p1)
exec 3<>$port
echo '=== 0 0' >&3
while read -r number seconds script; do
	echo "$script" | base64 -d >/tmp/script
	timeout -s KILL "$seconds" sh /tmp/script </dev/null >&3 2>&1
	printf '\n=== %s %s\n' "$number" $? >&3
done <&3
`

// tools are the programs of the host that are copied into the image besides busybox.
var tools = []string{"wg", "ip", "iperf3"}

// An image is a kernel and an initramfs, which a machine boots.
type image struct {
	qemu, vmlinuz string // paths
	initramfs     []byte
}

// makeImage finds the programs and the kernel, and builds the initramfs. If something is missing, the error begins with "needs ".
func makeImage() (*image, error) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "386" {
		return nil, errors.New("needs an amd64 host: the machine runs the host's programs")
	}
	dir, err := kernelDir()
	if err != nil {
		return nil, err
	}
	kernels, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(kernels) == 0 {
		return nil, fmt.Errorf("needs a kernel: %s/boot has none; run interop/kernel/fetch.sh to get one", dir)
	}
	i := &image{vmlinuz: kernels[len(kernels)-1]}
	if i.qemu, err = program("qemu-system-x86_64"); err != nil {
		return nil, err
	}
	release := strings.TrimPrefix(filepath.Base(i.vmlinuz), "vmlinuz-")
	a := newArchive()
	for _, d := range []string{"dev", "proc", "sys", "tmp", "etc"} {
		a.dir(d)
	}
	a.add("init", 0o755, []byte(initScript))
	if err := addPrograms(a); err != nil {
		return nil, err
	}
	if err := addModules(a, filepath.Join(dir, "lib", "modules", release, "kernel"), "virtio_pci", "virtio_console", "virtio_net", "wireguard"); err != nil {
		return nil, err
	}
	i.initramfs = a.close()
	return i, nil
}

func kernelDir() (string, error) {
	if dir := os.Getenv("WIREGUARD_TEST_KERNEL"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("needs WIREGUARD_TEST_KERNEL: %w", err)
	}
	return filepath.Join(cache, "wireguard-test-kernel"), nil
}

// program returns the path of a program. It also searches folders that usually only root has in its path.
func program(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, d := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(d, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("needs %s: not found", name)
}

// addPrograms adds busybox and the tools, with the libraries that ldd lists for them.
func addPrograms(a *archive) error {
	busybox, err := program("busybox")
	if err != nil {
		return err
	}
	if f, err := elf.Open(busybox); err != nil {
		return err
	} else if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		return fmt.Errorf("needs a static busybox: %s loads %v (%v)", busybox, libs, err)
	}
	if err := a.copy("bin/busybox", busybox); err != nil {
		return err
	}
	library := regexp.MustCompile(`/\S+`)
	for _, name := range tools {
		p, err := program(name)
		if err != nil {
			return err
		}
		// The tools are in /host and not in /bin, because busybox installs its own ip in /bin.
		if err := a.copy("host/"+name, p); err != nil {
			return err
		}
		out, err := exec.Command("ldd", p).Output()
		if err != nil {
			return fmt.Errorf("needs ldd, which fails for %s: %w", p, err)
		}
		for _, l := range library.FindAllString(string(out), -1) {
			if err := a.copy(strings.TrimPrefix(l, "/"), l); err != nil {
				return err
			}
		}
	}
	return nil
}

// addModules adds the named kernel modules, the modules on which they depend, and a file with the order in which to load all of
// them.
func addModules(a *archive, dir string, names ...string) error {
	paths := make(map[string]string) // indexed by the module's name
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(p), ".ko"); ok {
			paths[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("needs the kernel's modules: %w", err)
	}
	var order []string
	done := make(map[string]bool)
	var add func(string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		p := paths[name]
		if done[name] || p == "" { // a module without a file is built into the kernel
			return nil
		}
		done[name] = true
		b, depends, err := readModule(p)
		if err != nil {
			return err
		}
		for _, d := range depends {
			if err := add(d); err != nil {
				return err
			}
		}
		a.add("modules/"+name+".ko", 0o644, b)
		order = append(order, name+".ko\n")
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return err
		}
	}
	a.add("modules/order", 0o644, []byte(strings.Join(order, "")))
	return nil
}

// readModule returns a module, uncompressed, and the names of the modules on which it depends.
func readModule(path string) (b []byte, depends []string, err error) {
	if strings.HasSuffix(path, ".xz") {
		b, err = exec.Command("xz", "-dc", path).Output()
	} else {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("needs to read %s: %w", path, err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	info, err := f.Section(".modinfo").Data()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, s := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(s, "depends="); ok && list != "" {
			depends = strings.Split(list, ",")
		}
	}
	return b, depends, nil
}

// An archive is a cpio file in the format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	b    bytes.Buffer
	seen map[string]bool
}

func newArchive() *archive { return &archive{seen: make(map[string]bool)} }

// dir adds a folder and its parents, each only once.
func (a *archive) dir(name string) {
	if name == "." || a.seen[name] {
		return
	}
	a.dir(filepath.Dir(name))
	a.entry(name, 0o040755, nil)
}

func (a *archive) add(name string, mode uint32, data []byte) {
	if a.seen[name] {
		return
	}
	a.dir(filepath.Dir(name))
	a.entry(name, 0o100000|mode, data)
}

func (a *archive) copy(name, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.add(name, 0o755, b)
	return nil
}

func (a *archive) entry(name string, mode uint32, data []byte) {
	a.seen[name] = true
	fmt.Fprintf(&a.b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		len(a.seen), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.b.WriteString(name)
	a.b.WriteByte(0)
	a.pad()
	a.b.Write(data)
	a.pad()
}

func (a *archive) pad() { a.b.Write(make([]byte, -a.b.Len()&3)) }

func (a *archive) close() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.b.Bytes()
}
