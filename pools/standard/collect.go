package standard

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// Collect implements pools.Collector. Deleting gives most space back by itself; what is left for Collect is what unfinished work left
// behind, and data files of deleted sets of which later sets need less than half: those are rewritten with what is needed.
// It fails, and removes nothing, where a set record cannot be read or a path is not there.
func (p *Pool) Collect(ctx context.Context, o pools.CollectOptions) (pools.CollectReport, error) {
	const op = "collect pool"
	c := &collecting{p: p, o: o}
	if err := alive(ctx, op); err != nil {
		return c.report, err
	}
	p.working.Lock()
	defer p.working.Unlock()
	if err := p.lock(ctx, op); err != nil {
		return c.report, err
	}
	p.mu.Unlock()
	if err := p.anyLost(op); err != nil {
		return c.report, err
	}
	if err := p.readRecords(ctx); err != nil {
		return c.report, holdfast.Errorf(holdfast.KindOf(err), op, "nothing is removed while it is not known what is needed: %w", err).
			Advise("verify the pool; a set whose record is damaged for good can be deleted")
	}
	if err := c.settle(ctx); err != nil {
		return c.report, err
	}
	if err := c.list(ctx); err != nil {
		return c.report, err
	}
	if err := c.garbage(ctx); err != nil {
		return c.report, err
	}
	if err := c.rewrite(ctx); err != nil {
		return c.report, err
	}
	c.count()
	return c.report, nil
}

// A collecting is one Collect.
type collecting struct {
	p         *Pool
	o         pools.CollectOptions
	report    pools.CollectReport
	done, all int64      // steps
	names     [][]string // objects by path, as listed
}

func (c *collecting) step(n int64) {
	if c.done += n; c.o.Progress != nil {
		c.o.Progress(c.done, max(c.all, c.done))
	}
}

// settle makes sure that no set is there whose Commit failed, and lets go what such a set might have needed.
func (c *collecting) settle(ctx context.Context) error {
	p := c.p
	p.mu.Lock()
	var open []*session
	for _, s := range p.limbo {
		open = append(open, s)
	}
	p.mu.Unlock()
	for _, s := range open {
		if c.o.DryRun {
			break
		}
		if err := s.home.Store.Remove(ctx, s.folder+"/"+recordName); err != nil {
			return err
		}
		p.mu.Lock()
		delete(p.limbo, s.begun.ID)
		p.mu.Unlock()
		s.release(ctx)
	}
	return nil
}

// list lists all objects, and looks for sets that no listing had before.
func (c *collecting) list(ctx context.Context) error {
	p := c.p
	c.names = make([][]string, len(p.paths))
	var folders []string
	for n, pa := range p.paths {
		if pa == nil {
			continue
		}
		names, err := pa.Store.List(ctx, vmsFolder)
		if err != nil {
			return err
		}
		c.names[n] = names
		c.all += int64(len(names))
		for _, name := range names {
			if folder, _ := split(name); len(folders) == 0 || folders[len(folders)-1] != folder {
				folders = append(folders, folder)
			}
		}
	}
	found, err := p.askFor(ctx, folders)
	if err == nil && found > 0 {
		err = p.readRecords(ctx)
	}
	return err
}

// garbage removes objects that no set and no session needs.
func (c *collecting) garbage(ctx context.Context) error {
	live := c.p.folders()
	for n, names := range c.names {
		var dead []string
		for _, name := range names {
			if c.p.needless(live, uint16(n), name) {
				dead = append(dead, name)
			}
		}
		c.step(int64(len(names) - len(dead)))
		slices.SortFunc(dead, func(a, b string) int { return cmp.Or(cmp.Compare(weight(a), weight(b)), strings.Compare(a, b)) })
		for _, name := range dead {
			if err := alive(ctx, "collect pool"); err != nil {
				return err
			}
			if err := c.remove(ctx, c.p.paths[n].Store, name); err != nil {
				return err
			}
			c.step(1)
		}
	}
	c.names = nil
	return c.unnamed(ctx)
}

// weight orders removals: the marker of a folder goes last.
func weight(name string) int {
	if _, base := split(name); base == markerName {
		return 1
	}
	return 0
}

// remove removes one needless object.
func (c *collecting) remove(ctx context.Context, s blob.Store, name string) error {
	var size int64
	if r, err := s.Open(ctx, name); err == nil {
		size = r.Size()
		_ = r.Close() // only read
	}
	if !c.o.DryRun {
		if err := s.Remove(ctx, name); err != nil {
			return err
		}
	}
	c.report.Freed += size
	if strings.HasSuffix(name, ".data") {
		c.report.Removed++
	}
	return nil
}

// unnamed drops data files that were kept only because not all records could be read at the time.
func (c *collecting) unnamed(ctx context.Context) error {
	p := c.p
	var out trash
	p.mu.Lock()
	if p.unread == 0 {
		for _, f := range p.files {
			if f.refs == 0 && f.pins == 0 && c.o.DryRun {
				c.report.Freed += f.fact[0]
			} else if !c.o.DryRun {
				p.dropFile(f, &out)
			}
		}
	}
	p.mu.Unlock()
	p.empty(ctx, &out)
	c.report.Removed += len(out.files)
	c.report.Freed += out.bytes
	c.report.ChunksDead += out.chunks
	return out.failed
}

// count fills in what is there now.
func (c *collecting) count() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	for _, f := range c.p.files {
		c.report.ChunksLive += f.fact[2]
	}
	for st := range c.p.gone {
		c.report.Pending += st.bytes
	}
}

// folders lists the folders of sets that are there or still in use; folders of sessions have nil.
func (p *Pool) folders() map[string]*setState {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]*setState, len(p.sets))
	for _, st := range p.sets {
		out[st.folder] = st
	}
	for st := range p.gone {
		out[st.folder] = st
	}
	for s := range p.sessions {
		out[s.folder] = nil
	}
	for _, s := range p.limbo {
		out[s.folder] = nil
	}
	return out
}

// needless reports whether nothing needs an object. It was listed before folders was made, and names are never used twice: what
// belongs to no known folder and no known data file then, never will. Files that are not the pool's are left alone.
func (p *Pool) needless(live map[string]*setState, path uint16, name string) bool {
	folder, base := split(name)
	if _, ok := setOfFolder(folder); !ok {
		return false
	}
	st, known := live[folder]
	if known && st == nil {
		return false // a session's
	}
	if k, gen, ok := parseData(name); ok {
		k.path = path
		p.mu.Lock()
		defer p.mu.Unlock()
		if f := p.files[k]; f != nil && (f.gen == gen || slices.Contains(f.stale, name)) {
			return false
		}
		return true
	}
	switch {
	case base == markerName:
		return !known // a committed set's is removed by Open and Delete
	case strings.HasPrefix(base, "disk-") && strings.HasSuffix(base, ".map"):
		return !known || path != st.path
	}
	return false
}
