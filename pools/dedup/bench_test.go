package dedup

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// benchPool makes a pool in a folder with one set of n groups of 16 chunks of 64 KiB, stored in 20 KiB each, as zstd would.
func benchPool(b *testing.B, n int) (*Pool, []holdfast.Group) {
	fs, err := fsys.NewOS(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	p := open(b, fs, create(b, fs))
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	})
	return p, benchGroupsOf(p, n)
}

// benchGroupsOf makes n groups of 16 chunks of 64 KiB, stored in 20 KiB each.
func benchGroupsOf(p *Pool, n int) []holdfast.Group {
	payload := noise(rand.New(rand.NewPCG(1, 1)), 320<<10)
	groups := make([]holdfast.Group, n)
	for i := range groups {
		g := &groups[i]
		g.Codec, g.Payload = holdfast.Zstd, payload
		for k := range 16 {
			var name [8]byte
			binary.LittleEndian.PutUint64(name[:], uint64(i*16+k))
			g.Chunks = append(g.Chunks, holdfast.Piece{Digest: p.domain.Hasher().Sum(name[:]), Len: 64 << 10})
		}
	}
	return groups
}

// ingest writes the groups as one set of one disk.
func ingest(b *testing.B, p *Pool, groups []holdfast.Group) holdfast.Manifest {
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}, Kind: holdfast.Full, VM: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}},
		Disks: []holdfast.Disk{{ID: holdfast.DiskID{ID: holdfast.NewID()}, Size: int64(len(groups)) << 20}}}
	s, err := p.Begin(background, m)
	if err != nil {
		b.Fatal(err)
	}
	w, err := s.Disk(background, m.Disks[0].ID)
	if err != nil {
		b.Fatal(err)
	}
	const batch = 256
	var refs []holdfast.Ref
	var ds []holdfast.Digest
	missing := make([]bool, 16*batch)
	for at := 0; at < len(groups); at += batch {
		part := groups[at:min(at+batch, len(groups))]
		refs, ds = refs[:0], ds[:0]
		for i := range part {
			for k, c := range part[i].Chunks {
				ds = append(ds, c.Digest)
				refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: int64(at+i)<<20 + int64(k)<<16, Len: 64 << 10}, Digest: c.Digest})
			}
		}
		if err := w.Missing(background, ds, missing[:len(ds)]); err != nil {
			b.Fatal(err)
		}
		for i := range part {
			if missing[16*i] {
				if err := w.Put(background, &part[i]); err != nil {
					b.Fatal(err)
				}
			}
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

const benchGroups = 1024 // 1 GiB of disk, 320 MiB stored

// BenchmarkIngestNew: rate in bytes of the disk, all new, without cutting, hashing and compressing.
func BenchmarkIngestNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		p, groups := benchPool(b, benchGroups)
		b.StartTimer()
		b.SetBytes(benchGroups << 20)
		ingest(b, p, groups)
	}
}

// BenchmarkIngestKnown: the same where everything is in the pool already.
func BenchmarkIngestKnown(b *testing.B) {
	p, groups := benchPool(b, benchGroups)
	ingest(b, p, groups)
	b.SetBytes(benchGroups << 20)
	b.ReportAllocs()
	for b.Loop() {
		ingest(b, p, groups)
	}
}

// BenchmarkRead: rate in bytes of the disk, parcels not decoded.
func BenchmarkRead(b *testing.B) {
	p, groups := benchPool(b, benchGroups)
	m := ingest(b, p, groups)
	b.SetBytes(benchGroups << 20)
	b.ReportAllocs()
	for b.Loop() {
		s, err := p.Open(background, m.ID)
		if err != nil {
			b.Fatal(err)
		}
		n := int64(0)
		for pc, err := range s.Read(background, m.Disks[0].ID, holdfast.Extents{{Off: 0, Len: benchGroups << 20}}) {
			if err != nil {
				b.Fatal(err)
			}
			for _, pl := range pc.Places {
				n += int64(pl.Len)
			}
			pc.Release()
		}
		if n != benchGroups<<20 {
			b.Fatalf("%d bytes read", n)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMark: a Collect with nothing to do, of sets that share nothing of their trees but all chunks.
func BenchmarkMark(b *testing.B) {
	p, groups := benchPool(b, benchGroups)
	ingest(b, p, groups)
	b.ReportAllocs()
	for b.Loop() {
		rep, err := p.Collect(background, pools.CollectOptions{})
		if err != nil || rep.ChunksDead != 0 {
			b.Fatalf("%+v %v", rep, err)
		}
	}
	b.ReportMetric(float64(benchGroups*16)*float64(b.N)/b.Elapsed().Seconds(), "chunks/s")
}
