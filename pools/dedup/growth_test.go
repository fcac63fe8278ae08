package dedup

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// growthDigest makes the n-th digest of a run of them.
func growthDigest(seed, n uint64) (d holdfast.Digest) {
	r := rand.NewPCG(seed, n)
	for i := 0; i < len(d); i += 8 {
		binary.LittleEndian.PutUint64(d[i:], r.Uint64())
	}
	return d
}

// fill stores chunks whose payload is next to nothing, in one set, and returns it. A pool does not look into groups, so what it keeps of a
// chunk is what it keeps of any.
func fill(b *testing.B, p *Pool, chunks int) holdfast.Manifest {
	const size = 512
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}, Kind: holdfast.Full, VM: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}},
		Disks: []holdfast.Disk{{ID: holdfast.DiskID{ID: holdfast.NewID()}, Size: int64(chunks) * size}}}
	s, err := p.Begin(background, m)
	if err != nil {
		b.Fatal(err)
	}
	w, err := s.Disk(background, m.Disks[0].ID)
	if err != nil {
		b.Fatal(err)
	}
	g := holdfast.Group{Codec: holdfast.Zstd, Payload: []byte("payload")}
	var refs []holdfast.Ref
	for n := 0; n < chunks; {
		g.Chunks, refs = g.Chunks[:0], refs[:0]
		for ; n < chunks && len(g.Chunks) < holdfast.MaxGroupChunks; n++ {
			d := growthDigest(1, uint64(n))
			g.Chunks = append(g.Chunks, holdfast.Piece{Digest: d, Len: size})
			refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: int64(n) * size, Len: size}, Digest: d})
		}
		if err := w.Put(background, &g); err != nil {
			b.Fatal(err)
		}
		if err := w.Place(background, refs); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(background); err != nil {
		b.Fatal(err)
	}
	if _, err := s.Commit(background, m); err != nil {
		b.Fatal(err)
	}
	return m
}

// BenchmarkGrowth tells how a pool's costs grow with its chunks: HOLDFAST_GROWTH lists their numbers. For each, one pool on the disk of
// TMPDIR is filled, asked for chunks it has (in order and at random) and has not, collected, and opened again.
func BenchmarkGrowth(b *testing.B) {
	sizes := os.Getenv("HOLDFAST_GROWTH")
	if sizes == "" {
		sizes = "10000,100000"
	}
	for _, f := range strings.Split(sizes, ",") {
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			for b.Loop() {
				grow(b, n)
			}
		})
	}
}

func grow(b *testing.B, n int) {
	fs, err := fsys.NewOS(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	id := create(b, fs)
	before := heap()
	p := open(b, fs, id)
	start := time.Now()
	fill(b, p, n)
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "stored/s")
	s, w := asker(b, p)
	for name, pick := range map[string]func(i int) holdfast.Digest{
		"ordered/s": func(i int) holdfast.Digest { return growthDigest(1, uint64(i%n)) },
		"missing/s": func(i int) holdfast.Digest { return growthDigest(2, uint64(i)) },
	} {
		b.ReportMetric(asks(b, w, min(n, 2_000_000), pick), name)
	}
	if err := s.Abort(background); err != nil {
		b.Fatal(err)
	}
	start = time.Now()
	if _, err := p.Collect(background, pools.CollectOptions{}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "marked/s")
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
	start = time.Now()
	p = open(b, fs, id)
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "opened/s")
	b.ReportMetric(float64(heap()-before)/float64(n), "B/chunk")
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
}

func asker(b *testing.B, p *Pool) (pools.Session, pools.DiskWriter) {
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}, Kind: holdfast.Full, VM: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}},
		Disks: []holdfast.Disk{{ID: holdfast.DiskID{ID: holdfast.NewID()}, Size: 1 << 20}}}
	s, err := p.Begin(background, m)
	if err != nil {
		b.Fatal(err)
	}
	w, err := s.Disk(background, m.Disks[0].ID)
	if err != nil {
		b.Fatal(err)
	}
	return s, w
}

// asks returns the rate of look-ups in batches as agents send them.
func asks(b *testing.B, w pools.DiskWriter, n int, pick func(i int) holdfast.Digest) float64 {
	const batch = 512
	ds, missing := make([]holdfast.Digest, batch), make([]bool, batch)
	var took time.Duration
	for at := 0; at < n; at += batch {
		for i := range ds {
			ds[i] = pick(at + i)
		}
		start := time.Now()
		if err := w.Missing(background, ds, missing); err != nil {
			b.Fatal(err)
		}
		took += time.Since(start)
	}
	return float64(n) / took.Seconds()
}

// heap returns the bytes of live objects.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkHundredDays backs a disk up a hundred times, keeps thirty points, and collects each week: 2 % of the disk change a day, three in
// five writes in hot places. It tells how much collecting copied for each byte it gave back, and how fast the newest point is read
// compared to the first one.
func BenchmarkHundredDays(b *testing.B) {
	for b.Loop() {
		hundredDays(b)
	}
}

const (
	dayChunk  = 16 << 10 // stored as it is: as large as 64 KiB are after compression
	dayChunks = 16 << 10 // 256 MiB stored
	dayGroup  = 16

	// As agents do: a group of so many chunks ends where the next one lies so far away.
	dayScattered = 2
	dayGap       = 16
)

type days struct {
	b       *testing.B
	p       *Pool
	rng     *rand.Rand
	payload []byte
	disk    holdfast.DiskID
	vm      holdfast.VMID
	newest  holdfast.SetID
	kept    []holdfast.SetID
}

func hundredDays(b *testing.B) {
	p, _ := benchPool(b, 0)
	d := &days{b: b, p: p, rng: rand.New(rand.NewPCG(1, 2)), vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	d.payload = make([]byte, dayGroup*dayChunk)
	all := make([]int, dayChunks)
	for i := range all {
		all[i] = i
	}
	d.backup(all)
	first := d.reads()
	var rep pools.CollectReport
	for day := range 100 {
		d.backup(d.changes())
		for len(d.kept) > 30 {
			if err := p.Delete(background, d.kept[0]); err != nil {
				b.Fatal(err)
			}
			d.kept = d.kept[1:]
		}
		if day%7 == 6 {
			r, err := p.Collect(background, pools.CollectOptions{})
			if err != nil {
				b.Fatal(err)
			}
			rep.Freed, rep.Copied, rep.Rewritten = rep.Freed+r.Freed, rep.Copied+r.Copied, rep.Rewritten+r.Rewritten
		}
	}
	last := d.reads()
	b.ReportMetric(float64(rep.Copied)/float64(max(rep.Freed+rep.Copied, 1)), "copied/dead")
	b.ReportMetric(float64(rep.Copied)/float64(max(rep.Freed, 1)), "copied/freed")
	b.ReportMetric(first, "first-MB/s")
	b.ReportMetric(last, "last-MB/s")
	b.ReportMetric(last/first, "last/first")
}

// changes picks chunks that a day changes, in runs.
func (d *days) changes() []int {
	seen := map[int]bool{}
	for len(seen) < dayChunks/50 {
		at := d.rng.IntN(dayChunks)
		if d.rng.IntN(5) < 3 {
			at = d.rng.IntN(dayChunks/200) * 200 // hot spots
		}
		for k := range 1 + d.rng.IntN(8) {
			if at+k < dayChunks {
				seen[at+k] = true
			}
		}
	}
	var out []int
	for i := range dayChunks {
		if seen[i] {
			out = append(out, i)
		}
	}
	return out
}

func (d *days) backup(which []int) {
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}, Kind: holdfast.Full, VM: holdfast.VMInfo{ID: d.vm}, Parent: d.newest,
		Disks: []holdfast.Disk{{ID: d.disk, Size: dayChunks * dayChunk, Inherit: !d.newest.IsZero()}}}
	if !d.newest.IsZero() {
		m.Kind = holdfast.Incremental
	}
	s, err := d.p.Begin(background, m)
	if err != nil {
		d.b.Fatal(err)
	}
	w, err := s.Disk(background, d.disk)
	if err != nil {
		d.b.Fatal(err)
	}
	h := d.p.hasher()
	defer d.p.hashers.Put(h)
	for at, n := 0, 0; at < len(which); at += n {
		for n = 1; n < dayGroup && at+n < len(which) && (n < dayScattered || which[at+n]-which[at+n-1] <= dayGap); n++ {
		}
		part := which[at : at+n]
		g := holdfast.Group{Codec: holdfast.Plain, Payload: d.payload[:len(part)*dayChunk]}
		var refs []holdfast.Ref
		for k, i := range part {
			p := d.payload[k*dayChunk:][:dayChunk]
			for at := 0; at < dayChunk; at += 8 {
				binary.LittleEndian.PutUint64(p[at:], d.rng.Uint64())
			}
			c := h.Sum(p)
			g.Chunks = append(g.Chunks, holdfast.Piece{Digest: c, Len: dayChunk})
			refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: int64(i) * dayChunk, Len: dayChunk}, Digest: c})
		}
		if err := w.Put(background, &g); err != nil {
			d.b.Fatal(err)
		}
		if err := w.Place(background, refs); err != nil {
			d.b.Fatal(err)
		}
	}
	if err := w.Close(background); err != nil {
		d.b.Fatal(err)
	}
	if _, err := s.Commit(background, m); err != nil {
		d.b.Fatal(err)
	}
	d.newest = m.ID
	d.kept = append(d.kept, m.ID)
}

// reads is the median of five reads.
func (d *days) reads() float64 {
	rates := make([]float64, 5)
	for i := range rates {
		rates[i] = d.read()
	}
	slices.Sort(rates)
	return rates[len(rates)/2]
}

// read reads the newest point and returns MB of disk a second.
func (d *days) read() float64 {
	s, err := d.p.Open(background, d.newest)
	if err != nil {
		d.b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	start := time.Now()
	n := int64(0)
	for pc, err := range s.Read(background, d.disk, holdfast.Extents{{Len: dayChunks * dayChunk}}) {
		if err != nil {
			d.b.Fatal(err)
		}
		for _, pl := range pc.Places {
			n += int64(pl.Len)
		}
		pc.Release()
	}
	if n != dayChunks*dayChunk {
		d.b.Fatalf("%d bytes read", n)
	}
	return float64(n) / 1e6 / time.Since(start).Seconds()
}
