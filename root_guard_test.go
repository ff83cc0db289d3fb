package wireguard

import (
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

// rootFiles parses the files of this package, for all operating systems and without tests, and returns them by name.
func rootFiles(t *testing.T) (fset *token.FileSet, files map[string]*ast.File) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("no Go files were found: %v", err)
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

// TestRootDependsOnLittle checks that the root package imports only a few other modules. It must not import gVisor, wireguard-go
// or the module's other public packages.
func TestRootDependsOnLittle(t *testing.T) {
	allowed := []string{"github.com/cloudflare/circl/dh/x25519", "github.com/gaissmai/bart", "golang.org/x/crypto/", "golang.org/x/sys/",
		"github.com/seed-86b749af/wireguard/internal/"}
	_, files := rootFiles(t)
	for name, f := range files {
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			if strings.Contains(path, ".") && !slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(path, a) }) {
				t.Errorf("%s imports %s, which is not in the list of allowed imports", name, path)
			}
			if path == "unsafe" {
				t.Errorf("%s imports unsafe, which the root package must not use", name)
			}
		}
	}
}

// TestRootIsSmall checks that each file of the root package has at most 500 lines, that the package starts goroutines in at most
// ten places, and that it uses neither finalizers nor linkname.
func TestRootIsSmall(t *testing.T) {
	_, files := rootFiles(t)
	goroutines := 0
	for name, f := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(src), "\n"); lines > 500 {
			t.Errorf("%s has %d lines, want at most 500", name, lines)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				goroutines++
			case *ast.SelectorExpr:
				if n.Sel.Name == "Go" { // the method of a sync.WaitGroup
					goroutines++
				}
				if n.Sel.Name == "SetFinalizer" || n.Sel.Name == "AddCleanup" {
					t.Errorf("%s uses a finalizer, want none in the root package", name)
				}
			case *ast.Comment:
				if strings.HasPrefix(n.Text, "//go:linkname") {
					t.Errorf("%s uses linkname, want none in the root package", name)
				}
			}
			return true
		})
	}
	if goroutines > 10 {
		t.Errorf("the root package starts goroutines at %d places, want at most 10", goroutines)
	}
}
