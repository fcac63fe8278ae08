package dedup

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

// A lab writes and reads sets of one pool and knows what they must hold.
type lab struct {
	t    *testing.T
	fs   fsys.FS
	id   holdfast.PoolID
	p    *Pool
	vm   holdfast.VMID
	disk holdfast.DiskID
	seal Sealing
}

func newLab(t *testing.T, fs fsys.FS) *lab { return newSealedLab(t, fs, Sealing{}) }

func newSealedLab(t *testing.T, fs fsys.FS, s Sealing) *lab {
	l := &lab{t: t, fs: fs, seal: s, id: createSealed(t, fs, s), vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	l.p = openSealed(t, fs, l.id, s)
	t.Cleanup(func() {
		if err := l.p.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *lab) reopen() {
	l.t.Helper()
	if err := l.p.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.p = openSealed(l.t, l.fs, l.id, l.seal)
}

func (l *lab) manifest(size int64, parent holdfast.SetID) holdfast.Manifest {
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}, Kind: holdfast.Full, Parent: parent, VM: holdfast.VMInfo{ID: l.vm, Name: "vm"},
		Disks: []holdfast.Disk{{ID: l.disk, Name: "disk.vhdx", Size: size, Inherit: !parent.IsZero()}}}
	if !parent.IsZero() {
		m.Kind = holdfast.Incremental
	}
	return m
}

// A write is bytes at an offset of a disk; nil bytes of length n are zeros.
type write struct {
	off   int64
	bytes []byte
	zeros int64
}

// backup makes a set of writes, 4 KiB chunks, a few to a group.
func (l *lab) backup(size int64, parent holdfast.SetID, ws ...write) (holdfast.SetID, error) {
	m := l.manifest(size, parent)
	s, err := l.p.Begin(background, m)
	if err != nil {
		return m.ID, err
	}
	defer func() { _ = s.Abort(background) }()
	w, err := s.Disk(background, l.disk)
	if err != nil {
		return m.ID, err
	}
	for _, x := range ws {
		if err := l.write(w, x); err != nil {
			return m.ID, err
		}
	}
	if err := w.Close(background); err != nil {
		return m.ID, err
	}
	_, err = s.Commit(background, m)
	return m.ID, err
}

func (l *lab) write(w pools.DiskWriter, x write) error {
	if x.bytes == nil {
		return w.Place(background, []holdfast.Ref{{Extent: holdfast.Extent{Off: x.off, Len: x.zeros}}})
	}
	h := l.p.domain.Hasher()
	var refs []holdfast.Ref
	var ds []holdfast.Digest
	for at := 0; at < len(x.bytes); at += 4096 {
		c := x.bytes[at:min(at+4096, len(x.bytes))]
		d := h.Sum(c)
		ds = append(ds, d)
		refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: x.off + int64(at), Len: int64(len(c))}, Digest: d})
	}
	missing := make([]bool, len(ds))
	if err := w.Missing(background, ds, missing); err != nil {
		return err
	}
	enc := chunk.NewEncoder(chunk.LevelFast)
	var g holdfast.Group
	var plain []byte
	flush := func() error {
		if len(g.Chunks) == 0 {
			return nil
		}
		g.Codec, g.Payload = enc.Encode(make([]byte, 0, chunk.MaxEncoded), plain)
		err := w.Put(background, &g)
		g, plain = holdfast.Group{}, nil
		return err
	}
	for i, r := range refs {
		if !missing[i] {
			continue
		}
		g.Chunks = append(g.Chunks, holdfast.Piece{Digest: r.Digest, Len: uint32(r.Len)})
		plain = append(plain, x.bytes[r.Off-x.off:][:r.Len]...)
		if len(g.Chunks) == 16 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return w.Place(background, refs)
}

func (l *lab) must(id holdfast.SetID, err error) holdfast.SetID {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// restore reads a set's disk.
func (l *lab) restore(id holdfast.SetID) ([]byte, error) {
	s, err := l.p.Open(background, id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	size := s.Manifest().Disks[0].Size
	out := make([]byte, size)
	dec, h := chunk.NewDecoder(), l.p.domain.Hasher()
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

func (l *lab) same(id holdfast.SetID, want []byte) {
	l.t.Helper()
	got, err := l.restore(id)
	if err != nil {
		l.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		l.t.Fatalf("set %s does not restore what was backed up", id)
	}
}

func (l *lab) collect() pools.CollectReport {
	l.t.Helper()
	rep, err := l.p.Collect(background, pools.CollectOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return rep
}

func (l *lab) verify() pools.VerifyReport {
	l.t.Helper()
	rep, err := l.p.Verify(background, pools.VerifyOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return rep
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// indexOf lists what the index holds, by container ids.
func indexOf(p *Pool) map[string]int {
	out := map[string]int{}
	for i := range p.index.shards {
		for _, e := range p.index.shards[i].entries {
			if e.fp != 0 {
				out[fmt.Sprintf("%x at %x/%d", e.fp, p.slots[e.loc.slot()].id, e.loc.ordinal())]++
			}
		}
	}
	return out
}
