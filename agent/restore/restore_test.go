package restore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
)

var domain = holdfast.Domain{Key: [32]byte{4}}

// memory is a target that counts its writes.
type memory struct {
	mu     sync.Mutex
	data   []byte
	writes int
	err    error
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.err != nil {
		return 0, m.err
	}
	return copy(m.data[off:], p), nil
}

// parcel packs pieces of image, each at its offset, into one group.
func parcel(level chunk.Level, image []byte, n int, offs ...int) *holdfast.Parcel {
	b, h := chunk.NewBuilder(), domain.Hasher()
	p := &holdfast.Parcel{}
	for _, off := range offs {
		q := image[off:min(off+n, len(image))]
		_, at := b.Len()
		p.Places = append(p.Places, holdfast.Place{Off: int64(off), At: uint32(at), Len: uint32(len(q))})
		b.Add(h.Sum(q), q)
	}
	p.Group = b.Encode(chunk.NewEncoder(level), nil)
	return p
}

func noise(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rnd.Uint32()) & 0x3f
	}
	return p
}

// Goal: parcels in any order give the disk bit for bit, each is released once, and neighbours are written together.
func TestParcelsInAnyOrderGiveTheDisk(t *testing.T) {
	const n = 32 << 10
	image := noise(1, 8<<20+512)
	var offs []int
	for off := 0; off < len(image); off += n {
		offs = append(offs, off)
	}
	for _, level := range []chunk.Level{chunk.LevelOff, chunk.LevelFast, chunk.LevelDefault} {
		to := &memory{data: make([]byte, len(image))}
		meter := &holdfast.Meter{}
		d := New(domain, to, int64(len(image)), Options{Meter: meter})
		var ps []*holdfast.Parcel
		for at := 0; at < len(offs); at += 16 {
			ps = append(ps, parcel(level, image, n, offs[at:min(at+16, len(offs))]...))
		}
		rnd := rand.New(rand.NewPCG(2, 2))
		rnd.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
		var freed atomic.Int32
		for _, p := range ps {
			p.Free = func() { freed.Add(1) }
			if err := d.Put(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		total, err := d.Close()
		if err != nil || total != int64(len(image)) || !bytes.Equal(to.data, image) {
			t.Fatalf("level %v: %d bytes, %v", level, total, err)
		}
		if int(freed.Load()) != len(ps) || to.writes != len(ps) || meter.Sample().Done != total {
			t.Errorf("level %v: %d of %d parcels freed, %d writes, %+v", level, freed.Load(), len(ps), to.writes, meter.Sample())
		}
	}
}

// Goal: nothing that is wrong is written, and everything is released. Method: spoilt parcels.
func TestNothingUnverifiedIsWritten(t *testing.T) {
	image := noise(3, 1<<20)
	for name, spoil := range map[string]func(p *holdfast.Parcel){
		"digest":            func(p *holdfast.Parcel) { p.Chunks[1].Digest[0]++ },
		"payload":           func(p *holdfast.Parcel) { p.Payload = p.Payload[:len(p.Payload)-1] },
		"outside the disk":  func(p *holdfast.Parcel) { p.Places[1].Off = int64(len(image)) - 1 },
		"before the disk":   func(p *holdfast.Parcel) { p.Places[0].Off = -4096 },
		"outside the group": func(p *holdfast.Parcel) { p.Places[1].At += 1 << 30 },
		"wraps around":      func(p *holdfast.Parcel) { p.Places[1].At, p.Places[1].Len = 1<<32-1, 2 },
		"empty place":       func(p *holdfast.Parcel) { p.Places[0].Len = 0 },
		"no chunks":         func(p *holdfast.Parcel) { p.Chunks = nil },
	} {
		to := &memory{data: make([]byte, len(image))}
		d := New(domain, to, int64(len(image)), Options{Workers: 1})
		p := parcel(chunk.LevelFast, image, 65536, 0, 262144)
		freed := false
		p.Free = func() { freed = true }
		spoil(p)
		err := d.Put(t.Context(), p)
		if err == nil {
			_, err = d.Close()
		}
		if holdfast.KindOf(err) != holdfast.Corrupt || to.writes != 0 || !freed {
			t.Errorf("%s: %v, %d writes, released %v", name, err, to.writes, freed)
		}
	}
}

// Goal: chunks that no place uses need not be sound: a pool may deliver a group with a chunk it knows to be damaged.
func TestUnusedChunksDoNotMatter(t *testing.T) {
	image := noise(3, 1<<20)
	to := &memory{data: make([]byte, len(image))}
	d := New(domain, to, int64(len(image)), Options{})
	p := parcel(chunk.LevelFast, image, 65536, 0, 65536, 131072)
	p.Chunks[1].Digest[0]++
	p.Places = append(p.Places[:1], p.Places[2:]...)
	if err := d.Put(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Close(); err != nil || n != 131072 || !bytes.Equal(to.data[131072:196608], image[131072:196608]) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// Goal: a target that fails ends the restore with its own kind, and later parcels are refused and released.
func TestTargetErrorsEndTheRestore(t *testing.T) {
	image := noise(3, 1<<20)
	to := &memory{data: make([]byte, len(image)), err: holdfast.Errorf(holdfast.NoSpace, "", "disk full")}
	d := New(domain, to, int64(len(image)), Options{Workers: 1})
	var released atomic.Int32
	var err error
	for range 100 {
		p := parcel(chunk.LevelOff, image, 4096, 0)
		p.Free = func() { released.Add(1) }
		if err = d.Put(t.Context(), p); err != nil {
			break
		}
	}
	if _, e := d.Close(); holdfast.KindOf(e) != holdfast.NoSpace || (err != nil && !errors.Is(err, e)) {
		t.Errorf("Put: %v; Close: %v", err, e)
	}
	if to.writes != 1 || released.Load() == 0 {
		t.Errorf("%d writes, %d released", to.writes, released.Load())
	}
}

func TestPutEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := New(domain, &memory{data: make([]byte, 4096)}, 4096, Options{Workers: 1})
	var freed atomic.Int32
	for range 200 {
		p := parcel(chunk.LevelOff, noise(1, 4096), 4096, 0)
		p.Free = func() { freed.Add(1) }
		if err := d.Put(ctx, p); err != nil {
			if !errors.Is(err, context.Canceled) && holdfast.KindOf(err) != holdfast.Corrupt {
				t.Error(err)
			}
			break
		}
	}
	if _, err := d.Close(); err != nil && holdfast.KindOf(err) != holdfast.Corrupt { // the same bytes twice are too many
		t.Error(err)
	}
}
