package mount

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
)

var domain = holdfast.Domain{Key: [32]byte{9}}

// A store delivers a disk as a pool does: groups of chunks as they rest, in an order of its own, zeros left out.
type store struct {
	image   []byte
	data    holdfast.Extents // of the image
	exact   bool
	noMap   bool
	gate    chan struct{} // fetches wait for it; nil: they do not
	spoil   atomic.Int32  // how many fetches are to be spoilt
	how     string        // flip, lose, wrong-place
	fetches atomic.Int32
	bytes   atomic.Int64
}

func (s *store) Map(context.Context, int) (Map, error) {
	if s.noMap {
		return Map{}, errors.New("there is none")
	}
	return Map{Extents: s.data, Exact: s.exact}, nil
}

func (s *store) Fetch(ctx context.Context, _ int, e holdfast.Extent, put func(holdfast.Domain, *holdfast.Parcel) error) error {
	s.fetches.Add(1)
	s.bytes.Add(e.Len)
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	spoilt := s.spoil.Add(-1) >= 0
	enc, h := chunk.NewEncoder(chunk.LevelFast), domain.Hasher()
	parts := s.data.Intersect(holdfast.Extents{e})
	slices.Reverse(parts)
	for _, x := range parts {
		for off := x.Off; off < x.End(); off += 30 << 10 {
			n := min(x.End()-off, 30<<10)
			b := chunk.NewBuilder()
			extra := []byte("a chunk that nobody wanted")
			b.Add(h.Sum(extra), extra)
			at := len(extra)
			b.Add(h.Sum(s.image[off:off+n]), s.image[off:off+n])
			p := &holdfast.Parcel{Group: b.Encode(enc, nil), Places: []holdfast.Place{{Off: off, At: uint32(at), Len: uint32(n)}}}
			if spoilt {
				switch s.how {
				case "flip":
					p.Payload = bytes.Clone(p.Payload)
					p.Payload[len(p.Payload)-1] ^= 1
				case "lose":
					spoilt = false
					continue
				case "wrong-place":
					p.Places[0].Off = e.End() - 1
				}
			}
			if err := put(domain, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// newStore makes a disk with data in some places.
func newStore(rng *rand.Rand, size int64) *store {
	s := &store{image: make([]byte, size), exact: true}
	for off := int64(0); off < size; {
		n := min(1+rng.Int64N(600<<10), size-off)
		if rng.IntN(2) == 0 {
			for i := off; i < off+n; i++ {
				s.image[i] = byte(rng.Uint32()) | 1
			}
			s.data = append(s.data, holdfast.Extent{Off: off, Len: n})
		}
		off += n
	}
	s.data = s.data.Normal(size)
	return s
}

func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func open(t *testing.T, s Source, size int64) *Disk {
	t.Helper()
	d := NewDisk(t.Context(), Options{Source: s, Size: size, Cache: MinCache})
	t.Cleanup(func() { d.Close() })
	return d
}

// TestAnyByteIsReadInAnyOrder reads at random, on, and from several goroutines, with a cache smaller than the disk, with a map, without one, and
// before it has come.
func TestAnyByteIsReadInAnyOrder(t *testing.T) {
	rng := newRand(t)
	s := newStore(rng, 24<<20+1234)
	for _, c := range []struct{ name string }{{"exact map"}, {"joined map"}, {"no map"}} {
		s.exact, s.noMap = c.name == "exact map", c.name == "no map"
		d := open(t, s, int64(len(s.image)))
		var wg sync.WaitGroup
		for range 4 {
			mine := rand.New(rand.NewPCG(rng.Uint64(), 1))
			wg.Go(func() {
				for range 60 {
					off, n := mine.Int64N(d.Size()), 1+mine.Int64N(1<<mine.IntN(22))
					run := 1 + mine.IntN(4) // several on end are a reader that reads on
					for ; run > 0; run-- {
						b := make([]byte, n)
						k, err := d.ReadAt(b, off)
						want := s.image[off:min(off+n, d.Size())]
						if (err != nil) != (len(want) < len(b)) || err != nil && err != io.EOF || k != len(want) || !bytes.Equal(b[:k], want) {
							t.Errorf("%s: %d bytes at %d: %d, %v, or they differ", c.name, n, off, k, err)
							return
						}
						if off += n; off >= d.Size() {
							break
						}
					}
				}
			})
		}
		wg.Wait()
		d.mu.Lock()
		if n := int64(d.recent.Len()) * Block; n > MinCache {
			t.Errorf("%s: %d bytes are kept", c.name, n)
		}
		d.mu.Unlock()
		if _, err := d.ReadAt(make([]byte, 1), d.Size()); err != io.EOF {
			t.Errorf("behind the end: %v", err)
		}
		if _, err := d.ReadAt(make([]byte, 1), -1); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("before the start: %v", err)
		}
	}
}

// TestReadingOnFetchesFewLargePieces reads a disk from end to end in small reads: it comes in large fetches, once, and holes are not asked for.
func TestReadingOnFetchesFewLargePieces(t *testing.T) {
	rng := newRand(t)
	s := &store{image: make([]byte, 64<<20), exact: true, data: holdfast.Extents{{Off: 0, Len: 32 << 20}}}
	for i := range s.image[:32<<20] {
		s.image[i] = byte(rng.Uint32()) | 1
	}
	d := open(t, s, int64(len(s.image)))
	<-d.Mapped()
	b := make([]byte, 64<<10)
	for off := int64(0); off < d.Size(); off += int64(len(b)) {
		if _, err := d.ReadAt(b, off); err != nil || !bytes.Equal(b, s.image[off:off+int64(len(b))]) {
			t.Fatalf("at %d: %v, or it differs", off, err)
		}
	}
	if n, all := s.fetches.Load(), s.bytes.Load(); n > 40 || all != 32<<20 {
		t.Errorf("%d fetches of %d bytes together", n, all)
	}
	random := open(t, s, int64(len(s.image)))
	s.bytes.Store(0)
	for range 20 {
		if _, err := random.ReadAt(b[:4096], rng.Int64N(30<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if all := s.bytes.Load(); all > 20*2*Block+maxAhead*Block {
		t.Errorf("%d bytes were fetched for 20 small reads", all)
	}
}

// TestNothingWrongIsHandedOut spoils what comes: the read fails with its kind, and the next one, of good bytes, works.
func TestNothingWrongIsHandedOut(t *testing.T) {
	rng := newRand(t)
	s := newStore(rng, 4<<20)
	s.data = holdfast.Extents{{Off: 0, Len: 4 << 20}}
	for i := range s.image {
		s.image[i] |= 1
	}
	for _, how := range []string{"flip", "lose", "wrong-place"} {
		d := open(t, s, int64(len(s.image)))
		<-d.Mapped()
		s.how = how
		s.spoil.Store(100)
		b := make([]byte, 1<<20)
		if _, err := d.ReadAt(b, 100<<10); !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("%s: %v", how, err)
		}
		s.spoil.Store(0)
		if _, err := d.ReadAt(b, 100<<10); err != nil || !bytes.Equal(b, s.image[100<<10:100<<10+1<<20]) {
			t.Errorf("%s: afterwards: %v, or it differs", how, err)
		}
	}
}

// TestTheEndFreesReaders closes a disk whose fetches hang: readers hear of it, and so do later ones. A write is refused at any time.
func TestTheEndFreesReaders(t *testing.T) {
	s := newStore(newRand(t), 1<<20)
	s.data, s.gate = holdfast.Extents{{Off: 0, Len: 1 << 20}}, make(chan struct{})
	d := open(t, s, 1<<20)
	got := make(chan error)
	go func() {
		_, err := d.ReadAt(make([]byte, 10), 0)
		got <- err
	}()
	for s.fetches.Load() == 0 {
		<-d.Mapped() // the fetch begins in a goroutine of its own
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, holdfast.Offline) {
		t.Errorf("the reader hears %v", err)
	}
	if _, err := d.ReadAt(make([]byte, 10), 0); !errors.Is(err, holdfast.Offline) {
		t.Errorf("a later reader hears %v", err)
	}
	if _, err := d.WriteAt([]byte{1}, 0); !errors.Is(err, holdfast.Permission) {
		t.Errorf("a writer hears %v", err)
	}
}

// TestAnOverlayIsADiskOfItsOwn compares random writes, zeros and reads with a copy in memory; the disk below never changes, and the scratch
// folder is empty all the time.
func TestAnOverlayIsADiskOfItsOwn(t *testing.T) {
	rng := newRand(t)
	const size = 6<<20 + 1000
	s := newStore(rng, size)
	below := open(t, s, size)
	<-below.Mapped()
	dir := t.TempDir()
	o, err := NewOverlay(below, dir)
	if err != nil {
		t.Fatal(err)
	}
	truth := bytes.Clone(s.image)
	for step := range 600 {
		off := rng.Int64N(size)
		n := min(1+rng.Int64N(1<<rng.IntN(19)), size-off)
		if rng.IntN(2) == 0 { // as file systems write
			off -= off % grain
			n = min(n+(grain-n%grain)%grain, size-off)
		}
		switch rng.IntN(4) {
		case 0:
			clear(truth[off : off+n])
			err = o.Zero(off, n)
		case 1:
			for i := off; i < off+n; i++ {
				truth[i] = byte(rng.Uint32())
			}
			_, err = o.WriteAt(truth[off:off+n], off)
		default:
			b := make([]byte, n)
			if _, err = o.ReadAt(b, off); err == nil && !bytes.Equal(b, truth[off:off+n]) {
				t.Fatalf("step %d: %d bytes at %d differ", step, n, off)
			}
		}
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
	}
	data, err := o.Allocated(0, size)
	if err != nil {
		t.Fatal(err)
	}
	for _, hole := range (holdfast.Extents{{Off: 0, Len: size}}).Subtract(data) {
		if !chunk.IsZero(truth[hole.Off:hole.End()]) {
			t.Errorf("%+v is said to be zeros", hole)
		}
	}
	if data.Total() == size || o.Written() == 0 {
		t.Errorf("%d bytes may hold data, %d were written", data.Total(), o.Written())
	}
	b := make([]byte, size)
	if _, err := below.ReadAt(b, 0); err != nil || !bytes.Equal(b, s.image) {
		t.Errorf("the disk below changed, or %v", err)
	}
	if _, err := o.WriteAt([]byte{1, 2}, size-1); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("over the end: %v", err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	if _, err := NewOverlay(below, filepath.Join(dir, "none")); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("in a folder that is not there: %v", err)
	}
}

// TestFileNamesAreSafeAndTheirOwn gives names from a backup to files of a folder.
func TestFileNamesAreSafeAndTheirOwn(t *testing.T) {
	got := FileNames([]string{"a.raw", "a.raw", "../../etc/passwd", "", "..", "a.raw-2", `C:\x`, "new\nline"})
	want := []string{"a.raw", "a.raw-2", "_.._etc_passwd", "file", "file-2", "a.raw-2-2", "C__x", "new_line"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
