package standard

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// heap returns the bytes in use after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Goal: the map of a disk of 10 TiB in 40,000 data files is written and read in far less than 64 MiB. Method: 1.3 million runs, as
// many as 10 TiB have in pieces of 8 MiB; blocks are all that grows with more.
func TestLargeMapsTakeLittleMemory(t *testing.T) {
	const piece, runs, perFile = 8 << 20, 10 << 40 / (8 << 20), 32
	f, err := fsys.NewOS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := openDir(f)
	if err != nil {
		t.Fatal(err)
	}
	pool := holdfast.PoolID{ID: holdfast.NewID()}
	l := &lab{vm: holdfast.VMID{ID: holdfast.NewID()}}
	m := l.manifest(10<<40, holdfast.SetID{})
	folder := folderName(&m, 1)
	before := heap()
	o, err := s.Create(background, mapName(folder, 0))
	if err != nil {
		t.Fatal(err)
	}
	w, err := newMapWriter(o, pool, 10<<40)
	if err != nil {
		t.Fatal(err)
	}
	var file0 *file
	for i := range int64(runs) {
		if i%perFile == 0 {
			file0 = &file{key: fileKey{path: 1, number: uint32(i/perFile) + 1, folder: folder}}
			file0.id.Store(uint64(i) + 1)
		}
		k, err := w.fileIndex(file0)
		if err == nil {
			err = w.add(run{off: i * piece, len: piece, file: k, first: uint32(i % perFile * 256), count: 255})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wrote := heap() - before
	fact, err := w.finish()
	if err != nil {
		t.Fatal(err)
	}
	if w = nil; fact.Bytes > 64<<20 {
		t.Fatalf("the map has %d bytes", fact.Bytes)
	}
	before = heap()
	r, err := openMap(background, s, mapName(folder, 0), pool, fact)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	n := 0
	for {
		_, ok, err := r.read()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		n++
	}
	for off := int64(0); off < 10<<40; off += 77<<30 + 12345 {
		if err := r.seek(off); err != nil {
			t.Fatal(err)
		}
		if x, ok, err := r.read(); err != nil || !ok || x.off > off || x.end() <= off {
			t.Fatalf("seek to %d: %+v %v %v", off, x, ok, err)
		}
	}
	if err := r.verify(background); err != nil {
		t.Fatal(err)
	}
	read := heap() - before
	t.Logf("%d runs of %d bytes: writing held %d KiB, reading %d KiB", n, fact.Bytes, wrote>>10, read>>10)
	if n != runs || wrote > 32<<20 || read > 32<<20 {
		t.Fatalf("%d runs of %d; writing held %d bytes, reading %d", n, runs, wrote, read)
	}
}

// manySets makes a pool with n sets without going through sessions.
func manySets(t testing.TB, pl *place, st blob.Store, n int) {
	t.Helper()
	l := &lab{vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	for i := range n {
		if i%100 == 0 {
			l.vm = holdfast.VMID{ID: holdfast.NewID()}
		}
		m := l.manifest(1<<40, holdfast.SetID{})
		r := setRecord{title: titleOf(&m), manifest: m, files: filesPart{Format: formatVersion, Pool: pl.id, Folder: folderName(&m, uint64(i))}}
		for k := range uint32(100) { // a set of about 25 GB
			r.files.add(fileKey{path: 1, number: k + 1, folder: r.files.Folder}, fileFact{fileTarget, 2 * fileTarget, 8000})
		}
		r.files.Maps = []mapFact{{Bytes: 1000}}
		b, err := r.encode()
		if err == nil {
			err = blob.WriteAll(background, st, r.files.Folder+"/"+recordName, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Goal: opening a pool reads no set records and no maps, however many sets it has; listing and usage read each record once.
func TestOpenReadsNoRecords(t *testing.T) {
	const n = 300
	pl := newPlace(t, shape{paths: 1})
	manySets(t, pl, pl.stores(t)[0].Store, n)
	var f *blob.Fault
	pl.shape.wrap = func(s blob.Store) blob.Store { f = blob.NewFault(s); return f }
	paths := pl.stores(t)
	opened := f.Inject(blob.FaultRule{Verb: blob.VerbOpen, Glob: vmsFolder + "/*/*/*", Times: -1})
	p, err := OpenOn(background, pools.Env{}, paths, pl.id)
	if err != nil {
		t.Fatal(err)
	}
	if opened() != 0 || len(p.sets) != n {
		t.Fatalf("%d objects were opened for %d sets", opened(), len(p.sets))
	}
	for range 2 {
		if u, err := p.Usage(background); err != nil || u.Sets != n || u.Logical != n<<40 || u.Stored < n*100*fileTarget {
			t.Fatalf("%+v, %v", u, err)
		}
	}
	if opened() != n {
		t.Fatalf("usage opened %d objects of %d sets", opened(), n)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// Goal (with HOLDFAST_SOAK): how long opening and first use of a pool of 10,000 sets in real folders take.
func TestTenThousandSets(t *testing.T) {
	if soak() == 1 {
		t.Log("not run: HOLDFAST_SOAK is not set")
		return
	}
	dir := t.TempDir()
	id := holdfast.PoolID{ID: holdfast.NewID()}
	conf := config(t, "", filepath.Join(dir, "a"))
	if err := Driver().Create(background, pools.Env{}, id, conf); err != nil {
		t.Fatal(err)
	}
	f, err := fsys.NewOS(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := openDir(f)
	if err != nil {
		t.Fatal(err)
	}
	manySets(t, &place{id: id}, s, 10_000)
	before, start := heap(), clock.System.Now()
	p, err := Driver().Open(background, pools.Env{}, id, conf)
	if err != nil {
		t.Fatal(err)
	}
	open := clock.System.Now().Sub(start)
	start = clock.System.Now()
	if _, err := p.Usage(background); err != nil {
		t.Fatal(err)
	}
	t.Logf("open %v, first usage %v, %d MiB for 10,000 sets in 1,000,000 data files", open, clock.System.Now().Sub(start), (heap()-before)>>20)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if open > 10*time.Second { // the promise is one second on an idle machine
		t.Fatalf("open took %v", open)
	}
}

// BenchmarkBackup and BenchmarkRestore are to be compared with cp of the same bytes: HOLDFAST_BENCH_DIR says where.
func benchDir(b *testing.B) string {
	if d := os.Getenv("HOLDFAST_BENCH_DIR"); d != "" {
		d = filepath.Join(d, fmt.Sprint(b.Name()))
		b.Cleanup(func() { _ = os.RemoveAll(d) })
		return d
	}
	return b.TempDir()
}

const benchBytes = 512 << 20

// benchPool makes a pool and a set of benchBytes of noise.
func benchPool(b *testing.B) (pools.Pool, func() (holdfast.SetID, error)) {
	dir := benchDir(b)
	id := holdfast.PoolID{ID: holdfast.NewID()}
	conf, err := encodeConfig(Config{Paths: []PathConfig{{Path: filepath.Join(dir, "a")}}})
	if err == nil {
		err = Driver().Create(background, pools.Env{}, id, conf)
	}
	if err != nil {
		b.Fatal(err)
	}
	p, err := Driver().Open(background, pools.Env{}, id, conf)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	})
	const piece = 64 << 10
	payload := make([]byte, 16*piece)
	for i := range payload {
		payload[i] = byte(i * i >> 7 * 31)
	}
	l := &lab{vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	return p, func() (holdfast.SetID, error) {
		m := l.manifest(benchBytes, holdfast.SetID{})
		s, err := p.Begin(background, m)
		if err != nil {
			return m.ID, err
		}
		w, err := s.Disk(background, l.disk)
		h := p.Traits().Domain.Hasher()
		for off := int64(0); err == nil && off < benchBytes; off += int64(len(payload)) {
			g := holdfast.Group{Payload: payload}
			refs := make([]holdfast.Ref, 16)
			for i := range refs {
				c := payload[i*piece:][:piece]
				le.PutUint64(c, uint64(off)+uint64(i))
				g.Chunks = append(g.Chunks, holdfast.Piece{Digest: h.Sum(c), Len: piece})
				refs[i] = holdfast.Ref{Extent: holdfast.Extent{Off: off + int64(i)*piece, Len: piece}, Digest: g.Chunks[i].Digest}
			}
			if err = w.Put(background, &g); err == nil {
				err = w.Place(background, refs)
			}
		}
		if err == nil {
			err = w.Close(background)
		}
		if err == nil {
			_, err = s.Commit(background, m)
		}
		return m.ID, err
	}
}

func BenchmarkBackup(b *testing.B) {
	p, backup := benchPool(b)
	b.SetBytes(benchBytes)
	for b.Loop() {
		id, err := backup()
		if err == nil {
			err = p.Delete(background, id)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func BenchmarkRestore(b *testing.B) {
	p, backup := benchPool(b)
	id, err := backup()
	if err != nil {
		b.Fatal(err)
	}
	s, err := p.Open(background, id)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchBytes)
	for b.Loop() {
		d := s.Manifest().Disks[0]
		if err := pools.ReadDisk(background, s, d.ID, holdfast.Extents{{Off: 0, Len: d.Size}}, discard{}, pools.ReadOptions{Domain: p.Traits().Domain}); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
