package wireguard

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// undocumented returns the exported names of a file that have no comment. It considers types, functions, methods of exported
// types and interfaces, constants and variables. A group of constants may have one comment, or one per line. If an interface has
// one method, its comment is also that of the method.
func undocumented(f *ast.File) (names []string) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc.Text() == "" && ofExported(d.Recv) {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				names = append(names, undocumentedSpec(d, s)...)
			}
		}
	}
	return names
}

func undocumentedSpec(d *ast.GenDecl, s ast.Spec) (names []string) {
	switch s := s.(type) {
	case *ast.TypeSpec:
		if !s.Name.IsExported() {
			return nil
		}
		if s.Doc.Text() == "" && (d.Lparen.IsValid() || d.Doc.Text() == "") {
			names = append(names, s.Name.Name)
		}
		if i, ok := s.Type.(*ast.InterfaceType); ok {
			methods := 0
			for _, m := range i.Methods.List {
				methods += len(m.Names)
			}
			for _, m := range i.Methods.List {
				for _, n := range m.Names {
					if methods > 1 && n.IsExported() && m.Doc.Text() == "" && m.Comment.Text() == "" {
						names = append(names, s.Name.Name+"."+n.Name)
					}
				}
			}
		}
	case *ast.ValueSpec:
		for _, n := range s.Names {
			if n.IsExported() && s.Doc.Text() == "" && s.Comment.Text() == "" && d.Doc.Text() == "" {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// undocumentedFields returns the exported fields of f's exported structs that have no comment. A field has a comment if the
// comment is directly above it or at the end of its line. A comment above an earlier field also counts if it names the field and
// there is no blank line between the two fields.
func undocumentedFields(fset *token.FileSet, f *ast.File) (names []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := spec.Type.(*ast.StructType); ok && spec.Name.IsExported() {
			group, end := "", 0 // the last comment above a field, and the last line of the fields below this comment so far
			for _, field := range s.Fields.List {
				if field.Doc != nil {
					group = field.Doc.Text()
				} else if fset.Position(field.Pos()).Line > end+1 {
					group = ""
				}
				end = fset.Position(field.End()).Line
				for _, name := range fieldNames(field) {
					named := regexp.MustCompile(`\b` + name + `\b`).MatchString(group)
					if token.IsExported(name) && field.Doc.Text() == "" && field.Comment.Text() == "" && !named {
						names = append(names, spec.Name.Name+"."+name)
					}
				}
			}
		}
		return false
	})
	return names
}

// fieldNames returns the names of a field. The name of an embedded field is the name of its type.
func fieldNames(field *ast.Field) (names []string) {
	for _, n := range field.Names {
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		names = append(names, typeName(field.Type))
	}
	return names
}

// ofExported reports whether recv is the receiver of an exported type. It also returns true if recv is nil, as it is for a
// function.
func ofExported(recv *ast.FieldList) bool {
	return recv == nil || ast.IsExported(typeName(recv.List[0].Type))
}

// typeName returns the name of a type without package, star and type parameters, or an empty string if the type has no name.
func typeName(t ast.Expr) string {
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.SelectorExpr:
			return x.Sel.Name
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// TestExportedNamesAreDocumented checks that every exported name and every exported field in the module has a comment, and that
// every package has one. It skips the internal packages.
func TestExportedNamesAreDocumented(t *testing.T) {
	testkit.ReadsSources(t)
	packages := make(map[string]bool) // whether the package in each folder has a package comment
	exported := 0
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			if base := e.Name(); path != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "internal") {
				return filepath.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if f.Name.Name == "main" {
			return nil
		}
		packages[filepath.Dir(path)] = packages[filepath.Dir(path)] || f.Doc.Text() != ""
		exported++
		for _, name := range undocumented(f) {
			t.Errorf("%s: %s has no comment", path, name)
		}
		for _, name := range undocumentedFields(fset, f) {
			t.Errorf("%s: %s has no comment", path, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, documented := range packages {
		if !documented {
			t.Errorf("%s: the package has no comment", dir)
		}
	}
	if !packages["."] || exported < 20 {
		t.Errorf("%d files were checked, want at least 20 and the package in the top folder", exported)
	}
}

// TestUndocumentedSees checks that undocumented finds the exported names that have no comment, and no others.
func TestUndocumentedSees(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"type T int", "T"},
		{"// T is.\ntype T int", ""},
		{"type t int\nfunc (t) M() {}", ""},
		{"// T is.\ntype T int\nfunc (*T) M() {}", "M"},
		{"// T is.\ntype T[P any] []P\nfunc (T[P]) M() {}", "M"},
		{"// G are.\ntype (\nT int\n)", "T"},
		{"// I is.\ntype I interface {\nM()\n}", ""},
		{"// I is.\ntype I interface {\n// M does.\nM()\nN()\n}", "I.N"},
		{"// I is.\ntype I interface {\nM() // does\nN() // too\n}", ""},
		{"func F() {}", "F"},
		{"func f() {}", ""},
		{"const C = 1", "C"},
		{"// C are.\nconst (\nC = 1\nD = 2\n)", ""},
		{"const (\nC = 1 // is one\nD = 2\n)", "D"},
		{"var v, V = 1, 2", "V"},
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "p.go", "package p\n"+c.src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(undocumented(f), " "); got != c.want {
			t.Errorf("%q: the undocumented names are %q, want %q", c.src, got, c.want)
		}
	}
}

// TestUndocumentedFieldsSees checks that undocumentedFields finds the fields that have no comment, and no others.
func TestUndocumentedFieldsSees(t *testing.T) {
	for _, c := range []struct{ fields, want string }{
		{"A int", "T.A"},
		{"a int", ""},
		{"A int // is one", ""},
		{"// A is one.\nA int", ""},
		{"A, B int", "T.A T.B"},
		{"// A is one.\nA int\nB int", "T.B"},
		{"// A is one, B another.\nA int\nB int", ""},
		{"// A is one, B another.\nA int\n\nB int", "T.B"},
		{"// A is one, C another.\nA int\nB int // too\nC int", ""},
		{"// A is one, C another.\nA int\n// B is.\nB int\nC int", "T.C"},
		{"*p.Embedded[int]\n", "T.Embedded"},
		{"p.Embedded // where", ""},
	} {
		for name, want := range map[string]string{"T": c.want, "t": ""} {
			fset := token.NewFileSet()
			src := "package p\ntype " + name + " struct {\n" + c.fields + "\n}\n"
			f, err := parser.ParseFile(fset, "p.go", src, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(undocumentedFields(fset, f), " "); got != want {
				t.Errorf("%q: the undocumented fields are %q, want %q", src, got, want)
			}
		}
	}
}

// TestReadmeUsage checks that the first Go code in README.md equals the marked part of the function Example, except for the
// indentation.
func TestReadmeUsage(t *testing.T) {
	_, usage, _ := strings.Cut(fileText(t, "README.md"), "```go\n")
	usage, _, _ = strings.Cut(usage, "```\n")
	_, example, _ := strings.Cut(fileText(t, "example_test.go"), "// README.md: from here\n")
	example, _, _ = strings.Cut(example, "\t// README.md: to here\n")
	if usage == "" || example == "" {
		t.Fatalf("README.md has %d bytes of Go code, and Example has %d, want more than 0 in both", len(usage), len(example))
	}
	example = strings.TrimPrefix(strings.ReplaceAll("\n"+example, "\n\t", "\n"), "\n")
	if usage != example {
		t.Errorf("README.md says\n%s\nbut example_test.go says\n%s", usage, example)
	}
}

// TestMapIsComplete checks that ARCHITECTURE.md names each file of this package and each folder that has a package. It ignores
// test files and the suffixes for platforms.
func TestMapIsComplete(t *testing.T) {
	text := fileText(t, "ARCHITECTURE.md")
	folders := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		switch base := e.Name(); {
		case err != nil:
			return err
		case e.IsDir():
			if path != "." && (strings.HasPrefix(base, ".") || base == "testdata") {
				return filepath.SkipDir
			}
		case !strings.HasSuffix(base, ".go"):
		case path != base:
			folders[filepath.ToSlash(filepath.Dir(path))] = true
		case !strings.HasSuffix(base, "_test.go"):
			stem, _, _ := strings.Cut(strings.TrimSuffix(base, ".go"), "_")
			file := stem + ".go"
			if !strings.Contains(text, "["+file+"]("+file+")") {
				t.Errorf("ARCHITECTURE.md does not name %s", file)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range folders {
		if !strings.Contains(text, "`"+dir+"`") {
			t.Errorf("ARCHITECTURE.md does not name %s", dir)
		}
	}
	if len(folders) < 10 {
		t.Errorf("%d folders were checked, want at least 10", len(folders))
	}
}

func fileText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
