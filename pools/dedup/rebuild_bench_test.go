package dedup

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// BenchmarkRebuildIndex opens a pool whose index folder was lost: the index is made from the containers' footers.
func BenchmarkRebuildIndex(b *testing.B) {
	fs, err := fsys.NewOS(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	t := &testing.T{}
	l := &lab{t: t, fs: fs, id: create(b, fs), vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	l.p = open(b, fs, l.id)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 64 { // containers of 8 MiB of data in chunks of 4 KiB: 131,072 chunks
		if _, err := l.backup(8<<20, holdfast.SetID{}, write{bytes: noise(rng, 8<<20)}); err != nil {
			b.Fatal(err)
		}
	}
	u, err := l.p.Usage(background)
	if err != nil {
		b.Fatal(err)
	}
	if err := l.p.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(u.Stored)
	for b.Loop() {
		b.StopTimer()
		names, err := fs.List("index")
		if err != nil {
			b.Fatal(err)
		}
		for _, n := range names {
			if err := fs.Remove("index/" + n); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		if err := open(b, fs, l.id).Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(u.Chunks)*float64(b.N)/b.Elapsed().Seconds(), "chunks/s")
}
