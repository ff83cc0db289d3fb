package wireguard

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The files of the core make the decisions of the protocol. They never lock, sleep, read a clock, start a goroutine, log or do
// I/O. The tests of this file check three rules for the core's files. They build without the rest of the package, so they cannot
// use anything from it. They import only the packages in coreImports. And they contain none of the statements that impure finds.

// coreImports lists all packages that a core file may import, including packages of this module. Most of them never lock, wait,
// read a clock or do I/O. Of a package that does, a core file may use only the names that are listed here.
var coreImports = map[string][]string{
	"bytes":                                 {"Compare"},
	"cmp":                                   nil,
	"crypto/cipher":                         {"AEAD"},
	"crypto/subtle":                         nil,
	"encoding/binary":                       {"LittleEndian", "BigEndian"}, // Read and Write do I/O
	"errors":                                nil,
	"iter":                                  nil,
	"net/netip":                             nil,
	"slices":                                nil,
	"sync/atomic":                           {"Pointer"},
	"github.com/cloudflare/circl/dh/x25519": {"Key", "KeyGen", "Shared"},
	"github.com/gaissmai/bart":              {"Table"},
	"github.com/seed-86b749af/wireguard/internal/noise":  nil,
	"github.com/seed-86b749af/wireguard/internal/owned":  nil,
	"github.com/seed-86b749af/wireguard/internal/staged": {"Queue"}, // Pool has a lock
	"golang.org/x/crypto/blake2s":                        nil,
	"golang.org/x/crypto/chacha20poly1305":               nil,
}

// coreFiles returns the names of the core's files, which the file .ci/core lists. It fails if the list lacks one of seven main
// files.
func coreFiles(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadFile(".ci/core")
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(list))
	for _, name := range []string{"allowedips", "cookie", "handshake", "keypair", "peer", "replay", "timers"} {
		if !slices.Contains(files, name+".go") {
			t.Fatalf(".ci/core does not name %s.go", name)
		}
	}
	return files
}

// impure returns all imports, names and statements in f that the core must not contain, each with its position.
func impure(fset *token.FileSet, f *ast.File) (found []string) {
	report := func(n ast.Node, format string, args ...any) {
		found = append(found, fmt.Sprintf("%v: %s", fset.Position(n.Pos()), fmt.Sprintf(format, args...)))
	}
	names := make(map[string][]string) // the names that f may use from each imported package
	for _, i := range f.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		allowed, ok := coreImports[path]
		if !ok || i.Name != nil {
			report(i, "imports %s", i.Path.Value)
			continue
		}
		names[path[strings.LastIndex(path, "/")+1:]] = allowed
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			report(n, "starts a goroutine")
		case *ast.SelectStmt:
			report(n, "selects")
		case *ast.SendStmt:
			report(n, "sends on a channel")
		case *ast.ChanType:
			report(n, "has a channel")
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				report(n, "receives from a channel")
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Obj == nil { // a package's name
				if allowed := names[x.Name]; allowed != nil && !slices.Contains(allowed, n.Sel.Name) {
					report(n, "uses %s.%s", x.Name, n.Sel.Name)
				}
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok {
				switch f.Name {
				case "panic":
					if arg, ok := n.Args[0].(*ast.Ident); !isConstant(n.Args[0]) && !(ok && arg.Name == "err") {
						report(n, "panics with more than a constant or err: it could show a secret")
					}
				case "print", "println", "close", "recover":
					report(n, "calls %s", f.Name)
				}
			}
		}
		return true
	})
	return found
}

func isConstant(e ast.Expr) bool {
	lit, ok := e.(*ast.BasicLit)
	return ok && lit.Kind == token.STRING
}

func TestCoreIsPure(t *testing.T) {
	for _, name := range coreFiles(t) {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range impure(fset, f) {
			t.Error(what)
		}
	}
}

// coreMutant is code that TestCoreBuildsAlone inserts at the beginning of the function expire. It calls functions of this package
// that read a clock, take a lock and set a socket option.
const coreMutant = `
	d := new(Device)
	for until := d.now() + 1000; d.now() < until; {
	}
	new(sessionTable).find(0)
	_ = setMark(nil, 1)
`

// TestCoreBuildsAlone builds a copy of the core's files without the rest of the package, and then a copy with coreMutant. The
// compiler must refuse coreMutant in the core alone, although it accepts coreMutant in the whole package.
func TestCoreBuildsAlone(t *testing.T) {
	files := coreFiles(t)
	if out, err := buildCopy(t, files, files, ""); err != nil {
		t.Fatalf("the core does not build alone: %v\n%s", err, out)
	}
	if out, err := buildCopy(t, []string{"."}, files, coreMutant); err != nil {
		t.Fatalf("the whole package does not build with coreMutant, so this test proves nothing: %v\n%s", err, out)
	}
	out, err := buildCopy(t, files, files, coreMutant)
	if err == nil {
		t.Fatal("the core builds alone although expire reads a clock, locks and sets a socket option")
	}
	for _, name := range []string{"Device", "sessionTable", "setMark"} {
		if !strings.Contains(out, "undefined: "+name) {
			t.Errorf("the compiler does not refuse %s:\n%s", name, out)
		}
	}
}

// buildCopy builds the files or packages that the parameter what lists. For the build, it replaces each file that the parameter
// files lists with a copy. In the copies, the function expire begins with the lines in the parameter expire.
func buildCopy(t *testing.T, what, files []string, expire string) (out string, err error) {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command")
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = make(map[string]string)
	dir, mutated := t.TempDir(), false
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		before, after, ok := strings.Cut(string(src), "expire(now int64, out *outbox) {")
		if ok {
			src, mutated = []byte(before+"expire(now int64, out *outbox) {"+expire+after), true
		}
		original, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		overlay.Replace[original] = filepath.Join(dir, name)
		if err := os.WriteFile(overlay.Replace[original], src, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !mutated {
		t.Fatal("no core file has the function expire")
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, list, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("go", append([]string{"build", "-overlay", path}, what...)...)
	command.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=")
	b, err := command.CombinedOutput()
	return string(b), err
}

// TestCoreIsPureSees checks that impure finds each statement that the core must not contain.
func TestCoreIsPureSees(t *testing.T) {
	for _, c := range []struct{ imports, body, want string }{
		{"os", "os.Exit(1)", `imports "os"`},
		{"net", "_ = net.ErrClosed", `imports "net"`},
		{"io", "_ = io.EOF", `imports "io"`},
		{"log/slog", "slog.Info(``)", `imports "log/slog"`},
		{"log", "log.Print()", `imports "log"`},
		{"fmt", "fmt.Println()", `imports "fmt"`},
		{"context", "_ = context.Background()", `imports "context"`},
		{"crypto/rand", "rand.Read(nil)", `imports "crypto/rand"`},
		{"math/rand", "rand.Int()", `imports "math/rand"`},
		{"runtime", "runtime.Gosched()", `imports "runtime"`},
		{"unsafe", "_ = unsafe.Pointer(nil)", `imports "unsafe"`},
		{"time", "time.Now()", `imports "time"`},
		{"sync", "var m sync.Mutex; m.Lock()", `imports "sync"`},
		{"github.com/seed-86b749af/wireguard/internal/boottime", "boottime.Clock{}.Now()", "imports"},
		{"sync/atomic", "_ = atomic.Pointer[int]{}; atomic.AddInt32(nil, 1)", "uses atomic.AddInt32"},
		{"encoding/binary", "binary.Read(nil, nil, nil)", "uses binary.Read"},
		{"", "go f()", "starts a goroutine"},
		{"", "c <- 1", "sends on a channel"},
		{"", "<-c", "receives from a channel"},
		{"", "select {}", "selects"},
		{"", "c := make(chan int)", "has a channel"},
		{"", "close(c)", "calls close"},
		{"", "println(1)", "calls println"},
		{"", "recover()", "calls recover"},
		{"", "panic(key)", "panics with more"},
		{"", "panic(`x` + y)", "panics with more"},
		{"", "panic(`x`); panic(err)", ""},
		{"encoding/binary", "_ = binary.LittleEndian.Uint32(nil)", ""},
	} {
		src := "package p\n"
		if c.imports != "" {
			src += "import \"" + c.imports + "\"\n"
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "p.go", src+"func f() { "+c.body+" }", 0)
		if err != nil {
			t.Fatalf("%s: %v", c.body, err)
		}
		found := impure(fset, f)
		if c.want == "" && len(found) != 0 || c.want != "" && (len(found) == 0 || !strings.Contains(found[0], c.want)) {
			t.Errorf("%s %q: found %q, want %q", c.imports, c.body, found, c.want)
		}
	}
}
