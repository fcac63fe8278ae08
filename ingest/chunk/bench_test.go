package chunk

import (
	"io"
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// corpus returns 64 MiB of the file that HOLDFAST_CORPUS names (a disk image, from its middle), or made-up content, whose rates
// and ratios mean little.
func corpus(b *testing.B) []byte {
	b.Helper()
	name := os.Getenv("HOLDFAST_CORPUS")
	if name == "" {
		return disk(1, 64<<20)
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64<<20)
	if n, err := f.ReadAt(p, st.Size()/2&^(Block-1)); err != nil && err != io.EOF {
		b.Fatal(err)
	} else {
		p = p[:n]
	}
	return p
}

func BenchmarkSplit(b *testing.B) {
	p := corpus(b)
	for _, name := range []string{"adaptive", "variable", "fixed-64K"} {
		b.Run(name, func(b *testing.B) {
			c, err := holdfast.ParseChunking(name)
			if err != nil {
				b.Fatal(err)
			}
			s, err := NewSplitter(c)
			if err != nil {
				b.Fatal(err)
			}
			const slab = 4 << 20 // as the agent reads
			spans := s.Split(p[:slab], 0, true, nil)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n = 0
				for at := 0; at < len(p); at += slab {
					spans = s.Split(p[at:min(at+slab, len(p))], int64(at), true, spans[:0])
					n += len(spans)
				}
			}
			b.ReportMetric(float64(len(p)/n>>10), "KiB/span")
		})
	}
}

func BenchmarkIsZero(b *testing.B) {
	p := make([]byte, 4<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if !IsZero(p) {
			b.Fatal("not zero")
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	p := corpus(b)
	noise := random(1, 16<<20)
	for _, level := range levels[1:] {
		for name, p := range map[string][]byte{"disk": p, "noise": noise} {
			b.Run(level.String()+"/"+name, func(b *testing.B) {
				e, dst := NewEncoder(level), make([]byte, 0, MaxEncoded)
				b.SetBytes(int64(len(p)))
				b.ReportAllocs()
				out := 0
				for b.Loop() {
					out = 0
					for at := 0; at < len(p); at += 1 << 20 {
						_, q := e.Encode(dst, p[at:min(at+1<<20, len(p))])
						out += len(q)
					}
				}
				b.ReportMetric(float64(len(p))/float64(out), "ratio")
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	p := corpus(b)
	h := holdfast.Domain{}.Hasher()
	for _, level := range levels {
		b.Run(level.String(), func(b *testing.B) {
			var gs []holdfast.Group
			for at := 0; at < len(p); at += 1 << 20 {
				gs = append(gs, group(NewEncoder(level), h, p[at:min(at+1<<20, len(p))], 65536))
			}
			d, buf := NewDecoder(), make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				for i := range gs {
					if _, err := d.Open(h, &gs[i], buf, nil); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
