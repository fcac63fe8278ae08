package standard

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

const labChunk = 4096

// A lab writes and reads sets of one pool and knows what they must hold.
type lab struct {
	t    *testing.T
	pl   *place
	p    *Pool
	vm   holdfast.VMID
	disk holdfast.DiskID
	made int
}

func newLab(t *testing.T, s shape, fss ...fsys.FS) *lab {
	t.Helper()
	l := &lab{t: t, vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	if fss == nil {
		l.pl = newPlace(t, s)
	} else {
		l.pl = &place{fss: fss, id: holdfast.PoolID{ID: holdfast.NewID()}, shape: s}
		if err := CreateOn(background, pools.Env{}, l.pl.stores(t), l.pl.id, defaultChunking(t)); err != nil {
			t.Fatal(err)
		}
	}
	l.p = l.pl.open(t)
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
	l.p = l.pl.open(l.t)
}

func (l *lab) manifest(size int64, parent holdfast.SetID) holdfast.Manifest {
	l.made++
	at := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC).Add(time.Duration(l.made) * time.Hour)
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewTimeID(at)}, Created: at, Kind: holdfast.Full, Parent: parent, VM: holdfast.VMInfo{ID: l.vm, Name: "Mail Server"},
		Disks: []holdfast.Disk{{ID: l.disk, Name: "disk.vhdx", Size: size, Inherit: !parent.IsZero()}}}
	if !parent.IsZero() {
		m.Kind = holdfast.Incremental
	}
	return m
}

// A write is bytes at an offset of a disk.
type write struct {
	off   int64
	bytes []byte
}

// backup makes a set of writes.
func (l *lab) backup(size int64, parent holdfast.SetID, ws ...write) (holdfast.SetID, error) {
	m := l.manifest(size, parent)
	_, err := l.write(m, ws...)
	return m.ID, err
}

func (l *lab) write(m holdfast.Manifest, ws ...write) (pools.Receipt, error) {
	s, err := l.p.Begin(background, m)
	if err != nil {
		return pools.Receipt{}, err
	}
	defer func() { _ = s.Abort(background) }()
	w, err := s.Disk(background, l.disk)
	if err != nil {
		return pools.Receipt{}, err
	}
	for _, x := range ws {
		if _, err := l.put(w, x, 16); err != nil {
			return pools.Receipt{}, err
		}
	}
	if err := w.Close(background); err != nil {
		return pools.Receipt{}, err
	}
	return s.Commit(background, m)
}

// put asks for, puts and places one write, in chunks of 4 KiB and groups of so many; it returns how many chunks were missing.
func (l *lab) put(w pools.DiskWriter, x write, group int) (lacked int, err error) {
	h := l.p.domain.Hasher()
	enc, b := chunk.NewEncoder(chunk.LevelFast), chunk.NewBuilder()
	flush := func() error {
		if n, _ := b.Len(); n == 0 {
			return nil
		}
		g := b.Encode(enc, nil)
		b.Reset()
		return w.Put(background, &g)
	}
	for at := 0; at < len(x.bytes); {
		var refs []holdfast.Ref
		var ds []holdfast.Digest
		first := at
		for ; at < len(x.bytes) && len(ds) < group; at += labChunk {
			c := x.bytes[at:min(at+labChunk, len(x.bytes))]
			ds = append(ds, h.Sum(c))
			refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: x.off + int64(at), Len: int64(len(c))}, Digest: ds[len(ds)-1]})
		}
		missing := make([]bool, len(ds))
		if err := w.Missing(background, ds, missing); err != nil {
			return lacked, err
		}
		for i := range refs {
			if missing[i] {
				lacked++
				b.Add(ds[i], x.bytes[first+i*labChunk:][:refs[i].Len])
			}
		}
		if err := flush(); err != nil {
			return lacked, err
		}
		if err := w.Place(background, refs); err != nil {
			return lacked, err
		}
	}
	return lacked, nil
}

func (l *lab) must(id holdfast.SetID, err error) holdfast.SetID {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// A buffer is a disk in memory.
type buffer []byte

func (b buffer) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

// restore reads a set's disk.
func (l *lab) restore(id holdfast.SetID) ([]byte, error) {
	s, err := l.p.Open(background, id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	size := s.Manifest().Disks[0].Size
	out := make(buffer, size)
	err = pools.ReadDisk(background, s, l.disk, holdfast.Extents{{Off: 0, Len: size}}, out, pools.ReadOptions{Domain: l.p.domain})
	return out, err
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

func (l *lab) usage() pools.Usage {
	l.t.Helper()
	u, err := l.p.Usage(background)
	if err != nil {
		l.t.Fatal(err)
	}
	return u
}

func (l *lab) delete(ids ...holdfast.SetID) {
	l.t.Helper()
	for _, id := range ids {
		if err := l.p.Delete(background, id); err != nil {
			l.t.Fatal(err)
		}
	}
}

// objects lists all objects below vms/ as PATH:NAME with the folders shortened, data files first.
func (l *lab) objects(match string) []string {
	l.t.Helper()
	var out []string
	for _, pa := range l.p.paths {
		if pa == nil || pa.lost != nil {
			continue
		}
		names, err := pa.Store.List(background, vmsFolder)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, n := range names {
			if strings.Contains(n, match) {
				out = append(out, fmt.Sprintf("%d:%s", pa.number, n))
			}
		}
	}
	return out
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// padded returns b with zeros up to n bytes.
func padded(b []byte, n int) []byte { return append(bytes.Clone(b), make([]byte, n-len(b))...) }

// over returns b with p over it at off.
func over(b []byte, off int, p []byte) []byte {
	out := bytes.Clone(b)
	copy(out[off:], p)
	return out
}
