package standard

import (
	"context"

	"github.com/holdfast-backup/holdfast"
)

// Delete implements pools.Pool. The record goes first, durably; then the maps and every data file that no other set names go at once.
// Where not all records can be read, or a path is not there, data files wait for a Collect. A set whose own record
// is damaged can be deleted too.
func (p *Pool) Delete(ctx context.Context, id holdfast.SetID) error {
	const op = "delete set"
	if err := p.lock(ctx, op); err != nil {
		return err
	}
	st := p.sets[id]
	p.mu.Unlock()
	if st == nil {
		return nil
	}
	_ = p.readRecords(ctx) // where it fails more is kept than needed, and Collect says why
	if err := alive(ctx, op); err != nil {
		return err
	}
	s, err := p.store(st.path, st.folder)
	if err != nil {
		return err
	}
	p.mu.Lock()
	marked := st.marker
	p.mu.Unlock()
	if marked { // else the next Open would take the folder for a dead session's, with all that other sets need of it
		if err := s.Remove(ctx, st.folder+"/"+markerName); err != nil {
			return err
		}
	}
	if err := s.Remove(ctx, st.folder+"/"+recordName); err != nil {
		return err
	}
	p.mu.Lock()
	st.marker = false
	var out trash
	if !st.deleted {
		st.deleted = true
		delete(p.sets, id)
		if !st.read {
			p.unread--
		}
		if st.leases == 0 {
			p.drop(st, &out)
		} else {
			p.gone[st] = struct{}{}
		}
	}
	p.mu.Unlock()
	p.empty(ctx, &out)
	return nil
}

// drop forgets a deleted set that nobody uses, and throws away what only it named. The caller holds mu.
func (p *Pool) drop(st *setState, out *trash) {
	delete(p.gone, st)
	if !st.read {
		return // Collect finds what it left
	}
	p.used(st.path, -st.bytes)
	for i := range st.disks {
		out.add(st.path, mapName(st.folder, i))
	}
	for _, f := range st.files {
		f.refs--
	}
	if p.unread > 0 || p.anyLost("") != nil {
		return // somebody who was not asked yet may need the files
	}
	for _, f := range st.files {
		p.dropFile(f, out)
	}
}

// dropFile throws a data file away that nobody names or reads. The caller holds mu, and knows that all records were read.
func (p *Pool) dropFile(f *file, out *trash) {
	if f.refs > 0 || f.pins > 0 || p.files[f.key] != f {
		return
	}
	delete(p.files, f.key)
	delete(p.gens, f.key)
	p.used(f.key.path, -f.fact[0])
	out.stale(f)
	out.add(f.key.path, f.key.dataName(f.gen))
	out.files = append(out.files, f)
	out.bytes += f.fact[0]
	out.chunks += f.fact[2]
}

// trash is objects to be removed once no lock is held.
type trash struct {
	objects []object
	files   []*file
	bytes   int64 // of data files
	chunks  int64
	failed  error // the first removal that failed
}

type object struct {
	path uint16
	name string
}

func (t *trash) add(path uint16, name string) { t.objects = append(t.objects, object{path, name}) }

// stale adds the replaced generations of a data file that nobody reads.
func (t *trash) stale(f *file) {
	for _, name := range f.stale {
		t.add(f.key.path, name)
	}
	f.stale = nil
}

// empty removes objects. What cannot be removed is garbage that the next Collect finds. It goes on though the caller's
// context has ended: what it belongs to has happened.
func (p *Pool) empty(ctx context.Context, t *trash) {
	ctx = context.WithoutCancel(ctx)
	for _, f := range t.files {
		p.data.forget(f)
	}
	for _, o := range t.objects {
		if int(o.path) >= len(p.paths) || p.paths[o.path] == nil {
			continue // its path was given up
		}
		s, err := p.store(o.path, o.name)
		if err == nil {
			err = s.Remove(ctx, o.name)
		}
		if err != nil && t.failed == nil {
			t.failed = err
		}
	}
}
