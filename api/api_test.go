// Package api holds the exported API of each package of this module that can be imported, as text, one name per line. Its test
// compares the text with the code, so that each change of the API is noticed:
//
//	go test ./api            # what differs
//	go test ./api -update    # writes the files
//
// A file is named after its package: transport_udp.txt has the API of transport/udp, and wireguard.txt has the API of the
// module's root package.
package api

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/seed-86b749af/wireguard"

var update = flag.Bool("update", false, "write the files")

// systems are the operating systems for which TestAPI compares the exported names of the module. The files contain the API on the
// first of them, and the names that the others lack or add.
var systems = [][2]string{
	{"linux", "amd64"}, {"android", "arm64"}, {"darwin", "arm64"}, {"windows", "amd64"}, {"freebsd", "amd64"}, {"openbsd", "amd64"}, {"js", "wasm"},
}

// TestAPI checks that the files match the code.
func TestAPI(t *testing.T) {
	want := make(map[string][]string) // the lines of each file
	for path, pkg := range load(t) {
		if lines := exported(pkg); len(lines) > 0 {
			lines = append(lines, differences(t, filepath.Join("..", strings.TrimPrefix(path, module)))...)
			want[fileOf(path)] = lines
		}
	}
	if len(want) < 8 || want["wireguard.txt"] == nil {
		t.Fatalf("only %d packages: %v", len(want), slices.Sorted(maps.Keys(want)))
	}
	have, err := filepath.Glob("*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range have {
		if want[file] == nil && !*update {
			t.Errorf("%s: the package is gone", file)
		} else if want[file] == nil {
			os.Remove(file)
		}
	}
	for file, lines := range want {
		text := strings.Join(lines, "\n") + "\n"
		if *update {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		old, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if diff := compare(strings.Split(strings.TrimSuffix(string(old), "\n"), "\n"), lines); diff != "" {
			t.Errorf("api/%s is not what the code exports:\n%s", file, diff)
		}
	}
	if t.Failed() {
		t.Log("Is the change of the API meant? Then write the files by go test ./api -update, and a line for CHANGELOG.md.")
	}
}

// fileOf returns the name of a package's file.
func fileOf(path string) string {
	path = strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
	if path == "" {
		path = "wireguard"
	}
	return strings.ReplaceAll(path, "/", "_") + ".txt"
}

// load returns the packages that can be imported, by their import paths. It reads the compiler's export data.
func load(t *testing.T) map[string]*types.Package {
	t.Helper()
	var ours []string
	for _, f := range list(t, "{{.ImportPath}}\t{{.Name}}\t{{len .GoFiles}}", "./...") {
		if path, name := f[0], f[1]; name != "main" && f[2] != "0" && !slices.Contains(strings.Split(path, "/"), "internal") {
			ours = append(ours, path)
		}
	}
	files := make(map[string]string)
	for _, f := range list(t, "{{.ImportPath}}\t{{.Export}}", append([]string{"-export", "-deps"}, ours...)...) {
		files[f[0]] = f[1]
	}
	imp := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(files[path]) })
	pkgs := make(map[string]*types.Package)
	for _, path := range ours {
		pkg, err := imp.Import(path)
		if err != nil {
			t.Fatal(err)
		}
		pkgs[path] = pkg
	}
	return pkgs
}

// list returns the fields of each line that go list prints for the first system.
func list(t *testing.T, format string, args ...string) (lines [][]string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-f", format}, args...)...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOOS="+systems[0][0], "GOARCH="+systems[0][1])
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &complaints)
	}
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	return lines
}

// exported returns a line for each constant, variable, function, type, field and method that a package exports, sorted.
func exported(pkg *types.Package) (lines []string) {
	w := writer{pkg: pkg}
	for _, name := range pkg.Scope().Names() {
		if token.IsExported(name) {
			w.object(pkg.Scope().Lookup(name))
		}
	}
	slices.Sort(w.lines)
	return w.lines
}

type writer struct {
	pkg   *types.Package
	lines []string
}

func (w *writer) add(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

// typ returns the text of a type. The name of a type of another package has the package's name in front, and parameters have no
// names.
func (w *writer) typ(t types.Type) string {
	return types.TypeString(nameless(t), func(p *types.Package) string {
		if p == w.pkg {
			return ""
		}
		return p.Name()
	})
}

// signature returns the text of a function's type without the word func.
func (w *writer) signature(t types.Type) string { return strings.TrimPrefix(w.typ(t), "func") }

// nameless returns t without the names of parameters.
func nameless(t types.Type) types.Type {
	switch t := t.(type) {
	case *types.Signature:
		tuple := func(vs *types.Tuple) *types.Tuple {
			var out []*types.Var
			for v := range vs.Variables() {
				out = append(out, types.NewParam(token.NoPos, nil, "", nameless(v.Type())))
			}
			return types.NewTuple(out...)
		}
		return types.NewSignatureType(nil, nil, nil, tuple(t.Params()), tuple(t.Results()), t.Variadic())
	case *types.Pointer:
		return types.NewPointer(nameless(t.Elem()))
	case *types.Slice:
		return types.NewSlice(nameless(t.Elem()))
	case *types.Chan:
		return types.NewChan(t.Dir(), nameless(t.Elem()))
	case *types.Map:
		return types.NewMap(nameless(t.Key()), nameless(t.Elem()))
	}
	return t
}

func (w *writer) object(o types.Object) {
	switch o := o.(type) {
	case *types.Const:
		w.add("const %s %s = %s", o.Name(), w.typ(o.Type()), o.Val().ExactString())
	case *types.Var:
		w.add("var %s %s", o.Name(), w.typ(o.Type()))
	case *types.Func:
		w.add("func %s%s", o.Name(), w.signature(o.Type()))
	case *types.TypeName:
		if o.IsAlias() {
			w.add("type %s = %s", o.Name(), w.typ(types.Unalias(o.Type())))
		} else {
			w.named(o.Name(), o.Type().(*types.Named))
		}
	}
}

func (w *writer) named(name string, t *types.Named) {
	switch u := t.Underlying().(type) {
	case *types.Struct:
		w.fields(name, t, u)
	case *types.Interface:
		w.interfaceMethods(name, u)
		return
	default:
		w.add("type %s %s", name, w.typ(u))
	}
	byValue := types.NewMethodSet(t)
	for m := range types.NewMethodSet(types.NewPointer(t)).Methods() {
		star := "*"
		if byValue.Lookup(w.pkg, m.Obj().Name()) != nil {
			star = ""
		}
		if m.Obj().Exported() {
			w.add("method (%s%s) %s%s", star, name, m.Obj().Name(), w.signature(m.Type()))
		}
	}
}

// fields adds a line for each field, and one for the struct. The line for the struct says whether it has unexported fields. If it
// has none, the line says whether == can compare it.
func (w *writer) fields(name string, t types.Type, u *types.Struct) {
	trait := ""
	if types.Comparable(t) {
		trait = " (comparable)"
	}
	for f := range u.Fields() {
		switch {
		case !f.Exported():
			trait = " (unexported fields)"
		case f.Embedded():
			w.add("type %s struct, embedded %s", name, w.typ(f.Type()))
		default:
			w.add("type %s struct, %s %s", name, f.Name(), w.typ(f.Type()))
		}
	}
	w.add("type %s struct%s", name, trait)
}

func (w *writer) interfaceMethods(name string, u *types.Interface) {
	var names []string
	for m := range u.Methods() {
		names = append(names, m.Name())
		if m.Exported() {
			w.add("type %s interface, %s%s", name, m.Name(), w.signature(m.Type()))
		}
	}
	w.add("type %s interface { %s }", name, strings.Join(names, ", "))
}

// differences returns a line for each name that another system lacks or adds.
func differences(t *testing.T, dir string) (lines []string) {
	t.Helper()
	base := names(t, dir, systems[0])
	for _, system := range systems[1:] {
		other := names(t, dir, system)
		for _, name := range slices.Sorted(maps.Keys(base)) {
			if !other[name] {
				lines = append(lines, fmt.Sprintf("%s/%s lacks %s", system[0], system[1], name))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(other)) {
			if !base[name] {
				lines = append(lines, fmt.Sprintf("%s/%s adds %s", system[0], system[1], name))
			}
		}
	}
	return lines
}

// names returns what the files of a folder export on a system.
func names(t *testing.T, dir string, system [2]string) map[string]bool {
	t.Helper()
	c := build.Default
	c.GOOS, c.GOARCH, c.CgoEnabled = system[0], system[1], false
	p, err := c.ImportDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, file := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, file), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			declared(d, func(name string) { found[name] = true })
		}
	}
	return found
}

// declared calls the function found with each name that a declaration exports. A method has the name of its type in front.
func declared(d ast.Decl, found func(name string)) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		name := d.Name.Name
		if d.Recv != nil {
			of := strings.TrimLeft(types.ExprString(d.Recv.List[0].Type), "*")
			if !token.IsExported(of) {
				return
			}
			name = of + "." + name
		}
		if d.Name.IsExported() {
			found(name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					found(s.Name.Name)
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() {
						found(n.Name)
					}
				}
			}
		}
	}
}

// compare returns the lines that only one of two lists has, sorted, with - or + in front.
func compare(old, lines []string) string {
	var out []string
	for _, l := range old {
		if l != "" && !slices.Contains(lines, l) {
			out = append(out, "-"+l)
		}
	}
	for _, l := range lines {
		if !slices.Contains(old, l) {
			out = append(out, "+"+l)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(a[1:], b[1:]) })
	return strings.Join(out, "\n")
}

// TestExported checks that the lines contain everything that a program can name, and no names of parameters.
func TestExported(t *testing.T) {
	const src = `package p
import "io"
const ( A uint8 = iota; B; c )
const S = "x"
var V, v []byte
type T struct { F, g int; io.Reader; Call func(name string, more ...int) (ok bool) }
type U struct { N [2]int }
type E struct { *h }
type h struct { X int }
func (h) M(a, b int) (n int, err error) { return }
func (*T) P() {}
func (T) q() {}
type I interface { N(b []byte) I; o() }
type L = U
type K uint32
func (k K) String() string { return "" }
func G(f func(x int), c <-chan int, m map[string]*T, more ...K) {}
func hidden() {}
`
	want := []string{
		"const A uint8 = 0", "const B uint8 = 1", `const S untyped string = "x"`,
		"func G(func(int), <-chan int, map[string]*T, ...K)",
		"method (*T) P()", "method (E) M(int, int) (int, error)", "method (K) String() string", "method (T) Read([]byte) (int, error)",
		"type E struct (unexported fields)", "type I interface { N, o }", "type I interface, N([]byte) I", "type K uint32", "type L = U",
		"type T struct (unexported fields)", "type T struct, Call func(string, ...int) bool", "type T struct, F int",
		"type T struct, embedded io.Reader", "type U struct (comparable)", "type U struct, N [2]int", "var V []byte",
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	conf := types.Config{Importer: importer.ForCompiler(fset, "source", nil)}
	pkg, err := conf.Check("p", fset, []*ast.File{f}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := compare(want, exported(pkg)); diff != "" {
		t.Errorf("the lines differ:\n%s", diff)
	}
	var found []string
	for _, d := range f.Decls {
		declared(d, func(name string) { found = append(found, name) })
	}
	if got, want := strings.Join(found, " "), "A B S V T U E T.P I L K K.String G"; got != want {
		t.Errorf("declared: %s, want %s", got, want)
	}
}
