package ltfs_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/tape/ltfs"
)

// copyDir copies the files of a cartridge's folder that keep wants.
func copyDir(t *testing.T, from, to string, keep func(name string) bool) {
	t.Helper()
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !keep(e.Name()) {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, e.Name()), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWhatACrashLeavesInTheReferencesLayoutIsRepaired: the variants that the reference checker repairs too. Each opens with every synced file, says what
// is wrong, is repaired by the next writer, and passes the check then.
func TestWhatACrashLeavesInTheReferencesLayoutIsRepaired(t *testing.T) {
	base, older := t.TempDir(), t.TempDir()
	d, err := ltfs.OpenDir(base)
	if err == nil {
		err = ltfs.Format(ctx, d, options)
	}
	if err != nil {
		t.Fatal(err)
	}
	w, err := ltfs.NewWriter(ctx, d, "Holdfast 1 - test", at)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for n := range 3 {
		if n == 2 { // as it was before the last sync
			copyDir(t, base, older, func(string) bool { return true })
		}
		name := fmt.Sprintf("/f-%d", n)
		if err = w.Add(ctx, name, bytes.NewReader(content(n+2)), at); err == nil {
			err = w.Sync(ctx, at)
		}
		if err != nil {
			t.Fatal(err)
		}
		want[name] = line(content(n + 2))
	}
	all := func(string) bool { return true }
	index := func(name string) bool { return strings.HasPrefix(name, "0_") }
	memory := func(name string) bool { return strings.HasPrefix(name, "attr_") }
	for _, v := range []struct {
		name  string
		build func(dir string)
		well  bool // it is consistent as it is
	}{
		{"nothing is wrong", func(dir string) { copyDir(t, base, dir, all) }, true},
		{"cut between the two indexes: the index partition is one generation behind", func(dir string) {
			copyDir(t, base, dir, func(n string) bool { return !index(n) && !memory(n) })
			copyDir(t, older, dir, func(n string) bool { return index(n) || memory(n) })
		}, false},
		{"cut before the medium's memory was written", func(dir string) {
			copyDir(t, base, dir, func(n string) bool { return !memory(n) })
			copyDir(t, older, dir, memory)
		}, false},
		{"the medium's memory is gone", func(dir string) { copyDir(t, base, dir, func(n string) bool { return !memory(n) }) }, false},
		{"cut after data, before its index", func(dir string) {
			copyDir(t, base, dir, all)
			x, err := ltfs.OpenDir(dir)
			if err == nil {
				if err = x.Locate(ctx, 1, 0); err == nil {
					err = x.EndOfData(ctx)
				}
			}
			if err == nil {
				err = x.Write(ctx, content(3))
			}
			if err != nil {
				t.Fatal(err)
			}
		}, false},
		{"the ends of data are gone", func(dir string) { copyDir(t, base, dir, func(n string) bool { return !strings.HasSuffix(n, "_E") }) }, true},
		{"the index partition is empty behind its label", func(dir string) {
			copyDir(t, base, dir, func(n string) bool { return !index(n) || n < "0_4" })
			if err := os.WriteFile(filepath.Join(dir, "0_4_E"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		dir := t.TempDir()
		v.build(dir)
		vol, err := ltfs.Open(ctx, ltfs.OpenFolder(os.DirFS(dir)))
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
			continue
		}
		if got := listing(t, vol); !maps.Equal(got, want) || (len(vol.Problems) == 0) != v.well {
			t.Errorf("%s: problems %q, found %v, want %v", v.name, vol.Problems, got, want)
		}
		m, err := ltfs.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		w, err := ltfs.NewWriter(ctx, m, "Holdfast 1 - test", at)
		if err == nil {
			err = w.Add(ctx, "/after", bytes.NewReader(content(2)), at)
		}
		if err == nil {
			err = w.Sync(ctx, at)
		}
		if err != nil {
			t.Errorf("%s: repairing: %v", v.name, err)
			continue
		}
		vol, err = ltfs.Open(ctx, ltfs.OpenFolder(os.DirFS(dir)))
		if err != nil {
			t.Errorf("%s: after repairing: %v", v.name, err)
			continue
		}
		more := maps.Clone(want)
		more["/after"] = line(content(2))
		if bad, err := vol.Check(ctx); len(bad) > 0 || err != nil || !maps.Equal(listing(t, vol), more) {
			t.Errorf("%s: after repairing: %q, %v", v.name, bad, err)
		}
	}
}
