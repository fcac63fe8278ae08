package standard

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

var update = flag.Bool("update", false, "write the golden folder anew")

const goldenSize = 96 << 10

// goldenImages are what the golden folder's sets hold, by age: what is left of a chain whose first set was deleted and rewritten.
func goldenImages() (base []byte, sets [][]byte) {
	rng := rand.New(rand.NewPCG(2024, 2))
	base = noise(rng, goldenSize)
	copy(base[60<<10:], strings.Repeat("the same words again and again, ", 1<<10)) // compresses
	clear(base[30<<10 : 34<<10])
	first := over(base, 0, noise(rng, 52<<10))
	second := over(first, 50<<10, noise(rng, 4<<10))
	clear(second[10<<10 : 11<<10])
	return base, [][]byte{first, second}
}

// Goal: what version 1 wrote restores for ever. Method: a folder made once, with a full set that was deleted, its data file rewritten,
// and two increments; opened from a copy.
func TestGoldenFolderRestores(t *testing.T) {
	golden := filepath.Join("testdata", "v1")
	base, images := goldenImages()
	if *update {
		writeGolden(t, golden, base, images)
	}
	dir := filepath.Join(t.TempDir(), "v1")
	if err := os.CopyFS(dir, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	conf := config(t, "", dir)
	id, err := Driver().Identify(background, pools.Env{}, conf)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Driver().Open(background, pools.Env{}, id, conf)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, p: p.(*Pool)}
	if len(l.objects(".c1.data")) != 1 || len(l.objects(".data")) < 3 {
		t.Fatalf("the golden folder has %v", l.objects(""))
	}
	n := 0
	for m, err := range p.Sets(background) {
		if err != nil {
			t.Fatal(err)
		}
		if m.VM.Name != "Mail Server" || m.Parent.IsZero() || n >= len(images) {
			t.Fatalf("%+v", m)
		}
		l.disk = m.Disks[0].ID
		l.same(m.ID, images[n])
		n++
	}
	rep := l.verify()
	if l.collect(); n != len(images) || len(rep.Damaged) > 0 || rep.Sets != n {
		t.Fatalf("%d sets, %+v", n, rep)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func writeGolden(t *testing.T, golden string, base []byte, images [][]byte) {
	t.Helper()
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	id, conf := holdfast.PoolID{ID: holdfast.NewID()}, config(t, "", golden)
	if err := Driver().Create(background, pools.Env{}, id, conf); err != nil {
		t.Fatal(err)
	}
	p, err := Driver().Open(background, pools.Env{}, id, conf)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, p: p.(*Pool), vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	m := l.manifest(goldenSize, holdfast.SetID{})
	s, w := l.begin(m)
	for _, x := range []write{{0, base[:30<<10]}, {34 << 10, base[34<<10:]}} {
		if _, err := l.put(w, x, 2); err != nil { // small groups, so that some of them die
			t.Fatal(err)
		}
	}
	full := l.commit(s, w, m).Manifest.ID
	first := l.must(l.backup(goldenSize, full, write{0, images[0][:52<<10]}))
	m = l.manifest(goldenSize, first)
	s, w = l.begin(m)
	if err := w.Place(background, []holdfast.Ref{{Extent: holdfast.Extent{Off: 10 << 10, Len: 1 << 10}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.put(w, write{50 << 10, images[1][50<<10 : 54<<10]}, 16); err != nil {
		t.Fatal(err)
	}
	l.commit(s, w, m)
	l.delete(full)
	if rep := l.collect(); rep.Rewritten != 1 {
		t.Fatalf("%+v", rep)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{lockName, "~staging"} {
		if err := os.RemoveAll(filepath.Join(golden, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// sampleRecord is a set record with all there can be in one.
func sampleRecord(t testing.TB) *setRecord {
	l := &lab{vm: holdfast.VMID{ID: holdfast.ID{1, 2, 3}}, disk: holdfast.DiskID{ID: holdfast.ID{4, 5}}}
	m := l.manifest(1<<30, holdfast.SetID{ID: holdfast.ID{9}})
	m.VM.Name = "Büro \"7\"\n<&>\u2028 日本"
	m.Attachments = []holdfast.Attachment{{Name: "vm.vmcx", Data: []byte("x")}}
	r := &setRecord{title: titleOf(&m), manifest: m, files: filesPart{Format: formatVersion, Pool: holdfast.PoolID{ID: holdfast.ID{7}}, Folder: folderName(&m, 5)}}
	r.files.Maps = []mapFact{{Bytes: 500, Sum: holdfast.Digest{1}}}
	for i := range uint32(5) {
		r.files.add(fileKey{path: 1, number: 1 + i + i/3, folder: r.files.Folder}, fileFact{1000, 2000, 3})
	}
	if len(r.files.Data) != 2 {
		t.Fatal("no two ranges")
	}
	return r
}

// Goal: a set record reads back as it was written, begins with a line for people, and no flipped bit goes unnoticed.
func TestSetRecordNoticesEveryFlip(t *testing.T) {
	r := sampleRecord(t)
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSetRecord(b)
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Fatalf("%+v, %v", got, err)
	}
	if line, _, _ := strings.Cut(string(b), "\n"); !strings.Contains(line, `"Büro`) || !strings.Contains(line, "2024-02-29 13:00:00 UTC") {
		t.Fatalf("the first line is %s", line)
	}
	for _, name := range []string{strings.Repeat("\x00", 300), strings.Repeat("\U000e0001", 300), strings.Repeat("日", 300), ""} {
		m := r.manifest
		m.VM.Name = name
		if n := len(titleOf(&m)); n >= maxTitle {
			t.Fatalf("a title of %d bytes for %q", n, name)
		}
	}
	for at := range b {
		c := bytes.Clone(b)
		c[at] ^= 1 << (at % 8)
		if _, err := parseSetRecord(c); err == nil {
			t.Fatalf("a flip of byte %d went unnoticed", at)
		}
	}
	for n := range b {
		if _, err := parseSetRecord(b[:n]); err == nil {
			t.Fatalf("%d of %d bytes are enough", n, len(b))
		}
	}
}

func FuzzSetRecord(f *testing.F) {
	b, err := sampleRecord(f).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("holdfast\nmanifest 0 \nfiles 0 \nend \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseSetRecord(b)
		if err != nil {
			if k := holdfast.KindOf(err); k != holdfast.Corrupt && k != holdfast.Unsupported {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		if again, err := r.encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("decode and encode changed it: %v", err)
		}
	})
}

// A memObject is an object in memory.
type memObject struct{ bytes.Buffer }

func (o *memObject) Commit() error { return nil }
func (o *memObject) Abort()        {}

type memReader struct{ *bytes.Reader }

func (r memReader) Close() error { return nil }
func (r memReader) DropCache()   {}

var _ blob.Reader = memReader{}

// buildMap encodes runs.
func buildMap(t testing.TB, pool holdfast.PoolID, size int64, files []*file, runs []run) []byte {
	var o memObject
	w, err := newMapWriter(&o, pool, size)
	for _, f := range files {
		if err == nil {
			_, err = w.fileIndex(f)
		}
	}
	for _, r := range runs {
		if err == nil {
			err = w.add(r)
		}
	}
	if err == nil {
		_, err = w.finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	return o.Bytes()
}

func sampleMap(t testing.TB, pool holdfast.PoolID, rng *rand.Rand, n int) ([]byte, []run, []*file, int64) {
	var files []*file
	l := &lab{}
	m := l.manifest(1<<30, holdfast.SetID{})
	m.VM.ID, m.ID = holdfast.VMID{ID: holdfast.ID{1}}, holdfast.SetID{ID: holdfast.ID{2}}
	for i := range 5 {
		f := &file{key: fileKey{path: 1, number: uint32(i + 1), folder: folderName(&m, uint64(i/2))}}
		f.id.Store(uint64(i) + 77)
		files = append(files, f)
	}
	var runs []run
	off := int64(0)
	for range n {
		off += rng.Int64N(3) * 512
		r := run{off: off, len: 1 + rng.Int64N(1<<20), file: zeroFile}
		if rng.IntN(3) > 0 {
			r.file, r.count, r.skip, r.first = uint32(rng.IntN(5)), 1+uint32(rng.IntN(9)), uint32(rng.IntN(4096)), uint32(rng.IntN(60000))
		}
		runs = append(runs, r)
		off = r.end()
	}
	size := (off + 511) / 512 * 512
	return buildMap(t, pool, size, files, runs), runs, files, size
}

// readMap reads all runs of a map.
func readMap(b []byte, pool holdfast.PoolID) (*mapReader, []run, error) {
	m, err := newMapReader(memReader{bytes.NewReader(b)}, pool)
	if err != nil {
		return nil, nil, err
	}
	var runs []run
	for {
		r, ok, err := m.read()
		if err != nil || !ok {
			return m, runs, err
		}
		runs = append(runs, r)
	}
}

// Goal: a map reads back as it was written, from any offset, whatever the number of its blocks. Method: random runs.
func TestMapReadsBack(t *testing.T) {
	pool := holdfast.PoolID{ID: holdfast.ID{3}}
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 4))
		b, runs, files, size := sampleMap(t, pool, rng, 1+rng.IntN(3*blockRuns))
		m, got, err := readMap(b, pool)
		if err != nil || !reflect.DeepEqual(got, runs) || len(m.table.keys) != len(files) || m.end.size != size {
			t.Fatalf("seed %d: %d runs of %d, %v", seed, len(got), len(runs), err)
		}
		if err := m.verify(background); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			off := rng.Int64N(size + 1000)
			if err := m.seek(off); err != nil {
				t.Fatal(err)
			}
			r, ok, err := m.read()
			i := 0
			for i < len(runs) && runs[i].end() <= off {
				i++
			}
			if err != nil || ok != (i < len(runs)) || ok && r != runs[i] {
				t.Fatalf("seed %d: seek to %d: %+v %v %v", seed, off, r, ok, err)
			}
		}
	}
}

// Goal: no flipped bit of a map goes unnoticed by the checks of a full read.
func TestMapNoticesEveryFlip(t *testing.T) {
	pool := holdfast.PoolID{ID: holdfast.ID{3}}
	b, _, _, _ := sampleMap(t, pool, rand.New(rand.NewPCG(1, 5)), 30)
	for at := range b {
		c := bytes.Clone(b)
		c[at] ^= 1 << (at % 8)
		m, _, err := readMap(c, pool)
		if err == nil {
			err = m.verify(background)
		}
		if err == nil {
			t.Fatalf("a flip of byte %d went unnoticed", at)
		}
	}
}

func FuzzMap(f *testing.F) {
	pool := holdfast.PoolID{ID: holdfast.ID{3}}
	for seed, n := range []int{1, 20, blockRuns + 1} {
		b, _, _, _ := sampleMap(f, pool, rand.New(rand.NewPCG(uint64(seed), 6)), n)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, runs, err := readMap(b, pool)
		if err == nil {
			err = m.verify(background)
		}
		if err != nil {
			if k := holdfast.KindOf(err); k != holdfast.Corrupt && k != holdfast.Unsupported {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		var files []*file
		for i, k := range m.table.keys {
			x := &file{key: k}
			x.id.Store(m.table.ids[i])
			files = append(files, x)
		}
		var o memObject
		w, err := newMapWriter(&o, pool, m.end.size)
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range files { // a table may name a file twice; the writer would not
			w.table.keys, w.table.ids, w.files = append(w.table.keys, x.key), append(w.table.ids, m.table.ids[i]), append(w.files, x)
		}
		for _, r := range runs {
			if err := w.add(r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.finish(); err != nil || !bytes.Equal(o.Bytes(), b) {
			t.Fatalf("decode and encode changed it: %v", err)
		}
	})
}

func FuzzMoves(f *testing.F) {
	f.Add(encodeMoves([]move{{0, 0, 4}, {9, 4, 1}}), uint32(5))
	f.Fuzz(func(t *testing.T, b []byte, n uint32) {
		if m, err := parseMoves(b, n); err == nil && !bytes.Equal(encodeMoves(m), b) {
			t.Fatal("decode and encode changed it")
		}
	})
}

func FuzzPoolRecord(f *testing.F) {
	c, err := holdfast.ParseChunking("")
	if err != nil {
		f.Fatal(err)
	}
	sb, err := newSuperblock(holdfast.PoolID{ID: holdfast.ID{3}}, c, time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC))
	if err != nil {
		f.Fatal(err)
	}
	sb.Path, sb.Paths = 1, 2
	b, err := sb.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		sb, err := parseSuperblock(b)
		if err != nil {
			if k := holdfast.KindOf(err); k != holdfast.Corrupt && k != holdfast.Unsupported {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		if again, err := sb.encode(); err != nil {
			t.Fatal(err)
		} else if back, err := parseSuperblock(again); err != nil || !reflect.DeepEqual(back, sb) {
			t.Fatalf("encode and decode changed it: %v", err)
		}
	})
}

// Goal: names of objects are ones that any store takes, say what they are, and are read back; what admins put beside is left alone.
func TestNames(t *testing.T) {
	l := &lab{}
	m := l.manifest(512, holdfast.SetID{})
	for vm, slug := range map[string]string{"Mail Server": "mail-server", "  ../../etc ": "etc", "日本": "vm", "": "vm", strings.Repeat("a-", 200): strings.Repeat("a-", 20)[:39] + "-", "DC01.": "dc01"} {
		m.VM.Name = vm
		folder := folderName(&m, 0xabc)
		k := fileKey{path: 1, disk: 255, number: 1<<31 - 1, folder: folder}
		name := k.dataName(1<<31 - 1)
		if err := blob.CheckName(name); err != nil {
			t.Error(err)
		}
		got, gen, ok := parseData(name)
		got.path = 1
		if id, isSet := setOfFolder(folder); !isSet || id != m.ID || !ok || gen != 1<<31-1 || got != k {
			t.Errorf("%q: %s is read as %+v, %s", vm, name, got, id)
		}
		if !strings.HasPrefix(folder, "vms/"+slug+"-") && vm[:min(1, len(vm))] != "a" {
			t.Errorf("%q becomes %s", vm, folder)
		}
	}
	for _, bad := range []string{"vms", "vms/a/b", "vms/x/notes.txt", "sets/a/" + fmt.Sprint(m.ID), "vms/a/20240229-120000-" + m.ID.String() + ".zzzzzzzzzzzzzzzz", "other/a/20240229-120000-" + m.ID.String() + ".0000000000000001"} {
		if _, ok := setOfFolder(bad); ok {
			t.Errorf("%q is taken for a set's folder", bad)
		}
	}
	for _, bad := range []string{"a/disk-0.data", "a/disk-0.1.data", "a/disk-00.000001.data", "a/disk-0.000001.c0.data", "a/disk-0.000001.x1.data", "a/disk-0.map"} {
		if _, _, ok := parseData(bad); ok {
			t.Errorf("%q is taken for a data file", bad)
		}
	}
	pool := newLab(t, shape{paths: 1})
	pool.must(pool.backup(4096, holdfast.SetID{}, write{0, make([]byte, 10)}))
	for _, name := range []string{"readme.txt", "vms/notes.txt", pool.objects(recordName)[0][2:] + ".copy"} {
		if err := fsysWrite(pool.pl.fss[0], name); err != nil {
			t.Fatal(err)
		}
	}
	pool.reopen()
	pool.collect()
	if n := len(pool.objects("notes.txt")) + len(pool.objects(".copy")); n != 2 {
		t.Errorf("files of an admin were removed: %v", pool.objects(""))
	}
}

func fsysWrite(f fsys.FS, name string) error {
	s, err := openDir(f)
	if err != nil {
		return err
	}
	return blob.WriteAll(background, s, name, []byte("mine"))
}
