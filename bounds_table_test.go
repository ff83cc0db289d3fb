package wireguard_test

import (
	"errors"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// constantsOf returns the values of the integer constants that the package in dir declares without using another package. It
// reads the files of all operating systems. If a name is declared several times, the first declaration counts.
func constantsOf(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	config := types.Config{Importer: noImporter{}, Error: func(error) {}, IgnoreFuncBodies: true}
	pkg, _ := config.Check(dir, fset, files, nil) // the error is expected: config has no importer
	all := make(map[string]int64)
	for _, name := range pkg.Scope().Names() {
		if c, ok := pkg.Scope().Lookup(name).(*types.Const); ok && c.Val().Kind() == constant.Int {
			all[name], _ = constant.Int64Val(c.Val())
		}
	}
	return all
}

type noImporter struct{}

func (noImporter) Import(string) (*types.Package, error) { return nil, errors.New("imports nothing") }

var (
	boundName   = regexp.MustCompile("^`(?:([a-z0-9]+)\\.)?(\\w+)`$")
	boundNumber = regexp.MustCompile(`^([0-9,]+)( KiB| MiB)?\b`)
	packageDirs = map[string]string{
		"": ".", "uapi": "uapi", "udp": "transport/udp", "tun": "transport/tun", "netstack": "transport/netstack",
		"pipe": "transport/pipe", "wgo": "transport/wgo", "page": "observe/page",
		"errorlimit": "internal/errorlimit", "inbox": "internal/inbox", "backlog": "internal/backlog", "staged": "internal/staged", "ratelimit": "internal/ratelimit",
	}
)

// wantBound asserts that the text limit begins with the value of the constant called name. The map packages is a cache: it has
// the constants of each package that was needed so far.
func wantBound(t *testing.T, packages map[string]map[string]int64, what, limit, name string) {
	t.Helper()
	m := boundName.FindStringSubmatch(name)
	if m == nil {
		t.Errorf("%s: %q is not the name of a constant", what, name)
		return
	}
	dir, known := packageDirs[m[1]]
	if !known {
		t.Errorf("%s: package %q is not known", what, m[1])
		return
	}
	if packages[dir] == nil {
		packages[dir] = constantsOf(t, dir)
	}
	value, found := packages[dir][m[2]]
	if !found {
		t.Errorf("%s: there is no constant %s in %s", what, m[2], dir)
		return
	}
	n := boundNumber.FindStringSubmatch(limit)
	if n == nil {
		t.Errorf("%s: the limit %q does not begin with a number", what, limit)
		return
	}
	written, err := strconv.ParseInt(strings.ReplaceAll(n[1], ",", ""), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	written <<= map[string]int{"": 0, " KiB": 10, " MiB": 20}[n[2]]
	if written != value {
		t.Errorf("%s: the table says %s, but %s is %d", what, limit, name, value)
	}
}

// TestBoundsAreTested checks each row of the table of bounds in ARCHITECTURE.md: the row's limit must be the value of its
// constant, no cell may be empty, and the row must name a test that exists.
func TestBoundsAreTested(t *testing.T) {
	testkit.ReadsSources(t)
	names, rows := testNames(t), tableRows(t, "| what is bounded |")
	if len(rows) < 30 {
		t.Fatalf("the table has %d rows, want at least 30", len(rows))
	}
	packages := make(map[string]map[string]int64)
	for _, cells := range rows {
		if len(cells) != 6 {
			t.Fatalf("%q has %d cells, want 6", cells, len(cells))
		}
		what := cells[0]
		wantBound(t, packages, what, cells[1], cells[2])
		if cells[3] == "" || cells[4] == "" {
			t.Errorf("%s: the cell of the column \"who can fill it\" or \"what others keep\" is empty", what)
		}
		tests := testName.FindAllStringSubmatch(cells[5], -1)
		if len(tests) == 0 {
			t.Errorf("%s: the row names no test", what)
		}
		for _, m := range tests {
			if !names[m[1]] {
				t.Errorf("%s: there is no test %s", what, m[1])
			}
		}
	}
}
