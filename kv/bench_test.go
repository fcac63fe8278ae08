package kv

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast/fsys"
)

// filled makes a store like a pool's index: 32-byte random keys, 16-byte values.
func filled(b *testing.B, n int) *DB {
	f, err := fsys.NewOS(b.TempDir())
	must(b, err)
	d := mustOpen(b, f, Options{Incompressible: true, Bloom: true, CacheBytes: 32 << 20})
	rng := rand.NewChaCha8([32]byte{1})
	key, val := make([]byte, 32), make([]byte, 16)
	for at := 0; at < n; {
		batch := d.Batch()
		for range 1000 {
			_, _ = rng.Read(key)
			binary.LittleEndian.PutUint64(val, uint64(at))
			batch.Set(key, val)
			at++
		}
		must(b, batch.Commit(false))
	}
	return d
}

func BenchmarkScan(b *testing.B) {
	d := filled(b, 1_000_000)
	must(b, d.Compact())
	b.ResetTimer()
	n := 0
	for b.Loop() {
		n = 0
		for _, err := range d.Scan(nil, nil) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mkeys/s")
	must(b, d.Close())
}

func BenchmarkSet(b *testing.B) {
	f, err := fsys.NewOS(b.TempDir())
	must(b, err)
	d := mustOpen(b, f, Options{Incompressible: true})
	rng := rand.NewChaCha8([32]byte{1})
	key, val := make([]byte, 32), make([]byte, 16)
	for b.Loop() {
		batch := d.Batch()
		for range 1000 {
			_, _ = rng.Read(key)
			batch.Set(key, val)
		}
		must(b, batch.Commit(false))
	}
	b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mkeys/s")
	must(b, d.Close())
}

func BenchmarkSyncedCommit(b *testing.B) {
	f, err := fsys.NewOS(b.TempDir())
	must(b, err)
	d := mustOpen(b, f, Options{Precious: true})
	for b.Loop() {
		batch := d.Batch()
		batch.Set([]byte("key"), make([]byte, 1000))
		must(b, batch.Commit(true))
	}
	must(b, d.Close())
}
