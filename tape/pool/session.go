package pool

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/media"
)

// old marks chunk numbers of the parent's record in refs that are not translated yet.
const old = 1 << 31

// A box is a container that the set needs.
type box struct {
	obj    *object // of a container of this session
	id     holdfast.ID
	file   string // in the spool
	size   int64
	onTape bool
}

// A session is one set being written.
type session struct {
	p           *Pool
	begun       holdfast.Manifest
	parent      *record
	parentMedia holdfast.ID
	media       holdfast.ID

	mu      sync.Mutex // guards what follows; held while containers go to tape, so that what comes waits
	index   map[holdfast.Digest]uint32
	chunks  []chunk
	boxes   []*box
	theirs  map[holdfast.Digest]uint32 // the parent's chunks, where they are on the same media set
	boxOf   map[uint32]uint32          // of the parent's boxes that are used: their number here
	cur     *container.Writer          // nil: no container is open
	curNo   uint32                     // its number in boxes
	out     fsys.File
	spooled int64 // bytes of whole containers that are not on tape
	disks   map[holdfast.DiskID]*diskWriter
	over    bool
	failed  error // of the spool: nothing more is taken
}

func newSession(p *Pool, m holdfast.Manifest) *session {
	return &session{p: p, begun: m, index: map[holdfast.Digest]uint32{}, boxOf: map[uint32]uint32{}, disks: map[holdfast.DiskID]*diskWriter{}}
}

// learn makes the parent's chunks known where they are on the session's own media set: nothing names what is on another one.
func (s *session) learn() {
	if s.parent == nil || s.parentMedia != s.media {
		return
	}
	s.theirs = make(map[holdfast.Digest]uint32, len(s.parent.chunks))
	for i := range s.parent.chunks {
		s.theirs[s.parent.chunks[i].Digest] = uint32(i)
	}
}

// adopt gives a chunk of the parent a number here.
func (s *session) adopt(i uint32) uint32 {
	c := s.parent.chunks[i]
	if k, ok := s.index[c.Digest]; ok {
		return k
	}
	b, ok := s.boxOf[c.box]
	if !ok {
		b = uint32(len(s.boxes))
		s.boxes = append(s.boxes, &box{id: s.parent.boxes[c.box], onTape: true})
		s.boxOf[c.box] = b
	}
	c.box = b
	return s.add(c)
}

func (s *session) add(c chunk) uint32 {
	k := uint32(len(s.chunks))
	s.chunks = append(s.chunks, c)
	s.index[c.Digest] = k
	return k
}

// enter takes the session's mutex for an operation. After an error it is not held.
func (s *session) enter(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	s.mu.Lock()
	err := s.failed
	if s.over {
		err = holdfast.Errorf(holdfast.Invalid, op, "the session of set %s is over", s.begun.ID)
	}
	if err != nil {
		s.mu.Unlock()
	}
	return err
}

// Disk implements pools.Session.
func (s *session) Disk(ctx context.Context, id holdfast.DiskID) (pools.DiskWriter, error) {
	const op = "open disk for writing"
	if err := s.enter(ctx, op); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	d := s.begun.Disk(id)
	switch {
	case d == nil:
		return nil, holdfast.Errorf(holdfast.NotExist, op, "set %s has no disk %s", s.begun.ID, id)
	case s.disks[id] != nil:
		return nil, holdfast.Errorf(holdfast.Exist, op, "disk %s was opened before", id)
	}
	if !s.p.stream(1) {
		return nil, holdfast.Errorf(holdfast.Busy, op, "%d disks are open for writing", maxStreams)
	}
	w := &diskWriter{s: s, disk: *d}
	s.disks[id] = w
	return w, nil
}

// stream counts a disk that is opened or closed, and reports whether there was room for it.
func (p *Pool) stream(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > 0 && p.streams >= maxStreams {
		return false
	}
	p.streams += n
	return true
}

// store puts a group into the container that is open. The caller holds mu.
func (s *session) store(ctx context.Context, g *holdfast.Group) (int64, error) {
	lacking := false
	for i := range g.Chunks {
		_, here := s.index[g.Chunks[i].Digest]
		lacking = lacking || !here
	}
	if !lacking {
		return 0, nil
	}
	if s.cur == nil {
		if err := s.openBox(); err != nil {
			return 0, err
		}
	}
	group := uint32(len(s.cur.Footer().Groups))
	before := s.cur.Size()
	if _, err := s.cur.Append(container.Data, g); err != nil {
		return 0, fsys.Classify("spool", err)
	}
	at := uint32(0)
	for _, k := range g.Chunks {
		if _, here := s.index[k.Digest]; !here {
			s.add(chunk{Piece: k, box: s.curNo, group: group, at: at})
		}
		at += k.Len
	}
	n := s.cur.Size() - before
	if !s.cur.Full() {
		return n, nil
	}
	if err := s.closeBox(); err != nil {
		return n, err
	}
	if s.spooled < s.p.config.Spool {
		return n, nil
	}
	return n, s.flush(ctx)
}

// openBox begins a container in the spool.
func (s *session) openBox() error {
	s.p.mu.Lock()
	s.p.spools++
	name := fmt.Sprintf("%s/%d", spoolDir, s.p.spools)
	s.p.mu.Unlock()
	f, err := s.p.fs.Create(name)
	if err != nil {
		return fsys.Classify("spool", err)
	}
	id := holdfast.NewID()
	s.out = f
	s.cur = container.NewWriter(f, container.Header{ID: le.Uint64(id[:8]), Pool: s.p.id}, nil)
	s.curNo = uint32(len(s.boxes))
	s.boxes = append(s.boxes, &box{file: name})
	return nil
}

// closeBox finishes the container that is open.
func (s *session) closeBox() error {
	if s.cur == nil {
		return nil
	}
	b := s.boxes[s.curNo]
	size, err := s.cur.Finish()
	if cerr := s.out.Close(); err == nil {
		err = cerr
	}
	s.cur, s.out = nil, nil
	if err != nil {
		return fsys.Classify("spool", err)
	}
	b.size = size
	b.obj = &object{kind: hft.Container, name: b.file, open: func() (io.ReadCloser, error) {
		f, err := s.p.fs.Open(b.file)
		return f, fsys.Classify("read spool", err)
	}}
	s.spooled += size
	return nil
}

// flush brings whole containers to tape and commits them. The caller holds mu.
func (s *session) flush(ctx context.Context, more ...*object) error {
	var objs []*object
	for _, b := range s.boxes {
		if b.obj != nil && !b.onTape {
			objs = append(objs, b.obj)
		}
	}
	if len(objs)+len(more) == 0 {
		return nil
	}
	if err := s.p.put(ctx, s.media, append(objs, more...)); err != nil {
		return err
	}
	for _, b := range s.boxes {
		if b.obj != nil && !b.onTape {
			b.onTape, b.id = true, b.obj.id
			if err := s.p.fs.Remove(b.file); err != nil {
				s.p.log("remove spooled container: %v", err) // the next opening does
			}
		}
	}
	s.spooled = 0
	return nil
}

// Commit implements pools.Session.
func (s *session) Commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	const op = "commit set"
	if err := s.enter(ctx, op); err != nil {
		if holdfast.KindOf(err) != holdfast.Invalid {
			_ = s.Abort(context.WithoutCancel(ctx)) // the first error is the one to tell
		}
		return pools.Receipt{}, err
	}
	r, err := s.commit(ctx, m)
	s.mu.Unlock()
	_ = s.Abort(context.WithoutCancel(ctx)) // whatever came of it, the session is over
	return r, err
}

// commit does the work of Commit. The caller holds mu.
func (s *session) commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	if err := pools.SameSet(s.begun, m); err != nil {
		return pools.Receipt{}, err
	}
	m.Disks = slices.Clone(m.Disks)
	m.Stats.Stored = 0
	for i := range m.Disks {
		d, w := &m.Disks[i], s.disks[m.Disks[i].ID]
		d.Stats.Stored = 0
		if w == nil {
			continue
		}
		if !w.closed {
			return pools.Receipt{}, holdfast.Errorf(holdfast.Invalid, "commit set", "disk %s is still open for writing", d.ID)
		}
		d.Stats.Stored = w.stored
		m.Stats.Stored += w.stored
	}
	maps, err := s.maps(ctx, &m)
	if err == nil {
		err = s.closeBox()
	}
	if err == nil { // the record names containers by what they are called on tape
		err = s.flush(ctx)
	}
	if err != nil {
		return pools.Receipt{}, err
	}
	return s.enroll(ctx, s.used(m, maps))
}

// maps returns the complete maps of the set. What is inherited from another media set is brought over.
func (s *session) maps(ctx context.Context, m *holdfast.Manifest) ([][]ref, error) {
	out := make([][]ref, len(m.Disks))
	need := map[uint32]bool{}
	for i := range m.Disks {
		d := &m.Disks[i]
		var fresh, theirs []ref
		if w := s.disks[d.ID]; w != nil {
			fresh = w.refs
		}
		if d.Inherit {
			from, _ := s.parent.refs(d.ID)
			theirs = slices.Clone(from)
			for k := range theirs {
				if theirs[k].chunk != noChunk {
					theirs[k].chunk |= old
				}
			}
		}
		out[i] = pools.Overlay(theirs, fresh, d.Size, func(r ref) holdfast.Extent { return r.Extent }, cut)
		for _, r := range out[i] {
			if r.chunk != noChunk && r.chunk&old != 0 {
				need[r.chunk&^old] = true
			}
		}
	}
	if s.parentMedia != s.media && len(need) > 0 {
		if err := s.bring(ctx, need); err != nil {
			return nil, err
		}
	}
	for i := range out {
		for k := range out[i] {
			if r := &out[i][k]; r.chunk != noChunk && r.chunk&old != 0 {
				r.chunk = s.adopt(r.chunk &^ old)
			}
		}
	}
	return out, nil
}

// bring reads chunks of the parent from its media set and puts them into containers of this session.
func (s *session) bring(ctx context.Context, need map[uint32]bool) error {
	boxes := map[uint32]map[uint32]bool{} // groups by box
	for i := range need {
		c := &s.parent.chunks[i]
		if _, here := s.index[c.Digest]; here {
			continue
		}
		if boxes[c.box] == nil {
			boxes[c.box] = map[uint32]bool{}
		}
		boxes[c.box][c.group] = true
	}
	order, err := s.p.order(s.parent, s.parentMedia, func(b uint32) bool { return boxes[b] != nil })
	if err != nil {
		return err
	}
	for _, b := range order {
		f, err := s.p.fetch(ctx, s.parentMedia, s.parent.boxes[b])
		if err != nil {
			return err
		}
		err = f.bad
		for g := range f.footer.Groups {
			if err != nil || !boxes[b][uint32(g)] {
				continue
			}
			var group holdfast.Group
			if group, err = container.ReadGroup(f.file, f.footer, uint32(g), nil); err == nil {
				_, err = s.store(ctx, &group)
			}
		}
		if cerr := f.close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	for i := range need {
		if _, here := s.index[s.parent.chunks[i].Digest]; !here {
			return holdfast.Errorf(holdfast.Corrupt, "inherit from parent set", "chunk %s is not where the parent's record says", s.parent.chunks[i].Digest).Advise("verify the parent set, and back up in full")
		}
	}
	return nil
}

// used returns the record with the chunks and containers that the maps need, and nothing else.
func (s *session) used(m holdfast.Manifest, maps [][]ref) *record {
	r := &record{manifest: m, disks: maps}
	chunkNo, boxNo := map[uint32]uint32{}, map[uint32]uint32{}
	for _, list := range maps {
		for k := range list {
			f := &list[k]
			if f.chunk == noChunk {
				continue
			}
			n, ok := chunkNo[f.chunk]
			if !ok {
				c := s.chunks[f.chunk]
				b, ok := boxNo[c.box]
				if !ok {
					b = uint32(len(r.boxes))
					boxNo[c.box] = b
					r.boxes = append(r.boxes, s.boxes[c.box].id)
				}
				c.box = b
				n = uint32(len(r.chunks))
				chunkNo[f.chunk] = n
				r.chunks = append(r.chunks, c)
			}
			f.chunk = n
		}
	}
	return r
}

// enroll writes the record to tape and, when it is committed, into the book: from then on the set is there.
func (s *session) enroll(ctx context.Context, r *record) (pools.Receipt, error) {
	b, err := r.encode()
	if err != nil {
		return pools.Receipt{}, err
	}
	if r, err = decodeRecord(b); err != nil { // what will be read again is what is told
		return pools.Receipt{}, err
	}
	o := &object{kind: hft.Record, name: setPrefix + r.manifest.ID.String(), open: opener(b)}
	if err := s.p.put(ctx, s.media, []*object{o}); err != nil {
		return pools.Receipt{}, err
	}
	if err := fsys.Replace(s.p.fs, recordName(o.id), b); err != nil {
		return pools.Receipt{}, fsys.Classify("commit set", err)
	}
	n := summary(r, s.media, o.id)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.book.Backups = append(s.p.book.Backups, n)
	if err := s.p.save(); err != nil {
		s.p.book.Backups = slices.DeleteFunc(s.p.book.Backups, func(x *media.Backup) bool { return x == n })
		return pools.Receipt{}, err
	}
	return pools.Receipt{Manifest: r.manifest}, nil
}

// summary is a record as the book has it.
func summary(r *record, set, id holdfast.ID) *media.Backup {
	n := &media.Backup{ID: r.manifest.ID, Media: set, Record: id, Chunks: int64(len(r.chunks)), Stored: r.manifest.Stats.Stored}
	for i := range r.chunks {
		n.Data += int64(r.chunks[i].Len)
	}
	return n
}

func opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func jsonObject(name string, v any) *object {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types always encode
	}
	return &object{kind: hft.Record, name: name, open: opener(b)}
}

// Abort implements pools.Session.
func (s *session) Abort(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil
	}
	s.over = true
	var first error
	if s.cur != nil {
		first = s.out.Close()
		s.cur, s.out = nil, nil
	}
	for _, b := range s.boxes {
		if b.file != "" && !b.onTape {
			if err := s.p.fs.Remove(b.file); err != nil && first == nil {
				first = fsys.Classify("empty spool", err)
			}
		}
	}
	for _, w := range s.disks {
		if !w.closed {
			w.closed = true
			s.p.stream(-1)
		}
	}
	s.p.mu.Lock()
	delete(s.p.open, s.begun.ID)
	s.p.mu.Unlock()
	sets := []holdfast.ID{s.media}
	if s.parent != nil {
		sets = append(sets, s.parentMedia)
	}
	s.p.leave(sets...)
	return first
}
