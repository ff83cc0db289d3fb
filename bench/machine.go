package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// residentBytes returns a value of /proc/self/status in bytes. The name VmRSS means this process's memory in RAM now, and VmHWM
// means the peak of that memory.
func residentBytes(name string) (float64, error) {
	line, ok := lineOf("/proc/self/status", name)
	kib, err := strconv.ParseFloat(strings.TrimSuffix(line, " kB"), 64)
	if !ok || err != nil {
		return 0, errors.New("cannot read resident memory from /proc/self/status; run this name on Linux")
	}
	return kib * 1024, nil
}

// lineOf returns the text after "name:" in a file.
func lineOf(file, name string) (value string, ok bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(text)) {
		if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == name {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

// printMachine prints what the figures depend on: the machine, the Go version, and the versions of the libraries.
func printMachine(w io.Writer) {
	model, ok := lineOf("/proc/cpuinfo", "model name")
	if !ok {
		model = runtime.GOARCH
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = nil
	}
	fmt.Fprintf(w, "machine   %s, %d cores, %s %s\n", model, runtime.NumCPU(), runtime.GOOS, strings.TrimSpace(string(kernel)))
	fmt.Fprintf(w, "go        %s %s/%s, GOMAXPROCS %d\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0))
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			version = s.Value
		}
	}
	fmt.Fprintf(w, "ours      %s %s\n", info.Main.Path, version)
	for _, m := range info.Deps {
		switch m.Path {
		case "golang.zx2c4.com/wireguard", "gvisor.dev/gvisor", "golang.org/x/crypto", "github.com/cloudflare/circl":
			fmt.Fprintf(w, "          %s %s\n", m.Path, m.Version)
		}
	}
}
