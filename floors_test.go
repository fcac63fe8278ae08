package holdfast_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// This file is the house rules: what may import what, where foreign libraries live, and a few habits. It reads the sources
// with go/parser, for every operating system at once.

const module = "github.com/holdfast-backup/holdfast"

// floors orders the packages: a package imports only packages on lower floors. A prefix ending in "/" covers all below it.
// A package that no entry covers fails the test, so that a new one gets its place here.
var floors = [][]string{
	{"", "internal/clock", "internal/direct"}, // the ground floor
	{"fsys", "nbd", "internal/cli", "internal/process", "ingest/wire", "ingest/chunk", "agent/hv", "agent/vhdx", "pools/seal", "tape/scsi"},
	{"kv", "ingest/wire/netem", "pools/blob", "pools/container", "agent/restore", "agent/transport", "mount", "tape/emu", "tape/conform", "tape/iscsi", "tape/sgio", "tape/drive", "tape/changer", "tape/stream"},
	{"pools", "pools/blob/dirstore", "pools/blob/s3store", "pools/blob/s3store/s3test", "pools/blob/blobtest", "pools/parity", "pools/sidecar", "catalog", "agent/lab", "tape/hft", "tape/ltfs", "tape/iscsi/tgttest", "tape/library"},
	{"pools/memory", "pools/dedup", "pools/standard", "pools/pooltest", "agent", "tape/care", "tape/media", "appliance/schedule", "appliance/retain", "appliance/notify", "appliance/site", "rescue"},
	{"ingest", "pools/object", "appliance/restore", "appliance/notify/notifytest", "pools/memory/memorytest", "tape/pool"}, // an object pool is a dedup pool over a bucket
	{"appliance/auth", "appliance/job"},
	{"appliance/api"},
	{"appliance"},
	{"internal/demo", "bench/vmgen"},
	{"cmd/", "bench/"},
}

// walls forbid imports that the floors would allow. A left side ending in "/" covers all below it.
var walls = []struct{ from, to, why string }{
	{"agent/", "pools", "the agent knows nothing of pools"},
	{"agent/", "catalog", "the agent knows nothing of the catalog"},
	{"agent/", "fsys", "the agent uses the host's files"},
	{"agent/", "kv", "the agent keeps no database"},
	{"rescue", "pools", "it reads what pools wrote by the documents alone"},
	{"rescue", "catalog", "it works when nothing else is left"},
	{"rescue", "ingest", "it works when nothing else is left"},
	{"catalog", "pools", "they meet in ingest"},
	{"pools/", "catalog", "they meet in ingest"},
	{"tape/", "catalog", "they meet in ingest"},
	{"tape/care", "pools", "pools look after their cartridges themselves"},
	{"cmd/holdfast", "pools", "the CLI speaks to the daemon's API"},
	{"cmd/holdfast", "catalog", "the CLI speaks to the daemon's API"},
	{"cmd/holdfast", "ingest", "the CLI speaks to the daemon's API"},
}

// homes gives each foreign library the packages that may import it.
var homes = map[string][]string{
	"github.com/cockroachdb/pebble":    {"kv"},
	"github.com/zeebo/blake3":          {""},
	"github.com/restic/chunker":        {"ingest/chunk"},
	"github.com/klauspost/compress":    {"ingest/chunk"},
	"github.com/cespare/xxhash":        {"ingest/chunk"},
	"github.com/minio/minio-go":        {"pools/blob/s3store"},
	"github.com/klauspost/reedsolomon": {"pools/parity", "pools/sidecar"},
	"golang.org/x/crypto":              {"pools/seal"},
	"github.com/microsoft/wmi":         {"agent/hyperv"},
	"golang.org/x/sys/windows":         {"agent/hyperv", "agent/hv", "agent/lab", "agent/vhdx", "fsys"},
	"golang.org/x/sys/unix":            {"internal/direct", "fsys", "agent/lab", "agent/vhdx", "tape/sgio"},
	"github.com/danielgtaylor/huma":    {"appliance/api"},
	"github.com/prometheus":            {"appliance/api"},
	"github.com/pelletier/go-toml":     {"appliance"},
	"github.com/spf13/cobra":           {"internal/cli", "cmd/holdfast", "cmd/holdfastd", "cmd/holdfast-agent", "cmd/holdfast-recover"},
	"golang.org/x/time":                {"agent", "agent/transport"},
	"github.com/cenkalti/backoff":      {"agent/transport", "ingest/wire"},
	"golang.org/x/term":                {"cmd/holdfast"},
	"github.com/hanwen/go-fuse":        {"mount"},
	"github.com/wneessen/go-mail":      {"appliance/notify"},
	"go.yaml.in/yaml":                  {"appliance/site"},
	"log/slog":                         {"appliance", "appliance/api", "appliance/job", "appliance/auth", "agent", "agent/transport", "cmd/holdfast", "cmd/holdfastd", "cmd/holdfast-agent", "internal/demo"},
	"math/rand":                        {}, // math/rand/v2 has its own path
	"log":                              {},
}

// source is one parsed non-test Go file.
type source struct {
	pkg  string // folder relative to the module root, "" for the root
	name string // path relative to the module root
	test bool
	file *ast.File
	fset *token.FileSet
	text []byte
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		p = filepath.ToSlash(p)
		pkg := path.Dir(p)
		if pkg == "." {
			pkg = ""
		}
		out = append(out, source{pkg, p, strings.HasSuffix(p, "_test.go"), f, fset, text})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func covers(entry, pkg string) bool {
	return entry == pkg || strings.HasSuffix(entry, "/") && strings.HasPrefix(pkg+"/", entry)
}

func floorOf(pkg string) int {
	for i, floor := range floors {
		for _, e := range floor {
			if covers(e, pkg) {
				return i
			}
		}
	}
	return -1
}

func imports(f *ast.File) []string {
	var out []string
	for _, im := range f.Imports {
		out = append(out, strings.Trim(im.Path.Value, `"`))
	}
	return out
}

// TestImportsRunDownward checks floors and walls. Tests may import what they like: they are guests.
func TestImportsRunDownward(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		from := floorOf(s.pkg)
		if from < 0 {
			t.Errorf("%s: package %q has no floor; give it one in floors_test.go", s.name, s.pkg)
			continue
		}
		for _, im := range imports(s.file) {
			if im != module && !strings.HasPrefix(im, module+"/") {
				continue
			}
			pkg := strings.TrimPrefix(strings.TrimPrefix(im, module), "/")
			if to := floorOf(pkg); to >= from {
				t.Errorf("%s (floor %d) imports %q (floor %d): imports run downward only", s.name, from, pkg, to)
			}
			for _, w := range walls {
				if covers(w.from, s.pkg) && (pkg == w.to || strings.HasPrefix(pkg, w.to+"/")) && !excepted(s.pkg, pkg) {
					t.Errorf("%s imports %q: %s", s.name, pkg, w.why)
				}
			}
		}
	}
}

// excepted: the CLI shares the protocol's parcel stream and codecs with the agent, and pools/pooltest is not the catalog.
func excepted(from, to string) bool {
	if from == "rescue" {
		return slices.Contains([]string{"pools/container", "pools/seal", "pools/blob", "pools/blob/dirstore", "pools/blob/s3store", "pools/parity", "ingest/chunk"}, to)
	}
	return from == "cmd/holdfast" && slices.Contains([]string{"ingest/wire", "ingest/chunk"}, to)
}

// TestForeignLibrariesHaveOneHome keeps a library replaceable and its faults in one place.
func TestForeignLibrariesHaveOneHome(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, im := range imports(s.file) {
			for lib, pkgs := range homes {
				if (im == lib || strings.HasPrefix(im, lib+"/") && lib != "log" && lib != "math/rand") && !slices.Contains(pkgs, s.pkg) {
					t.Errorf("%s imports %s, whose home is %q", s.name, im, pkgs)
				}
			}
		}
	}
}

// TestHabits checks what the style page forbids: init functions, the wall clock outside internal/clock, sleeping, unlimited
// contexts, skipped tests, and files too long to read.
func TestHabits(t *testing.T) {
	for _, s := range sources(t) {
		if n := strings.Count(string(s.text), "\n"); n > 700 {
			t.Errorf("%s has %d lines; split it where the thought splits (600 is the aim, 700 the bound)", s.name, n)
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: an init function", s.fset.Position(n.Pos()))
				}
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if !ok {
					break
				}
				call := x.Name + "." + n.Sel.Name
				switch {
				case call == "context.TODO", call == "time.Sleep":
					t.Errorf("%s: %s", s.fset.Position(n.Pos()), call)
				case (call == "t.Skip" || call == "t.Skipf" || call == "t.SkipNow") && s.test:
					t.Errorf("%s: a skipped test says nothing", s.fset.Position(n.Pos()))
				case (call == "time.Now" || call == "time.Since" || call == "time.NewTimer" || call == "time.After" || call == "time.NewTicker" || call == "time.AfterFunc") &&
					s.pkg != "internal/clock" && !s.test && !strings.HasPrefix(s.pkg, "bench"):
					t.Errorf("%s: %s outside internal/clock", s.fset.Position(n.Pos()), call)
				}
			}
			return true
		})
	}
}
