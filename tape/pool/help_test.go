package pool

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	codec "github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

// A backup says what a set is to be: a disk of random bytes of which an incremental set changes some.
type backup struct {
	seed   uint64
	size   int64
	parent holdfast.SetID
	id     holdfast.SetID // zero: a new one
}

const piece = 64 << 10

var theDisk = holdfast.DiskID{ID: holdfast.ID{7, 7, 7}}

// content returns piece k of the disk as a seed has it.
func content(seed uint64, k int64) []byte {
	key := [2]uint64{seed, uint64(k)}
	if p, ok := contents.Load(key); ok {
		return p.([]byte)
	}
	rng, p := rand.New(rand.NewPCG(seed, uint64(k))), make([]byte, piece)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	contents.Store(key, p)
	return p
}

var contents sync.Map // they are made often

// tryBackup writes a set. An incremental one changes every third piece.
func (s *site) tryBackup(p pools.Pool, b backup) (holdfast.SetID, error) {
	if b.id.IsZero() {
		b.id = holdfast.SetID{ID: holdfast.NewID()}
	}
	m := holdfast.Manifest{ID: b.id, Created: time.Unix(int64(b.seed), 0).UTC(), Kind: holdfast.Full, VM: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.ID{5}}, Name: "mail"},
		Disks: []holdfast.Disk{{ID: theDisk, Name: "c.vhdx", Size: b.size}}}
	if !b.parent.IsZero() {
		m.Kind, m.Parent, m.Disks[0].Inherit = holdfast.Incremental, b.parent, true
	}
	ses, err := p.Begin(ctx, m)
	if err != nil {
		return b.id, err
	}
	if err := fill(p, ses, b, m); err != nil {
		_ = ses.Abort(ctx)
		return b.id, err
	}
	_, err = ses.Commit(ctx, m)
	return b.id, err
}

func fill(p pools.Pool, ses pools.Session, b backup, m holdfast.Manifest) error {
	w, err := ses.Disk(ctx, theDisk)
	if err != nil {
		return err
	}
	h, enc := p.Traits().Domain.Hasher(), codec.NewEncoder(codec.LevelOff)
	for k := range b.size / piece {
		if m.Disks[0].Inherit && (k+int64(b.seed))%3 != 0 {
			continue
		}
		data := content(b.seed, k)
		d := h.Sum(data)
		g := codec.NewBuilder()
		g.Add(d, data)
		group := g.Encode(enc, nil)
		if err := w.Put(ctx, &group); err != nil {
			return err
		}
		if err := w.Place(ctx, []holdfast.Ref{{Extent: holdfast.Extent{Off: k * piece, Len: piece}, Digest: d}}); err != nil {
			return err
		}
	}
	return w.Close(ctx)
}

func (s *site) backup(p pools.Pool, b backup) holdfast.SetID {
	s.t.Helper()
	id, err := s.tryBackup(p, b)
	s.must(err)
	return id
}

// image is a disk in memory.
type image struct {
	mu sync.Mutex
	b  []byte
}

func (i *image) WriteAt(p []byte, off int64) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return copy(i.b[off:], p), nil
}

func (s *site) tryRestore(p pools.Pool, id holdfast.SetID) ([]byte, error) {
	set, err := p.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	size := set.Manifest().Disks[0].Size
	img := &image{b: make([]byte, size)}
	err = pools.ReadDisk(ctx, set, theDisk, holdfast.Extents{{Off: 0, Len: size}}, img, pools.ReadOptions{Domain: p.Traits().Domain})
	if cerr := set.Close(); err == nil {
		err = cerr
	}
	return img.b, err
}

func (s *site) restore(p pools.Pool, id holdfast.SetID) []byte {
	s.t.Helper()
	b, err := s.tryRestore(p, id)
	s.must(err)
	return b
}

// model is what a chain of backups should restore to.
func model(size int64, seeds ...uint64) []byte {
	out := make([]byte, size)
	for n, seed := range seeds {
		for k := range size / piece {
			if n == 0 || (k+int64(seed))%3 == 0 {
				copy(out[k*piece:], content(seed, k))
			}
		}
	}
	return out
}

func (s *site) same(what string, got, want []byte) {
	if string(got) != string(want) {
		s.t.Helper()
		s.t.Errorf("%s: restored bytes differ", what)
	}
}

func wantKind(t interface {
	Helper()
	Errorf(string, ...any)
}, what string, err error, k holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != k {
		t.Errorf("%s: %v, want %v", what, err, k)
	}
}
