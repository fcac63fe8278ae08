package vhdx

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

var update = flag.Bool("update", false, "write the golden files anew")

func newDisk(t testing.TB, fs fileSystem, path string, o CreateOptions, at int64, b []byte) {
	t.Helper()
	w := must1(create(fs, path, o))(t)
	must(t, second(w.WriteAt(b, at)))
	must(t, w.Finish())
}

func wantKind(t *testing.T, err error, k holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != k {
		t.Fatalf("got %v, want %v", err, k)
	}
}

func TestOneBadCopyOfHeaderOrRegionTableIsSurvived(t *testing.T) {
	base := newMemFS()
	newDisk(t, base, "d/a", CreateOptions{Size: 5 * mib, Subformat: "dynamic", BlockSize: mib}, mib, []byte("hello"))
	places := []int64{headerAt[0], headerAt[1], regionAt[0], regionAt[1]}
	for i, bad := range places {
		fs := base.clone()
		fs.files["d/a"].writeAt([]byte("garbage"), bad+20)
		d := must1(openChain(fs, "d/a"))(t)
		b := make([]byte, 5)
		must(t, second(d.ReadAt(b, mib)))
		if string(b) != "hello" {
			t.Fatalf("%q", b)
		}
		if rep := must1(check(fs, "d/a"))(t); len(rep.Problems) != 1 {
			t.Fatalf("check says %v", rep.Problems)
		}
		l := must1(openLive(fs, "d/a"))(t)
		must(t, second(l.WriteAt([]byte("again"), 0)))
		must(t, l.Close())
		if rep := must1(check(fs, "d/a"))(t); len(rep.Problems) != 0 {
			t.Fatalf("not repaired: %v", rep.Problems)
		}
		fs = base.clone()
		fs.files["d/a"].writeAt([]byte("garbage"), bad+20)
		fs.files["d/a"].writeAt([]byte("garbage"), places[i^1]+20)
		_, err := openChain(fs, "d/a")
		wantKind(t, err, holdfast.Corrupt)
	}
}

func TestParentsAreFoundAndVerified(t *testing.T) {
	base := newMemFS()
	newDisk(t, base, "d/a", CreateOptions{Size: 4 * mib, Subformat: "dynamic", BlockSize: mib}, 0, []byte("parent"))
	newDisk(t, base, "d/sub/b", CreateOptions{Subformat: "differencing", Parent: "d/a"}, mib, []byte("child"))
	if id := must1(openChain(base, "d/sub/b"))(t).Info(); id.DiskID != must1(openChain(base, "d/a"))(t).Info().DiskID || len(id.Chain) != 2 {
		t.Fatal("a differencing disk is another disk than its parent")
	}
	t.Run("moved together", func(t *testing.T) {
		fs := base.clone()
		fs.files["x/a"], fs.files["x/b"] = fs.files["d/a"], fs.files["d/sub/b"]
		delete(fs.files, "d/a")
		must(t, must1(openChain(fs, "x/b"))(t).Close())
	})
	t.Run("missing", func(t *testing.T) {
		fs := base.clone()
		delete(fs.files, "d/a")
		_, err := openChain(fs, "d/sub/b")
		wantKind(t, err, holdfast.NotExist)
		if holdfast.HintOf(err) == "" {
			t.Fatal("no advice")
		}
	})
	t.Run("changed", func(t *testing.T) {
		fs := base.clone()
		l := must1(openLive(fs, "d/a"))(t)
		must(t, second(l.WriteAt([]byte("x"), 0)))
		must(t, l.Close())
		_, err := openChain(fs, "d/sub/b")
		wantKind(t, err, holdfast.Corrupt)
	})
	t.Run("opened for writing without a write", func(t *testing.T) {
		fs := base.clone()
		must(t, must1(openLive(fs, "d/a"))(t).Close())
		must(t, must1(openChain(fs, "d/sub/b"))(t).Close())
	})
	t.Run("its own parent", func(t *testing.T) {
		fs := base.clone()
		fs.files["d/a"] = fs.files["d/sub/b"]
		_, err := openChain(fs, "d/sub/b")
		wantKind(t, err, holdfast.Corrupt)
	})
	t.Run("another disk id", func(t *testing.T) {
		fs := base.clone()
		id := holdfast.DiskID{ID: holdfast.NewID()}
		must(t, setDiskID(fs, "d/a", id))
		must(t, must1(openChain(fs, "d/sub/b"))(t).Close())
		if got := must1(openChain(fs, "d/a"))(t).Info().DiskID; got != id {
			t.Fatal(got)
		}
	})
}

// A merged file in the middle of a chain is taken out: the disk on top goes on, open or not, and reads the same.
func TestMergedMiddleOfAChainIsTakenOut(t *testing.T) {
	for _, open := range []bool{false, true} {
		fs := newMemFS()
		newDisk(t, fs, "d/a", CreateOptions{Size: 4 * mib, Subformat: "dynamic", BlockSize: mib}, 0, []byte("aaaa"))
		newDisk(t, fs, "d/b", CreateOptions{Subformat: "differencing", Parent: "d/a"}, 1, []byte("bb"))
		newDisk(t, fs, "d/sibling", CreateOptions{Subformat: "differencing", Parent: "d/a"}, 1, []byte("ss"))
		newDisk(t, fs, "d/c", CreateOptions{Subformat: "differencing", Parent: "d/b"}, 2, []byte("c"))
		want := readAll(t, fs, "d/c")
		wantKind(t, setParent(fs, "d/c", "d/a"), holdfast.Corrupt) // not merged yet
		if open {
			l := must1(openLive(fs, "d/c"))(t)
			must(t, merge(fs, "d/b"))
			must(t, l.SetParent("d/a"))
			delete(fs.files, "d/b")
			must(t, second(l.WriteAt([]byte("live"), mib)))
			copy(want[mib:], "live")
			must(t, l.Close())
		} else {
			must(t, merge(fs, "d/b"))
			must(t, setParent(fs, "d/c", "d/a"))
			delete(fs.files, "d/b")
		}
		if got := readAll(t, fs, "d/c"); !bytes.Equal(got, want) {
			t.Fatal("the disk changed")
		}
		_, err := openChain(fs, "d/sibling")
		wantKind(t, err, holdfast.Corrupt)
		wantKind(t, merge(fs, "d/a"), holdfast.Invalid)
	}
}

func TestOneWriterPerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.vhdx")
	newDisk(t, osFS{}, path, CreateOptions{Size: 4 * mib, Subformat: "dynamic"}, 0, []byte("x"))
	l := must1(OpenLive(path))(t)
	_, err := OpenLive(path)
	wantKind(t, err, holdfast.Busy)
	wantKind(t, SetDiskID(path, holdfast.DiskID{ID: holdfast.NewID()}), holdfast.Busy)
	must(t, l.Close())
	must(t, SetDiskID(path, holdfast.DiskID{ID: holdfast.NewID()}))
	_, err = Create(path, CreateOptions{Size: 4 * mib, Subformat: "dynamic"})
	wantKind(t, err, holdfast.Exist)
	_, err = Open(filepath.Dir(path))
	wantKind(t, err, holdfast.Invalid)
	_, err = Open(path + "x")
	wantKind(t, err, holdfast.NotExist)
	w := must1(Create(path+"y", CreateOptions{Size: 4 * mib, Subformat: "fixed"}))(t)
	must(t, w.Abort())
	wantKind(t, w.Finish(), holdfast.Invalid)
	if _, err := os.Stat(path + "y"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("Abort left the file")
	}
}

func TestWrongOptionsAreRefused(t *testing.T) {
	fs := newMemFS()
	newDisk(t, fs, "d/p", CreateOptions{Size: 4 * mib, Subformat: "dynamic"}, 0, []byte("x"))
	for name, o := range map[string]CreateOptions{
		"no size": {Subformat: "dynamic"}, "odd size": {Size: 513, Subformat: "fixed"}, "4Kn size": {Size: 512, Subformat: "fixed", LogicalSector: 4096},
		"block": {Size: mib, Subformat: "dynamic", BlockSize: 3 * mib}, "huge": {Size: maxDiskSize + 512, Subformat: "dynamic"}, "kind": {Size: mib},
		"parent": {Size: mib, Subformat: "dynamic", Parent: "d/p"}, "no parent": {Size: mib, Subformat: "differencing"},
		"small": {Size: mib, Subformat: "differencing", Parent: "d/p"}, "sectors": {Subformat: "differencing", Parent: "d/p", LogicalSector: 4096},
	} {
		_, err := create(fs, "d/new", o)
		if holdfast.KindOf(err) != holdfast.Invalid || fs.files["d/new"] != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestZerosTakeNoSpaceAndGiveItBack(t *testing.T) {
	fs := newMemFS()
	newDisk(t, fs, "d/a", CreateOptions{Size: 64 * mib, Subformat: "dynamic", BlockSize: mib}, 0, make([]byte, 5*mib))
	empty := fs.files["d/a"].size
	if empty != 4*mib {
		t.Fatalf("an empty disk has %d bytes", empty)
	}
	l := must1(openLive(fs, "d/a"))(t)
	for range 20 { // space is reused, within a session and by the next
		for i := range int64(8) {
			must(t, second(l.WriteAt(bytes.Repeat([]byte{1}, 5000), i*mib+77)))
		}
		must(t, l.Zero(0, 4*mib))
		must(t, l.Close())
		l = must1(openLive(fs, "d/a"))(t)
		must(t, l.Zero(4*mib, 4*mib))
	}
	if ext := must1(l.Allocated())(t); len(ext) != 0 {
		t.Fatal(ext)
	}
	if size := fs.files["d/a"].size; size > empty+8*mib {
		t.Fatalf("the file grew to %d", size)
	}
	must(t, l.Close())
}

// A contiguous range of the file is read in one go, across blocks and without looking at sectors.
func TestLongReadsAreOneReadOfTheFile(t *testing.T) {
	fs := newMemFS()
	newDisk(t, fs, "d/a", CreateOptions{Size: 64 * mib, Subformat: "dynamic", BlockSize: mib}, 0, bytes.Repeat([]byte{7}, 20*mib))
	d := must1(openChain(fs, "d/a"))(t)
	b := make([]byte, 16*mib)
	must(t, second(d.ReadAt(b[:1], 0)))
	fs.reads = 0
	must(t, second(d.ReadAt(b, 3*mib/2)))
	if fs.reads != 1 || b[16*mib-1] != 7 {
		t.Fatalf("%d reads", fs.reads)
	}
}

func TestLongTablesAreReadLazily(t *testing.T) {
	fs := newMemFS()
	w := must1(create(fs, "d/a", CreateOptions{Size: maxDiskSize, Subformat: "dynamic", BlockSize: mib}))(t)
	for i := range int64(100) {
		must(t, second(w.WriteAt([]byte{byte(i + 1)}, i*(maxDiskSize/100))))
	}
	must(t, w.Finish())
	d := must1(openChain(fs, "d/a"))(t)
	for i := range int64(100) {
		var b [1]byte
		must(t, second(d.ReadAt(b[:], i*(maxDiskSize/100))))
		if b[0] != byte(i+1) {
			t.Fatal(i, b)
		}
	}
	if n := len(d.layer.(*image).cache.pages); n > cachePages {
		t.Fatalf("%d pages are held", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	dir := t.TempDir()
	w := must1(Create(filepath.Join(dir, "a"), CreateOptions{Size: 64 * mib, Subformat: "dynamic", BlockSize: mib}))(t)
	var wg sync.WaitGroup
	for i := range int64(8) {
		wg.Go(func() {
			b := bytes.Repeat([]byte{byte(i + 1)}, 256*kib)
			for at := i * int64(len(b)); at < 64*mib; at += 8 * int64(len(b)) {
				if _, err := w.WriteAt(b, at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, w.Finish())
	l := must1(OpenLive(filepath.Join(dir, "a")))(t)
	for i := range int64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			b := make([]byte, 256*kib)
			for range 40 {
				at := (r.Int64N(32)*8 + i) * int64(len(b))
				_, err := l.ReadAt(b, at)
				if err != nil || b[0] != byte(i+1) && b[0] != 0 {
					t.Error(err, b[0])
				}
				if err := l.Zero(at, int64(len(b))); err != nil {
					t.Error(err)
				}
				if _, err := l.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 1000), at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, l.Close())
	if rep := must1(Check(filepath.Join(dir, "a")))(t); len(rep.Problems) > 0 {
		t.Fatal(rep.Problems)
	}
}

// The golden file stands for all files written so far: a later version must read it alike.
func TestGoldenFileReadsAsEver(t *testing.T) {
	const golden = "testdata/dynamic.vhdx.gz"
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if *update {
		newDisk(t, osFS{}, path, CreateOptions{Size: 9*mib + 512, Subformat: "dynamic", BlockSize: mib, DiskID: holdfast.DiskID{ID: guidBAT}}, 3*mib-3, []byte("golden"))
		var z bytes.Buffer
		g := gzip.NewWriter(&z)
		must(t, second(g.Write(must1(os.ReadFile(path))(t))))
		must(t, g.Close())
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(golden, z.Bytes(), 0o644))
		must(t, os.Remove(path))
	}
	g := must1(gzip.NewReader(bytes.NewReader(must1(os.ReadFile(golden))(t))))(t)
	must(t, os.WriteFile(path, must1(io.ReadAll(g))(t), 0o600))
	d := must1(Open(path))(t)
	defer d.Close()
	b := make([]byte, 9*mib+512)
	must(t, second(d.ReadAt(b, 0)))
	want := make([]byte, 9*mib+512)
	copy(want[3*mib-3:], "golden")
	if i := d.Info(); !bytes.Equal(b, want) || i.DiskID.ID != guidBAT || i.PhysicalSector != 4096 {
		t.Fatal(i)
	}
	qemuImg(t, "check", path)
}

func TestSparseFixedDiskHasAMap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	newDisk(t, osFS{}, path, CreateOptions{Size: 256 * mib, Subformat: "fixed"}, 100*mib, []byte("x"))
	d := must1(Open(path))(t)
	defer d.Close()
	want := int64(256 * mib)
	if runtime.GOOS == "linux" {
		want = mib // a file system's own granule is far smaller
	}
	ext := must1(d.Allocated())(t)
	if n := ext.Total(); n == 0 || n > want {
		t.Fatalf("%d bytes may hold data: %v", n, ext)
	}
}
