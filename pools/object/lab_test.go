package object

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

// fast is a clock that runs speed times as fast as the machine's, so that leases run out within a test.
type fast struct{ began time.Time }

const speed = 20

func newFast() fast { return fast{time.Now()} }

func (f fast) Now() time.Time { return f.began.Add(time.Since(f.began) * speed) }

func (f fast) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d / speed)
	return t.C, func() { t.Stop() }
}

// A lab writes and reads sets of one disk.
type lab struct {
	t    *testing.T
	ctx  context.Context // of backups
	p    pools.Pool
	disk holdfast.DiskID
}

func newLab(t *testing.T, p pools.Pool) *lab {
	return &lab{t: t, ctx: background, p: p, disk: holdfast.DiskID{ID: holdfast.NewID()}}
}

const (
	labChunk = 16 << 10
	labVM    = "payroll-db-07"
	labDisk  = "salaries-2026.vhdx"
)

func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// backup stores bytes at an offset of a disk that inherits from the parent.
func (l *lab) backup(size int64, parent holdfast.SetID, off int64, data []byte) (holdfast.SetID, error) {
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}, Kind: holdfast.Full, Parent: parent, VM: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: labVM},
		Disks: []holdfast.Disk{{ID: l.disk, Name: labDisk, Size: size, Inherit: !parent.IsZero()}}}
	if !parent.IsZero() {
		m.Kind = holdfast.Incremental
	}
	s, err := l.p.Begin(l.ctx, m)
	if err != nil {
		return m.ID, err
	}
	defer func() { _ = s.Abort(background) }()
	w, err := s.Disk(l.ctx, l.disk)
	if err != nil {
		return m.ID, err
	}
	h := l.p.Traits().Domain.Hasher()
	var refs []holdfast.Ref
	for at := 0; at < len(data); at += labChunk {
		c := data[at:min(at+labChunk, len(data))]
		g := holdfast.Group{Codec: holdfast.Plain, Payload: c, Chunks: []holdfast.Piece{{Digest: h.Sum(c), Len: uint32(len(c))}}}
		missing := make([]bool, 1)
		if err := w.Missing(l.ctx, []holdfast.Digest{g.Chunks[0].Digest}, missing); err != nil {
			return m.ID, err
		}
		if missing[0] {
			if err := w.Put(l.ctx, &g); err != nil {
				return m.ID, err
			}
		}
		refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: off + int64(at), Len: int64(len(c))}, Digest: g.Chunks[0].Digest})
	}
	if err := w.Place(l.ctx, refs); err != nil {
		return m.ID, err
	}
	if err := w.Close(l.ctx); err != nil {
		return m.ID, err
	}
	_, err = s.Commit(l.ctx, m)
	return m.ID, err
}

func (l *lab) restore(id holdfast.SetID) ([]byte, error) {
	s, err := l.p.Open(background, id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	size := s.Manifest().Disks[0].Size
	out := make([]byte, size)
	dec, h := chunk.NewDecoder(), l.p.Traits().Domain.Hasher()
	for pc, err := range s.Read(background, l.disk, holdfast.Extents{{Off: 0, Len: size}}) {
		if err != nil {
			return nil, err
		}
		plain, err := dec.Open(h, &pc.Group, nil, nil)
		if err != nil {
			return nil, err
		}
		for _, pl := range pc.Places {
			copy(out[pl.Off:], plain[pl.At:pl.At+pl.Len])
		}
		pc.Release()
	}
	return out, nil
}

func (l *lab) must(id holdfast.SetID, err error) holdfast.SetID {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("backup: %v (%s)", err, holdfast.HintOf(err))
	}
	return id
}

func (l *lab) same(id holdfast.SetID, want []byte) {
	l.t.Helper()
	got, err := l.restore(id)
	if err != nil {
		l.t.Fatalf("restore: %v", err)
	}
	if !bytes.Equal(got, want) {
		l.t.Fatalf("set %s does not restore what was backed up", id)
	}
}

func (l *lab) collect() pools.CollectReport {
	l.t.Helper()
	rep, err := l.p.(pools.Collector).Collect(background, pools.CollectOptions{})
	if err != nil {
		l.t.Fatalf("collect: %v", err)
	}
	return rep
}

func (l *lab) close() {
	l.t.Helper()
	if err := l.p.Close(); err != nil {
		l.t.Fatalf("close: %v", err)
	}
}
