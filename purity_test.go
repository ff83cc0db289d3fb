package wireguard

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// coreFiles decide, and do nothing else: "core files never lock, sleep, read a clock, start a goroutine, log or do I/O".
var coreFiles = []string{"allowedips.go", "cookie.go", "handshake.go", "keypair.go", "peer.go", "replay.go", "timers.go"}

// coreImports is all that a core file may import, and of packages that can do more, the names it may use.
var coreImports = map[string][]string{
	"crypto/cipher":                         {"AEAD"},
	"crypto/subtle":                         nil,
	"encoding/binary":                       {"LittleEndian", "BigEndian"}, // Read and Write do I/O
	"errors":                                nil,
	"hash":                                  nil,
	"net/netip":                             nil,
	"slices":                                nil,
	"sync":                                  {"Mutex", "Cond"}, // fields that the shell locks and waits on
	"sync/atomic":                           {"Pointer"},
	"time":                                  {"Time", "Duration", "Second"},
	"github.com/cloudflare/circl/dh/x25519": {"Key", "KeyGen", "Shared"},
	"github.com/gaissmai/bart":              {"Table"},
	"golang.org/x/crypto/blake2s":           nil,
	"golang.org/x/crypto/chacha20poly1305":  nil,
}

// coreSelectors are names that no core file may use, of whatever they are.
var coreSelectors = []string{
	"Lock", "Unlock", "RLock", "RUnlock", "TryLock", "TryRLock", "Wait", "Signal", "Broadcast", "Go",
	"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker",
	"Log", "LogAttrs", "Debug", "Info", "Warn", "Error", "Print", "Printf", "Println",
	"Listen", "Receive", "ReadPackets", "WritePackets", "Send",
}

// ownAfter is the one method of the package's own that is called like one of time's functions.
const ownAfter = "After" // Timestamp.After

// impure is what in a file is not allowed in the core, each with its line.
func impure(fset *token.FileSet, f *ast.File) (found []string) {
	report := func(n ast.Node, format string, args ...any) {
		found = append(found, fmt.Sprintf("%v: %s", fset.Position(n.Pos()), fmt.Sprintf(format, args...)))
	}
	names := make(map[string][]string) // of an imported package: what of it may be used
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
			} else if slices.Contains(coreSelectors, n.Sel.Name) && n.Sel.Name != ownAfter {
				report(n, "uses .%s", n.Sel.Name)
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
	for _, name := range coreFiles {
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

// TestCoreIsPureSees: the test above sees what it forbids.
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
		{"time", "time.Now()", "uses time.Now"},
		{"time", "time.Since(time.Time{})", "uses time.Since"},
		{"time", "time.Sleep(1)", "uses time.Sleep"},
		{"time", "time.NewTimer(1)", "uses time.NewTimer"},
		{"time", "f := time.After; f(1)", "uses time.After"},
		{"sync", "var m sync.RWMutex; _ = m", "uses sync.RWMutex"},
		{"sync", "var m sync.Mutex; m.Lock()", "uses .Lock"},
		{"", "p.mu.Lock()", "uses .Lock"},
		{"", "defer p.mu.Unlock()", "uses .Unlock"},
		{"", "p.device.clock.Now()", "uses .Now"},
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
		{"time", "_ = time.Second; t.After(u)", ""},
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

// rootFiles are the files of this package that are no tests, by all systems.
func rootFiles(t *testing.T) (fset *token.FileSet, files map[string]*ast.File) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("no files: %v", err)
	}
	fset, files = token.NewFileSet(), make(map[string]*ast.File)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		if files[name], err = parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			t.Fatal(err)
		}
	}
	return fset, files
}

// TestRootDependsOnLittle: no dependency of the root package on gVisor, on wireguard-go, or on the public packages beside it.
func TestRootDependsOnLittle(t *testing.T) {
	allowed := []string{"github.com/cloudflare/circl/dh/x25519", "github.com/gaissmai/bart", "golang.org/x/crypto/", "golang.org/x/sys/",
		"github.com/seed-86b749af/wireguard/internal/"}
	_, files := rootFiles(t)
	for name, f := range files {
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			if strings.Contains(path, ".") && !slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(path, a) }) {
				t.Errorf("%s imports %s", name, path)
			}
			if path == "unsafe" {
				t.Errorf("%s imports unsafe", name)
			}
		}
	}
}

// TestRootIsSmall: files under 500 lines, and `go` statements and finalizers that can be counted on two hands, or on none.
func TestRootIsSmall(t *testing.T) {
	_, files := rootFiles(t)
	goroutines := 0
	for name, f := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(src), "\n"); lines > 500 {
			t.Errorf("%s has %d lines", name, lines)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				goroutines++
			case *ast.SelectorExpr:
				if n.Sel.Name == "SetFinalizer" || n.Sel.Name == "AddCleanup" {
					t.Errorf("%s uses a finalizer", name)
				}
			case *ast.Comment:
				if strings.HasPrefix(n.Text, "//go:linkname") {
					t.Errorf("%s uses linkname", name)
				}
			}
			return true
		})
	}
	if goroutines > 10 {
		t.Errorf("goroutines start at %d places", goroutines)
	}
	for _, name := range coreFiles {
		if files[name] == nil {
			t.Errorf("%s is gone: the core's files keep their names", name)
		}
	}
}
