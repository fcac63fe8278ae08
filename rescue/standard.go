package rescue

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"path"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// docs/formats/standard.md.
const (
	standardRecord = "pool.record"
	standardCopy   = "pool-copy.record"
	vmsFolder      = "vms"
	setRecord      = "set.record"
	maxLine        = 511
	maxPoolRecord  = 1 << 20
	maxFiles       = 64 << 20
	maxStandardSet = holdfast.MaxManifestBytes + maxFiles + 4096
	maxPaths       = 4096
)

// A standardPool reads standard pools.
type standardPool struct {
	pool   holdfast.PoolID
	domain holdfast.Domain
	paths  map[uint16]source // that are there, by number
	files  map[dataKey]dataFile
	lost   []error
	lib    *library
	shift  map[int]*remap // of containers that were rewritten, as far as they were read
}

// dataKey names a data file, whatever its generation.
type dataKey struct {
	path   uint16
	folder string
	disk   uint16
	number uint32
}

// A dataFile is the newest generation of a data file.
type dataFile struct {
	generation int
	index      int // in the library
}

// parseFrame checks a frame and returns its parts by name.
func parseFrame(op string, b []byte) (map[string][]byte, error) {
	bad := func(format string, args ...any) (map[string][]byte, error) {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, format, args...)
	}
	sum := holdfast.Domain{}.Hasher()
	rest := b
	line := func() (string, bool) {
		i := bytes.IndexByte(rest[:min(len(rest), maxLine+1)], '\n')
		if i < 0 {
			return "", false
		}
		s := string(rest[:i])
		rest = rest[i+1:]
		return s, true
	}
	if _, ok := line(); !ok {
		return bad("no title")
	}
	parts := map[string][]byte{}
	for {
		at := len(b) - len(rest)
		s, ok := line()
		f := strings.Split(s, " ")
		if !ok || len(f) < 2 {
			return bad("a line is missing")
		}
		if f[0] == "end" {
			if want := sum.Sum(b[:at]); len(f) != 2 || f[1] != hex.EncodeToString(want[:]) || len(rest) != 0 {
				return bad("the checksum at its end differs")
			}
			return parts, nil
		}
		n, err := strconv.ParseUint(f[1], 10, 31)
		if err != nil || len(f) != 3 || int(n)+1 > len(rest) || rest[n] != '\n' {
			return bad("part %q is cut off", f[0])
		}
		body := rest[:n]
		if want := sum.Sum(body); f[2] != hex.EncodeToString(want[:]) {
			return bad("the checksum of part %q differs", f[0])
		}
		parts[f[0]], rest = body, rest[n+1:]
	}
}

// openStandard reads each path's record, and lists its data files.
func (p *Pool) openStandard(ctx context.Context, from []source) error {
	s := &standardPool{paths: map[uint16]source{}, files: map[dataKey]dataFile{}, shift: map[int]*remap{}}
	for _, x := range from {
		err := x.err
		if x.store != nil {
			p.closers = append(p.closers, x.store.Close)
			err = s.add(ctx, x)
		}
		if err != nil {
			s.lost = append(s.lost, fmt.Errorf("%s: %w", x.name, err))
		}
	}
	if len(s.paths) == 0 {
		return s.lost[0]
	}
	s.lib = newLibrary(s.pool, s.domain, nil)
	p.closers = append(p.closers, s.lib.close)
	for number, x := range s.paths {
		names, err := x.store.List(ctx, vmsFolder)
		if err != nil {
			return err
		}
		for _, n := range names {
			if k, gen, ok := parseDataName(n); ok {
				k.path = number
				s.enter(k, gen, file{store: x.store, name: n, label: path.Join(x.name, n)})
			}
		}
	}
	p.kind, p.id, p.engine = "standard", s.pool, s
	return nil
}

// add reads a path's pool record.
func (s *standardPool) add(ctx context.Context, x source) error {
	const op = "read pool record"
	var err error
	for _, name := range []string{standardRecord, standardCopy} {
		var b []byte
		var parts map[string][]byte
		if b, err = blob.ReadAll(ctx, x.store, name, maxPoolRecord); err != nil {
			continue
		}
		if parts, err = parseFrame(op, b); err != nil {
			continue
		}
		var r struct {
			Format   int             `json:"format"`
			Kind     string          `json:"kind"`
			Incompat uint32          `json:"incompat"`
			Pool     holdfast.PoolID `json:"pool"`
			Path     uint16          `json:"path"`
			Key      []byte          `json:"domain_key"`
		}
		if err = json.Unmarshal(parts["pool"], &r); err != nil {
			err = holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
			continue
		}
		switch {
		case r.Format != 1 || r.Kind != "standard" || r.Incompat != 0:
			return holdfast.Errorf(holdfast.Unsupported, op, "a %q pool of format %d with features %#x", r.Kind, r.Format, r.Incompat).Advise("use a newer version of this program")
		case len(r.Key) != 32 || r.Path == 0 || r.Path > maxPaths:
			return holdfast.Errorf(holdfast.Corrupt, op, "no key or no path number")
		case len(s.paths) > 0 && (r.Pool != s.pool || [32]byte(r.Key) != s.domain.Key):
			return holdfast.Errorf(holdfast.Invalid, op, "it is of pool %s, the others of %s", r.Pool, s.pool)
		}
		s.pool, s.domain.Key = r.Pool, [32]byte(r.Key)
		s.paths[r.Path] = x
		return nil
	}
	return err
}

// enter keeps a data file if no newer generation of it is known.
func (s *standardPool) enter(k dataKey, gen int, f file) {
	if old, ok := s.files[k]; ok && old.generation >= gen {
		return
	}
	s.files[k] = dataFile{gen, len(s.lib.files)}
	s.lib.files = append(s.lib.files, f)
}

// parseDataName reads disk-D.NNNNNN.data and disk-D.NNNNNN.cG.data.
func parseDataName(name string) (k dataKey, gen int, ok bool) {
	rest, ok := strings.CutPrefix(path.Base(name), "disk-")
	f := strings.Split(rest, ".")
	if !ok || len(f) < 3 || len(f) > 4 || f[len(f)-1] != "data" {
		return k, 0, false
	}
	disk, err1 := strconv.ParseUint(f[0], 10, 16)
	number, err2 := strconv.ParseUint(f[1], 10, 32)
	if err1 != nil || err2 != nil {
		return k, 0, false
	}
	if len(f) == 4 {
		g, err := strconv.ParseUint(strings.TrimPrefix(f[2], "c"), 10, 31)
		if err != nil || f[2][0] != 'c' {
			return k, 0, false
		}
		gen = int(g)
	}
	return dataKey{folder: path.Dir(name), disk: uint16(disk), number: uint32(number)}, gen, true
}

// A standardSet is a set record and where it lies.
type standardSet struct {
	manifest holdfast.Manifest
	home     source
	folder   string
	maps     []mapFact
}

// A mapFact is what the record says of a map.
type mapFact struct {
	Bytes int64           `json:"bytes"`
	Sum   holdfast.Digest `json:"sum"`
}

// sets implements engine.
func (s *standardPool) sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	return func(yield func(holdfast.Manifest, error) bool) {
		for _, err := range s.lost {
			if !yield(holdfast.Manifest{}, err) {
				return
			}
		}
		for x, err := range s.records(ctx) {
			if !yield(x.manifest, err) {
				return
			}
		}
	}
}

// records reads all set records.
func (s *standardPool) records(ctx context.Context) iter.Seq2[standardSet, error] {
	return func(yield func(standardSet, error) bool) {
		for _, x := range s.paths {
			names, err := x.store.List(ctx, vmsFolder)
			if err != nil {
				if !yield(standardSet{}, err) {
					return
				}
				continue
			}
			for _, n := range names {
				if path.Base(n) != setRecord {
					continue
				}
				set, err := s.record(ctx, x, n)
				if !yield(set, err) {
					return
				}
			}
		}
	}
}

func (s *standardPool) record(ctx context.Context, home source, name string) (standardSet, error) {
	op := "read " + path.Join(home.name, name)
	set := standardSet{home: home, folder: path.Dir(name)}
	b, err := blob.ReadAll(ctx, home.store, name, maxStandardSet)
	if err != nil {
		return set, err
	}
	parts, err := parseFrame(op, b)
	if err != nil {
		return set, err
	}
	if set.manifest, err = holdfast.UnmarshalManifest(parts["manifest"]); err != nil {
		return set, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	var f struct {
		Format int             `json:"format"`
		Pool   holdfast.PoolID `json:"pool"`
		Folder string          `json:"folder"`
		Maps   []mapFact       `json:"maps"`
	}
	if err := json.Unmarshal(parts["files"], &f); err != nil {
		return set, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	if f.Format != 1 || f.Pool != s.pool || f.Folder != set.folder || len(f.Maps) != len(set.manifest.Disks) {
		return set, holdfast.Errorf(holdfast.Corrupt, op, "the record is of another pool or folder, or has %d maps for %d disks", len(f.Maps), len(set.manifest.Disks))
	}
	set.maps = f.Maps
	return set, nil
}

// disk implements engine.
func (s *standardPool) disk(ctx context.Context, id holdfast.SetID, disk int) (*plan, error) {
	var damage error
	for set, err := range s.records(ctx) {
		if err != nil {
			damage = err
			continue
		}
		if set.manifest.ID == id {
			return s.plan(ctx, set, disk)
		}
	}
	if damage != nil {
		return nil, damage
	}
	for _, err := range s.lost {
		return nil, holdfast.Errorf(holdfast.Offline, "open set", "set %s is on none of the paths that are there; one is missing: %w", id, err)
	}
	return nil, holdfast.Errorf(holdfast.NotExist, "open set", "there is no set %s", id)
}

func (s *standardPool) plan(ctx context.Context, set standardSet, disk int) (*plan, error) {
	name := fmt.Sprintf("%s/disk-%d.map", set.folder, disk)
	m, err := openMap(ctx, set.home.store, name, set.maps[disk])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Join(set.home.name, name), err)
	}
	if m.size != set.manifest.Disks[disk].Size {
		_ = m.r.Close() // only read
		return nil, holdfast.Errorf(holdfast.Corrupt, "read map", "it is of a disk of %d bytes", m.size)
	}
	pl := &plan{manifest: set.manifest, disk: disk, lib: s.lib, warnings: s.lost}
	pl.pieces = func(yield func(piece, error) bool) {
		defer func() { _ = m.r.Close() }() // only read
		for r, err := range m.runs() {
			if err != nil {
				yield(piece{}, err)
				return
			}
			if !s.expand(ctx, m, r, yield) {
				return
			}
		}
	}
	return pl, nil
}

// expand yields the pieces of a run.
func (s *standardPool) expand(ctx context.Context, m *diskMap, r run, yield func(piece, error) bool) bool {
	if r.file == zeroRun {
		return true
	}
	t := m.files[r.file]
	lost := func(err error) bool {
		where := fmt.Sprintf("path %d, %s/disk-%d.%06d.data", t.key.path, t.key.folder, t.key.disk, t.key.number)
		for off, left := r.off, r.len; left > 0; {
			n := min(left, holdfast.MaxChunk)
			if !yield(piece{off: off, len: uint32(n), err: err, where: where}, nil) {
				return false
			}
			off, left = off+n, left-n
		}
		return true
	}
	f, ok := s.files[t.key]
	if !ok {
		return lost(holdfast.Errorf(holdfast.Corrupt, "find data file", "it is not there"))
	}
	b, err := s.lib.open(ctx, f.index)
	if err != nil {
		return lost(err)
	}
	if b.h.ID != t.container {
		return lost(holdfast.Errorf(holdfast.Corrupt, "open data file", "it is container %016x, not %016x", b.h.ID, t.container))
	}
	shift, err := s.remapOf(ctx, f, b)
	if err != nil {
		return lost(err)
	}
	off, left, skip := r.off, r.len, r.skip
	for i := range r.count {
		ordinal, ok := shift.find(r.first + i)
		if !ok || int(ordinal) >= len(b.f.Chunks) || left <= 0 {
			return lost(holdfast.Errorf(holdfast.Corrupt, "find chunk", "chunk %d is not in it", r.first+i))
		}
		c := b.f.Chunks[ordinal]
		if skip >= c.Len {
			return lost(holdfast.Errorf(holdfast.Corrupt, "find chunk", "chunk %d has %d bytes, and %d are to be left out", r.first+i, c.Len, skip))
		}
		n := min(int64(c.Len-skip), left)
		if !yield(piece{at: chunkAt{uint32(f.index), ordinal}, digest: c.Digest, skip: skip, len: uint32(n), off: off}, nil) {
			return false
		}
		off, left, skip = off+n, left-n, 0
	}
	if left != 0 {
		return lost(holdfast.Errorf(holdfast.Corrupt, "read map", "a run is %d bytes longer than its chunks", left))
	}
	return true
}

// remapOf returns where the chunks of a data file went; nil for one that was never rewritten.
func (s *standardPool) remapOf(ctx context.Context, f dataFile, b *book) (*remap, error) {
	if f.generation == 0 {
		return nil, nil
	}
	if r := s.shift[f.index]; r != nil {
		return r, nil
	}
	n := len(b.f.Groups)
	if n == 0 || b.f.Groups[n-1].Type != container.Node || b.f.Groups[n-1].Count != 1 {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read rewritten file", "the list of its chunks is not there")
	}
	g, err := container.ReadGroup(b.r, b.f, uint32(n-1), nil)
	if err != nil {
		return nil, err
	}
	plain, err := s.lib.dec.Open(holdfast.Domain{}.Hasher(), &g, nil, func(int) bool { return true })
	if err != nil {
		return nil, err
	}
	r, err := parseRemap(plain)
	if err == nil {
		s.shift[f.index] = r
	}
	return r, err
}
