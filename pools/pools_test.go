package pools_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
)

// These tests are about what can be done with any pool: Copy, Verify and ReadDisk. That they work with sound pools is also
// checked by pooltest; here pools are damaged, lie, and share domains.

var ctx = context.Background()

const chunkLen = 10_000

// newPool makes a memory pool; of a domain, if one is given.
func newPool(t *testing.T, d ...holdfast.Domain) (*memory.Pool, *memory.Medium) {
	t.Helper()
	c, err := holdfast.ParseChunking("")
	if err != nil {
		t.Fatal(err)
	}
	m, err := memory.NewMedium(holdfast.PoolID{ID: holdfast.NewID()}, c)
	if err != nil {
		t.Fatal(err)
	}
	if len(d) > 0 {
		if m, err = memory.FromState(memory.State{ID: holdfast.PoolID{ID: holdfast.NewID()}, Domain: d[0], Chunking: c}); err != nil {
			t.Fatal(err)
		}
	}
	p, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	return p, m
}

var diskID = holdfast.DiskID{ID: holdfast.ID{1}}

// chunks returns n chunks of random bytes.
func chunks(seed uint64, n int) [][]byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, chunkLen)
		for k := range out[i] {
			out[i][k] = byte(rng.Uint32())
		}
	}
	return out
}

// backup writes a set of one disk of the chunks, one after the other, per group in a group, with a gap of zeros behind.
func backup(t *testing.T, p pools.Pool, group int, data [][]byte) holdfast.Manifest {
	t.Helper()
	m := holdfast.Manifest{
		ID: holdfast.SetID{ID: holdfast.NewID()}, Kind: holdfast.Full, VM: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.ID{2}}, Name: "mail"},
		Disks: []holdfast.Disk{{ID: diskID, Name: "root.vhdx", Size: 1 << 30}},
	}
	h, enc := p.Traits().Domain.Hasher(), chunk.NewEncoder(chunk.LevelDefault)
	s, err := p.Begin(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Disk(ctx, diskID)
	if err != nil {
		t.Fatal(err)
	}
	off := int64(0)
	for part := range slices.Chunk(data, group) {
		b := chunk.NewBuilder()
		var refs []holdfast.Ref
		for _, c := range part {
			d := h.Sum(c)
			b.Add(d, c)
			refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: int64(len(c))}, Digest: d})
			off += int64(len(c))
		}
		g := b.Encode(enc, nil)
		if err := w.Put(ctx, &g); err != nil {
			t.Fatal(err)
		}
		if err := w.Place(ctx, refs); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := s.Commit(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	return r.Manifest
}

// A sink is an io.WriterAt that keeps the first MiBs of a disk, which is where backup writes.
type sink struct {
	mu  sync.Mutex
	p   []byte
	err error
}

func (s *sink) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return copy(s.p[off:], p), nil
}

// restore reads the whole disk.
func restore(t *testing.T, p pools.Pool, id holdfast.SetID, n int) ([]byte, error) {
	t.Helper()
	s, err := p.Open(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out := &sink{p: make([]byte, n)}
	err = pools.ReadDisk(ctx, s, diskID, holdfast.Extents{{Off: 0, Len: 1 << 30}}, out, pools.ReadOptions{Domain: p.Traits().Domain, Workers: 2})
	return out.p, err
}

func wantKind(t *testing.T, err error, k holdfast.Kind, doing string) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != k {
		t.Errorf("%s: got %v, want kind %v", doing, err, k)
	}
}

// TestCopySendsOnlyWhatIsLacking: in one domain groups pass as they are, and what the other side has is neither read nor sent.
func TestCopySendsOnlyWhatIsLacking(t *testing.T) {
	src, from := newPool(t)
	dst, to := newPool(t, src.Traits().Domain)
	data := chunks(1, 60)
	first := backup(t, src, 20, data[:40])
	second := backup(t, src, 20, append(slices.Clone(data[20:40]), data[40:]...))
	third := backup(t, src, 20, slices.Concat(data[:1], data[59:]))
	sent := func(m holdfast.Manifest) int64 {
		var meter holdfast.Meter
		r, err := pools.Copy(ctx, dst, src, m.ID, &meter)
		if err != nil {
			t.Fatal(err)
		}
		s := meter.Sample()
		if s.Done != s.Total || s.Total != 1<<30 || s.Read != s.Sent || s.Stored != r.Manifest.Stats.Stored {
			t.Errorf("the meter says %+v", s)
		}
		return s.Sent
	}
	if n := sent(first); n != 40*chunkLen {
		t.Errorf("the first copy sent %d bytes", n)
	}
	if n := sent(second); n != 20*chunkLen {
		t.Errorf("the second copy sent %d bytes, of which 20 chunks were new", n)
	}
	if n := sent(third); n != 0 {
		t.Errorf("a copy of known data sent %d bytes", n)
	}
	have := map[string]bool{}
	for _, g := range from.State().Groups {
		have[string(g.Payload)] = true
	}
	for _, g := range to.State().Groups {
		if !have[string(g.Payload)] || len(g.Chunks) != 20 {
			t.Errorf("a group of %d chunks did not pass as it was", len(g.Chunks))
		}
	}
	for _, m := range []holdfast.Manifest{first, second, third} {
		a, err := restore(t, src, m.ID, 40*chunkLen)
		b, err2 := restore(t, dst, m.ID, 40*chunkLen)
		if err != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("set %s: restores differ (%v, %v)", m.ID, err, err2)
		}
	}
}

// TestCopyTakesChunksOutOfGroups: a group of which little is needed does not pass as a whole.
func TestCopyTakesChunksOutOfGroups(t *testing.T) {
	src, _ := newPool(t)
	dst, _ := newPool(t, src.Traits().Domain)
	data := chunks(2, 20)
	backup(t, src, 20, data)
	m := backup(t, src, 1, data[7:10]) // three chunks of the group above
	r, err := pools.Copy(ctx, dst, src, m.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Manifest.Stats.Stored; n != 3*chunkLen {
		t.Errorf("three chunks took %d bytes", n)
	}
	if got, err := restore(t, dst, m.ID, 3*chunkLen); err != nil || !bytes.Equal(got, slices.Concat(data[7:10]...)) {
		t.Errorf("the copy differs: %v", err)
	}
}

// TestCopyOfDamageFails: a copy of damaged data is an error that names it, and no set.
func TestCopyOfDamageFails(t *testing.T) {
	for _, same := range []bool{true, false} {
		src, medium := newPool(t)
		dst, _ := newPool(t)
		if same {
			dst, _ = newPool(t, src.Traits().Domain)
		}
		data := chunks(3, 30)
		m := backup(t, src, 10, data)
		medium.Flip(src.Traits().Domain.Hasher().Sum(data[15]))
		_, err := pools.Copy(ctx, dst, src, m.ID, nil)
		wantKind(t, err, holdfast.Corrupt, "copy of a damaged set")
		_, err = dst.Open(ctx, m.ID)
		wantKind(t, err, holdfast.NotExist, "open the copy")
		if err := dst.Close(); err != nil { // fails if a session was left
			t.Error(err)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A liar is a pool whose sets deliver other parcels than they should.
type liar struct {
	pools.Pool
	read func(iter.Seq2[*holdfast.Parcel, error]) iter.Seq2[*holdfast.Parcel, error]
}

func (l liar) Open(ctx context.Context, id holdfast.SetID) (pools.Set, error) {
	s, err := l.Pool.Open(ctx, id)
	return liarSet{s, l}, err
}

type liarSet struct {
	pools.Set
	l liar
}

func (s liarSet) Read(ctx context.Context, d holdfast.DiskID, want holdfast.Extents) iter.Seq2[*holdfast.Parcel, error] {
	return s.l.read(s.Set.Read(ctx, d, want))
}

// each makes a liar's read out of a change to parcel number n.
func each(n int, change func(p *holdfast.Parcel) (*holdfast.Parcel, error)) func(iter.Seq2[*holdfast.Parcel, error]) iter.Seq2[*holdfast.Parcel, error] {
	return func(all iter.Seq2[*holdfast.Parcel, error]) iter.Seq2[*holdfast.Parcel, error] {
		return func(yield func(*holdfast.Parcel, error) bool) {
			i := 0
			for p, err := range all {
				if i == n && err == nil {
					p, err = change(p)
				}
				i++
				if p == nil && err == nil {
					continue
				}
				if !yield(p, err) || err != nil {
					return
				}
			}
		}
	}
}

// TestReadDiskNoticesEveryLie: a restore never ends well with a hole, a double or a wrong byte.
func TestReadDiskNoticesEveryLie(t *testing.T) {
	p, _ := newPool(t)
	data := chunks(4, 60)
	m := backup(t, p, 20, data)
	broken := errors.New("broken")
	for name, change := range map[string]func(p *holdfast.Parcel) (*holdfast.Parcel, error){
		"a parcel is lost":            func(p *holdfast.Parcel) (*holdfast.Parcel, error) { return nil, nil },
		"a place is lost":             func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Places = p.Places[1:]; return p, nil },
		"a place is there twice":      func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Places[0] = p.Places[1]; return p, nil },
		"a place is a byte short":     func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Places[3].Len--; return p, nil },
		"a byte is another":           func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Payload[77] ^= 1; return p, nil },
		"a digest is another":         func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Chunks[2].Digest[0] ^= 1; return p, nil },
		"a place is outside the disk": func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Places[0].Off = 1 << 40; return p, nil },
		"a place is before the disk":  func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Places[0].Off = -1; return p, nil },
		"a place is beyond the group": func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Places[0].At = 1 << 31; return p, nil },
		"a place is empty":            func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Places[0].Len = 0; return p, nil },
		"a group is out of bounds":    func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Chunks[0].Len = 1 << 30; return p, nil },
	} {
		_, err := restore(t, liar{p, each(1, change)}, m.ID, 60*chunkLen)
		wantKind(t, err, holdfast.Corrupt, name)
	}
	_, err := restore(t, liar{p, each(1, func(p *holdfast.Parcel) (*holdfast.Parcel, error) { p.Release(); return nil, broken })}, m.ID, 60*chunkLen)
	if !errors.Is(err, broken) {
		t.Errorf("the read's error came back as %v", err)
	}
	got, err := restore(t, p, m.ID, 60*chunkLen)
	if err != nil || !bytes.Equal(got, slices.Concat(data...)) {
		t.Errorf("without a lie the restore differs: %v", err)
	}
}

// TestReadDiskStops: an error of the writer and a cancelled context end the restore, and parcels are released.
func TestReadDiskStops(t *testing.T) {
	p, _ := newPool(t)
	m := backup(t, p, 1, chunks(5, 100))
	s, err := p.Open(ctx, m.ID)
	if err != nil {
		t.Fatal(err)
	}
	all := holdfast.Extents{{Off: 0, Len: 1 << 30}}
	o := pools.ReadOptions{Domain: p.Traits().Domain, Workers: 3}
	full := holdfast.Errorf(holdfast.NoSpace, "write", "the target is full")
	wantKind(t, pools.ReadDisk(ctx, s, diskID, all, &sink{err: full}, o), holdfast.NoSpace, "restore to a full target")
	gone, cancel := context.WithCancel(ctx)
	cancel()
	wantKind(t, pools.ReadDisk(gone, s, diskID, all, &sink{}, o), holdfast.Cancelled, "restore with a cancelled context")
	wantKind(t, pools.ReadDisk(ctx, s, holdfast.DiskID{}, all, &sink{}, o), holdfast.NotExist, "restore of an unknown disk")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestVerifyByReadingNamesWhatIsBad: exactly the damaged chunks are named, also where the pool itself notices and stops.
func TestVerifyByReadingNamesWhatIsBad(t *testing.T) {
	p, medium := newPool(t)
	data := chunks(6, 50)
	m := backup(t, p, 10, data)
	bad := map[int]bool{3: true, 4: true, 27: true, 49: true}
	h := p.Traits().Domain.Hasher()
	for i := range bad {
		medium.Flip(h.Sum(data[i]))
	}
	stops := liar{p, func(all iter.Seq2[*holdfast.Parcel, error]) iter.Seq2[*holdfast.Parcel, error] {
		return func(yield func(*holdfast.Parcel, error) bool) {
			for p, err := range all {
				at := 0
				for _, pl := range p.Places {
					if h.Sum(p.Payload[pl.At:pl.At+pl.Len]) != p.Chunks[pl.At/chunkLen].Digest {
						at++
					}
				}
				if at > 0 {
					p.Release()
					yield(nil, holdfast.Errorf(holdfast.Corrupt, "read", "a group of which %d chunks are bad", at))
					return
				}
				if !yield(p, err) {
					return
				}
			}
		}
	}}
	for name, p := range map[string]pools.Pool{"the pool delivers damage": p, "the pool stops at damage": stops} {
		r, err := pools.VerifyByReading(ctx, p, pools.VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got holdfast.Extents
		for _, d := range r.Damaged {
			if d.VM != "mail" || d.Disk != "root.vhdx" || d.Set != m.ID || d.Text == "" {
				t.Errorf("%s: %+v", name, d)
			}
			got = append(got, d.Extents...)
		}
		var want holdfast.Extents
		for i := range bad {
			want = append(want, holdfast.Extent{Off: int64(i) * chunkLen, Len: chunkLen})
		}
		if len(r.Damaged) != len(bad) || !slices.Equal(got.Normal(1<<30), want.Normal(1<<30)) {
			t.Errorf("%s: %d entries, extents %v, want %v", name, len(r.Damaged), got.Normal(1<<30), want.Normal(1<<30))
		}
		if r.Sets != 1 {
			t.Errorf("%s: %d sets", name, r.Sets)
		}
	}
	lost := liar{p, each(2, func(*holdfast.Parcel) (*holdfast.Parcel, error) { return nil, nil })}
	if r, err := pools.VerifyByReading(ctx, lost, pools.VerifyOptions{}); err != nil || len(r.Damaged) != len(bad)+9 { // 27 lies in the lost ten
		t.Errorf("a pool that does not deliver ten chunks: %d entries, %v", len(r.Damaged), err)
	}
	offline := liar{p, each(2, func(*holdfast.Parcel) (*holdfast.Parcel, error) {
		return nil, holdfast.Errorf(holdfast.Offline, "read", "no medium")
	})}
	_, err := pools.VerifyByReading(ctx, offline, pools.VerifyOptions{})
	wantKind(t, err, holdfast.Offline, "verify of a pool that goes offline")
}

// TestCheckRefsAcceptsWhatIsInBounds: the refusals are in pooltest; here is what just fits.
func TestCheckRefsAcceptsWhatIsInBounds(t *testing.T) {
	d := holdfast.Digest{1}
	refs := []holdfast.Ref{
		{Extent: holdfast.Extent{Off: 512, Len: 1}, Digest: d, Skip: holdfast.MaxChunk - 1},
		{Extent: holdfast.Extent{Off: 513, Len: holdfast.MaxChunk}, Digest: d},
		{Extent: holdfast.Extent{Off: 513 + holdfast.MaxChunk, Len: 1 << 40}},
	}
	if err := pools.CheckRefs(refs, 512, refs[2].End()); err != nil {
		t.Error(err)
	}
	wantKind(t, pools.CheckRefs(refs, 513, refs[2].End()), holdfast.Invalid, "one byte earlier than allowed")
	wantKind(t, pools.CheckRefs(refs, 512, refs[2].End()-1), holdfast.Invalid, "one byte more than the disk has")
	if c := pools.CutRef(refs[1], 600, 700); c.Skip != 600-513 || c.Off != 600 || c.Len != 100 || c.Digest != d {
		t.Errorf("cut: %+v", c)
	}
	if c := pools.CutRef(refs[2], 1<<30, 1<<31); c.Skip != 0 || !c.Digest.IsZero() {
		t.Errorf("cut of zeros: %+v", c)
	}
}
