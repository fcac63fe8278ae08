package standard

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// A session writes one set. Lock order: diskWriter.mu, then session.mu, then Pool.mu.
type session struct {
	p       *Pool
	begun   holdfast.Manifest
	folder  string
	home    *poolPath
	parent  *setState  // leased: the manifest's, or the one that a full read is compared with; nil if there is none
	inherit *setRecord // the parent's

	marking sync.Mutex // held while the marker is being written
	marked  bool

	mu      sync.Mutex // guards what follows; never held over I/O
	disks   map[holdfast.DiskID]*diskWriter
	recent  recent
	files   []*file                    // that the session writes, finished or not
	tails   map[*file][]holdfast.Piece // chunks of those that are not finished
	written []object                   // all objects that may be there
	over    bool                       // committed, being committed, or aborted
	limbo   bool                       // nobody knows whether the record is there: nothing may be removed
	failed  error                      // the first write that failed: the set cannot be committed
}

// Begin implements pools.Pool.
func (p *Pool) Begin(ctx context.Context, m holdfast.Manifest) (pools.Session, error) {
	const op = "begin set"
	if err := m.Check(); err != nil {
		return nil, err
	}
	b, err := holdfast.MarshalManifest(&m)
	if err != nil {
		return nil, err
	}
	s := &session{p: p, disks: map[holdfast.DiskID]*diskWriter{}, tails: map[*file][]holdfast.Piece{}}
	s.recent.window = p.window
	if s.begun, err = holdfast.UnmarshalManifest(b); err != nil { // a copy of its own
		return nil, err
	}
	var tag [8]byte
	_, _ = rand.Read(tag[:]) // never fails since Go 1.24
	s.folder = folderName(&m, binary.LittleEndian.Uint64(tag[:]))
	if err := p.enlist(ctx, s, op); err != nil {
		return nil, err
	}
	if err := s.start(ctx, op); err != nil {
		s.end(ctx)
		return nil, err
	}
	return s, nil
}

// enlist enters a session and leases its parent.
func (p *Pool) enlist(ctx context.Context, s *session, op string) error {
	if err := p.lock(ctx, op); err != nil {
		return err
	}
	defer p.mu.Unlock()
	taken := p.sets[s.begun.ID] != nil
	for o := range p.sessions {
		taken = taken || o.begun.ID == s.begun.ID
	}
	taken = taken || p.limbo[s.begun.ID] != nil
	if taken {
		return holdfast.Errorf(holdfast.Exist, op, "set %s is there already", s.begun.ID)
	}
	if id := s.begun.Parent; !id.IsZero() {
		if s.parent = p.sets[id]; s.parent == nil {
			return holdfast.Errorf(holdfast.NotExist, op, "parent set %s is not in this pool", id)
		}
		p.lease(s.parent)
	}
	p.sessions[s] = struct{}{}
	return nil
}

// start does what needs I/O.
func (s *session) start(ctx context.Context, op string) error {
	var prefer *poolPath
	if s.parent == nil && rereads(&s.begun) {
		if err := s.findLike(ctx, op); err != nil {
			return err
		}
	}
	if s.parent != nil && s.inherit == nil {
		var err error
		if s.inherit, err = s.p.record(ctx, s.parent); err != nil {
			return err
		}
	}
	if s.parent != nil {
		prefer = s.p.paths[s.parent.path]
	}
	for _, d := range s.begun.Disks {
		if d.Inherit && s.inherit.manifest.Disk(d.ID) == nil {
			return holdfast.Errorf(holdfast.Invalid, op, "disk %s inherits, but parent set %s does not have it", d.ID, s.begun.Parent)
		}
	}
	for _, pa := range s.p.paths {
		if pa != nil && pa.Quota > 0 { // what the pool takes must be known before a quota means something
			if err := s.p.readRecords(ctx); err != nil && alive(ctx, op) != nil {
				return err
			}
			break
		}
	}
	var err error
	s.home, err = s.p.choose(ctx, prefer)
	return err
}

// end takes the session from the pool's list. It is not committed, or it is and entered.
func (s *session) end(ctx context.Context) {
	s.p.mu.Lock()
	delete(s.p.sessions, s)
	s.p.mu.Unlock()
	s.release(ctx)
}

// release ends the lease on the parent.
func (s *session) release(ctx context.Context) {
	if s.parent != nil {
		s.p.unlease(ctx, s.parent)
		s.parent = nil
	}
}

// ready is the beginning of an operation on a session.
func (s *session) ready(ctx context.Context, op string) error {
	if err := s.p.lock(ctx, op); err != nil {
		return err
	}
	s.p.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return holdfast.Errorf(holdfast.Invalid, op, "the session of set %s is over", s.begun.ID)
	}
	return s.failed
}

// sound is the beginning and the end of what a Commit prepares.
func (s *session) sound(ctx context.Context, op string) error {
	if err := s.p.lock(ctx, op); err != nil {
		return err
	}
	s.p.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// fail notes the first error of a write and returns err.
func (s *session) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	return err
}

// mark writes the marker, once, before anything else is written.
func (s *session) mark(ctx context.Context) error {
	s.marking.Lock()
	defer s.marking.Unlock()
	if s.marked {
		return nil
	}
	text := fmt.Sprintf("A set is being written here. After a crash this folder is removed when the pool is opened.\npool %s\nset %s\n", s.p.sb.Pool, s.begun.ID)
	if err := blob.WriteAll(ctx, s.home.Store, s.folder+"/"+markerName, []byte(text)); err != nil {
		return err
	}
	s.marked = true
	return nil
}

// writing notes that an object may be there from now on.
func (s *session) writing(path uint16, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written = append(s.written, object{path, name})
}

// Disk implements pools.Session.
func (s *session) Disk(ctx context.Context, id holdfast.DiskID) (pools.DiskWriter, error) {
	const op = "open disk for writing"
	if err := s.ready(ctx, op); err != nil {
		return nil, err
	}
	return s.disk(id, op, false)
}

// disk makes the writer of a disk; committing says that Commit asks for one that nobody opened.
func (s *session) disk(id holdfast.DiskID, op string, committing bool) (*diskWriter, error) {
	i := slices.IndexFunc(s.begun.Disks, func(d holdfast.Disk) bool { return d.ID == id })
	if i < 0 {
		return nil, holdfast.Errorf(holdfast.NotExist, op, "set %s has no disk %s", s.begun.ID, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over && !committing {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the session of set %s is over", s.begun.ID)
	}
	if s.disks[id] != nil {
		return nil, holdfast.Errorf(holdfast.Exist, op, "disk %s was opened before", id)
	}
	w := &diskWriter{s: s, no: uint16(i), disk: s.begun.Disks[i]}
	s.disks[id] = w
	return w, nil
}

// Commit implements pools.Session.
func (s *session) Commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	const op = "commit set"
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return pools.Receipt{}, holdfast.Errorf(holdfast.Invalid, op, "the session of set %s is over", s.begun.ID)
	}
	s.over = true // whatever comes now: after an error the session is aborted
	s.mu.Unlock()
	rec, err := s.prepare(ctx, &m, op)
	var st *setState
	if err == nil {
		st, err = s.publish(ctx, rec, op)
	}
	if err != nil {
		s.drop(ctx)
		return pools.Receipt{}, err
	}
	s.unmark(ctx, st)
	s.end(ctx)
	return pools.Receipt{Manifest: rec.manifest}, nil
}

// prepare makes all that the record names durable and returns the record.
func (s *session) prepare(ctx context.Context, m *holdfast.Manifest, op string) (*setRecord, error) {
	if err := s.sound(ctx, op); err != nil {
		return nil, err
	}
	if err := pools.SameSet(s.begun, *m); err != nil {
		return nil, err
	}
	rec := &setRecord{title: titleOf(m), manifest: *m, files: filesPart{Format: formatVersion, Pool: s.p.sb.Pool, Folder: s.folder}}
	rec.manifest.Disks = slices.Clone(m.Disks)
	rec.manifest.Stats.Stored = 0
	named := map[*file]bool{}
	for i := range rec.manifest.Disks {
		d := &rec.manifest.Disks[i]
		w, err := s.closed(ctx, d.ID, op)
		if err != nil {
			return nil, err
		}
		for _, f := range w.files {
			named[f] = true
		}
		d.Stats.Stored = w.stored + w.fact.Bytes
		rec.manifest.Stats.Stored += d.Stats.Stored
		rec.files.Maps = append(rec.files.Maps, w.fact)
	}
	s.discard(ctx, named)
	for _, f := range sortedFiles(named) {
		if err := s.there(ctx, f, op); err != nil {
			return nil, err
		}
		rec.files.add(f.key, f.wrote)
	}
	return rec, s.sound(ctx, op)
}

// there refuses to build on a data file of an earlier set that is gone: a set that cannot be restored is no backup.
func (s *session) there(ctx context.Context, f *file, op string) error {
	if f.key.folder == s.folder {
		return nil
	}
	s.p.mu.Lock()
	name := f.key.dataName(f.gen)
	s.p.mu.Unlock()
	st, err := s.p.store(f.key.path, name)
	if err != nil {
		return err
	}
	ok, err := st.Exists(ctx, name)
	if err == nil && !ok {
		return holdfast.Errorf(holdfast.Corrupt, op, "%s, which the set inherits from, is not there any more", name).Advise("back the VM up in full, and verify the pool")
	}
	return err
}

// closed returns the writer of a disk, which must be closed. One that was never opened is opened and closed here.
func (s *session) closed(ctx context.Context, id holdfast.DiskID, op string) (*diskWriter, error) {
	s.mu.Lock()
	w := s.disks[id]
	s.mu.Unlock()
	if w == nil {
		var err error
		if w, err = s.disk(id, op, true); err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		return w, w.finish(ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "disk %s is still open for writing", id)
	}
	return w, nil
}

// discard removes data files in which nothing was placed. One that cannot be removed is garbage that a Collect finds.
func (s *session) discard(ctx context.Context, named map[*file]bool) {
	var out trash
	s.mu.Lock()
	s.files = slices.DeleteFunc(s.files, func(f *file) bool {
		if named[f] {
			return false
		}
		out.add(f.key.path, f.key.dataName(0))
		out.files = append(out.files, f)
		s.p.used(f.key.path, -f.fact[0])
		return true
	})
	s.mu.Unlock()
	s.p.empty(ctx, &out)
}

func sortedFiles(set map[*file]bool) []*file {
	out := make([]*file, 0, len(set))
	for f := range set {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *file) int { return a.key.compare(b.key) })
	return out
}

// publish writes the record, which is the commit, and enters the set.
func (s *session) publish(ctx context.Context, rec *setRecord, op string) (*setState, error) {
	b, err := rec.encode()
	if err != nil {
		return nil, err
	}
	if _, err := parseSetRecord(b); err != nil { // what could not be read back is never acknowledged
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the set cannot be recorded: %w", err)
	}
	name := s.folder + "/" + recordName
	if err := s.mark(ctx); err != nil {
		return nil, err
	}
	if err := blob.WriteAll(ctx, s.home.Store, name, b); err != nil {
		// The record may be there or not. It must not be: then the rest may go, which abort does.
		if e := s.home.Store.Remove(context.WithoutCancel(ctx), name); e != nil {
			s.mu.Lock()
			s.limbo = true
			s.mu.Unlock()
		}
		return nil, err
	}
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &setState{id: rec.manifest.ID, folder: s.folder, path: s.home.number, marker: true}
	p.sets[st.id] = st
	p.unread++
	for _, f := range s.files {
		p.files[f.key] = f // with its size, which is counted already
	}
	p.register(st, rec, int64(len(b)))
	s.uncount()
	return st, nil
}

// uncount takes back what the session counted of its maps: register counted them again.
func (s *session) uncount() {
	for _, w := range s.disks {
		s.home.taken.Add(-w.fact.Bytes)
	}
}

// unmark removes the marker of a committed set.
func (s *session) unmark(ctx context.Context, st *setState) {
	if s.home.Store.Remove(context.WithoutCancel(ctx), s.folder+"/"+markerName) == nil {
		s.p.mu.Lock()
		st.marker = false
		s.p.mu.Unlock()
	}
}

// Abort implements pools.Session.
func (s *session) Abort(ctx context.Context) error {
	s.mu.Lock()
	over := s.over
	s.over = true
	s.mu.Unlock()
	if !over {
		s.drop(ctx)
	}
	return nil
}

// drop removes everything of a session that is over: first what is open, then what is there, the marker last.
func (s *session) drop(ctx context.Context) {
	s.mu.Lock()
	ws := make([]*diskWriter, 0, len(s.disks))
	for _, w := range s.disks {
		ws = append(ws, w)
	}
	s.mu.Unlock()
	for _, w := range ws {
		w.drop()
	}
	s.mu.Lock()
	out := trash{objects: s.written, files: s.files}
	for _, f := range s.files {
		s.p.used(f.key.path, -f.fact[0])
	}
	s.uncount()
	limbo := s.limbo
	s.mu.Unlock()
	if limbo { // the record may be there: then all that it names has to stay, the parent's files too, until a Collect knows
		s.p.mu.Lock()
		delete(s.p.sessions, s)
		s.p.limbo[s.begun.ID] = s
		s.p.mu.Unlock()
		return
	}
	s.p.empty(ctx, &out)
	s.marking.Lock()
	if s.marked && out.failed == nil {
		_ = s.home.Store.Remove(context.WithoutCancel(ctx), s.folder+"/"+markerName) // the next Open or Collect tries again
	}
	s.marking.Unlock()
	s.end(ctx)
}
