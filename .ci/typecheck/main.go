// Command typecheck checks that every package of this module and its tests compile on other platforms. It reads the sources of
// these packages and of all packages that they import, including the standard library, and checks their types. It generates no
// code, so it needs only seconds per platform. With an empty cache, go build needs a minute.
//
//	go run ./.ci/typecheck linux/arm64 windows/amd64 js/wasm
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// source is the description of one package in the output of go list. In that output, the packages that a package imports precede
// the package itself.
type source struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	ImportMap  map[string]string // maps an import path in the source to the path of the imported package, if the two differ
	Module     *struct{ Main bool }
}

func main() {
	failed := false
	for _, platform := range os.Args[1:] {
		system, arch, ok := strings.Cut(platform, "/")
		if !ok {
			fmt.Fprintf(os.Stderr, "typecheck: %q is not a platform; write one as linux/arm64\n", platform)
			os.Exit(2)
		}
		checked, err := check(system, arch)
		if err != nil {
			failed = true
			fmt.Fprintf(os.Stderr, "%s:\n%v\n", platform, err)
			continue
		}
		fmt.Printf("%s: %d packages\n", platform, checked)
	}
	if failed {
		os.Exit(1)
	}
}

// check checks the module's packages and their tests for one platform. It returns the number of packages that it checked; a
// package with its tests counts separately.
func check(system, arch string) (checked int, err error) {
	list := exec.Command("go", "list", "-deps", "-test", "-json=ImportPath,Dir,GoFiles,ImportMap,Module", "./...")
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+arch)
	list.Stderr = os.Stderr
	out, err := list.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := list.Start(); err != nil {
		return 0, err
	}
	known := map[string]*types.Package{"unsafe": types.Unsafe}
	var faults []error
	for in := json.NewDecoder(out); ; {
		var p source
		if err := in.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return 0, err
		}
		if p.ImportPath == "unsafe" || strings.HasSuffix(p.ImportPath, ".test") {
			continue // this is the generated program that runs a package's tests
		}
		ours := p.Module != nil && p.Module.Main
		made, errs := p.check(known, arch, ours)
		known[p.ImportPath] = made
		if ours {
			checked++
			faults = append(faults, errs...)
		}
	}
	if err := list.Wait(); err != nil {
		return 0, fmt.Errorf("go list: %w", err)
	}
	if checked == 0 {
		return 0, errors.New("go list names no package of this module")
	}
	return checked, errors.Join(faults...)
}

// check checks one package. known contains the packages that were checked before. In packages of other modules, check skips the
// bodies of functions.
func (p *source) check(known map[string]*types.Package, arch string, ours bool) (*types.Package, []error) {
	var faults []error
	note := func(err error) { faults = append(faults, err) }
	files := token.NewFileSet()
	var parsed []*ast.File
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			note(err)
			continue
		}
		parsed = append(parsed, file)
	}
	config := types.Config{
		Importer:         importer{known, p.ImportMap},
		Sizes:            types.SizesFor("gc", arch),
		IgnoreFuncBodies: !ours,
		Error:            note,
	}
	path, _, _ := strings.Cut(p.ImportPath, " ") // "path [path.test]" is the package compiled together with its tests
	made, _ := config.Check(path, files, parsed, nil)
	return made, faults
}

// importer is a types.Importer that returns packages that were checked before.
type importer struct {
	known map[string]*types.Package
	names map[string]string
}

func (i importer) Import(path string) (*types.Package, error) {
	if name, ok := i.names[path]; ok {
		path = name
	}
	if p := i.known[path]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("package %s was not checked before", path)
}
