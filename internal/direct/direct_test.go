package direct

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Goal: whatever is aligned and what is not, in whatever order, the file has the bytes. Method: random writes and reads beside a copy in
// memory, on a file system with direct I/O and on one without where there is one.
func TestFileHoldsWhatWasWritten(t *testing.T) {
	dirs := []string{t.TempDir()}
	if d, err := os.MkdirTemp("/dev/shm", "direct"); err == nil {
		defer os.RemoveAll(d)
		dirs = append(dirs, d)
	}
	for _, dir := range dirs {
		for seed := range uint64(4) {
			play(t, filepath.Join(dir, "f"), seed)
		}
	}
}

func play(t *testing.T, name string, seed uint64) {
	t.Helper()
	t.Logf("seed %d", seed)
	const size = 3 << 20
	rnd := rand.New(rand.NewPCG(seed, 3))
	os.Remove(name)
	plain, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	f := New(plain, true)
	defer f.Close()
	want := make([]byte, 0, size)
	buf := Buffer(size)
	for range 200 {
		n, off := rnd.IntN(256<<10)+1, rnd.IntN(size/2)
		if rnd.IntN(3) > 0 {
			n, off = (n+Align)&^(Align-1), off&^(Align-1)
		}
		p := buf[:n]
		if rnd.IntN(4) == 0 {
			p = buf[1 : n+1]
		}
		if rnd.IntN(2) == 0 {
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			if m, err := f.WriteAt(p, int64(off)); m != n || err != nil {
				t.Fatal(m, err)
			}
			want = want[:max(len(want), off+n)]
			copy(want[off:], p)
			continue
		}
		m, err := f.ReadAt(p, int64(off))
		have := max(0, min(n, len(want)-off))
		if m != have || (err == nil) != (m == n) || (m < n && !errors.Is(err, io.EOF)) {
			t.Fatalf("%d bytes at %d of %d: %d, %v", n, off, len(want), m, err)
		}
		if m > 0 && !bytes.Equal(p[:m], want[off:off+m]) {
			t.Fatalf("%d bytes at %d differ", m, off)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatal("the file differs", err)
	}
}

func TestWriteAppends(t *testing.T) {
	plain, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	f := New(plain, true)
	defer f.Close()
	p := Buffer(3<<20 + 4096)
	for i := range p {
		p[i] = byte(i >> 12)
	}
	p = p[:3<<20+77]
	for _, cut := range [][2]int{{0, 1 << 20}, {1 << 20, 3 << 20}, {3 << 20, len(p)}} {
		if n, err := f.Write(p[cut[0]:cut[1]]); n != cut[1]-cut[0] || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := plain.Sync(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(plain.Name()); err != nil || !bytes.Equal(got, p) {
		t.Fatal("the file differs", err)
	}
}

func TestErrorsAreTold(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	plain, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	f := New(plain, false)
	defer f.Close()
	if _, err := f.WriteAt(Buffer(1<<16), 0); err == nil {
		t.Error("a write to a file that is open for reading went well")
	}
}

func BenchmarkReadCached(b *testing.B) { benchRead(b, false) }
func BenchmarkReadDirect(b *testing.B) { benchRead(b, true) }

func benchRead(b *testing.B, uncached bool) {
	plain, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	p := Buffer(4 << 20)
	for range 16 {
		if _, err := plain.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	if err := plain.Sync(); err != nil {
		b.Fatal(err)
	}
	f := New(plain, false)
	if uncached {
		f.Uncached()
	}
	defer f.Close()
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if _, err := f.ReadAt(p, int64(i%16)*int64(len(p))); err != nil {
			b.Fatal(err)
		}
	}
}
