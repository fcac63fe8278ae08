package standard

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

const (
	// A data file of which less than this part is needed is rewritten: below one half, a rewrite gives back more than it writes.
	rewriteBelow = 0.5
	// So many data files are looked at in one pass over the maps: 64 MiB of marks at most for the usual size of chunks.
	rewriteBatch = 16 << 10
	moveLen      = 12
)

// A bitmap marks chunks by ordinal.
type bitmap []uint64

func newBitmap(n int64) bitmap     { return make(bitmap, (n+63)/64) }
func (b bitmap) get(i uint32) bool { return int(i/64) < len(b) && b[i/64]>>(i%64)&1 == 1 }
func (b bitmap) fill(i, end uint32) { // marks [i, end), as far as there is room
	for ; i < end && int(i/64) < len(b); i++ {
		b[i/64] |= 1 << (i % 64)
	}
}

// count returns how many chunks are marked.
func (b bitmap) count() (n int64) {
	for _, w := range b {
		n += int64(bits.OnesCount64(w))
	}
	return n
}

// without returns what is marked in b and not in o, which is as long.
func (b bitmap) without(o bitmap) bitmap {
	out := slices.Clone(b)
	for i := range out {
		out[i] &^= o[i]
	}
	return out
}

// rewrite rewrites data files of deleted sets of which little is needed.
func (c *collecting) rewrite(ctx context.Context) error {
	todo := c.candidates()
	for len(todo) > 0 {
		n := min(len(todo), rewriteBatch)
		marks := make(map[*file]bitmap, n)
		for _, f := range todo[:n] {
			marks[f] = newBitmap(f.wrote[2])
		}
		sets := c.namers(marks)
		c.all += int64(len(sets) + n)
		if err := c.markAll(ctx, sets, marks); err != nil {
			return err
		}
		for _, f := range todo[:n] {
			full, err := c.rewriteFile(ctx, f, marks[f])
			if err != nil {
				return err
			}
			if full {
				return nil // there is no room for copies; what can be removed whole is
			}
			c.step(1)
		}
		todo = todo[n:]
	}
	return nil
}

// candidates lists data files whose own set is gone. What a set placed itself it needs, so files of sets that are there are not
// worth looking at.
func (c *collecting) candidates() []*file {
	live := c.p.folders()
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	set := map[*file]bool{}
	for _, f := range c.p.files {
		if _, ok := live[f.key.folder]; !ok && f.refs > 0 {
			set[f] = true
		}
	}
	return sortedFiles(set)
}

// namers returns the sets that name one of the files, each leased. Sets committed from now on need no more of the files than
// these do: they can only inherit it from them.
func (c *collecting) namers(marks map[*file]bitmap) []*setState {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	var out []*setState
	add := func(st *setState) {
		for _, f := range st.files {
			if marks[f] != nil {
				c.p.lease(st)
				out = append(out, st)
				return
			}
		}
	}
	for _, st := range c.p.sets {
		add(st)
	}
	for st := range c.p.gone {
		add(st)
	}
	return out
}

// markAll marks what the sets need, and ends their leases.
func (c *collecting) markAll(ctx context.Context, sets []*setState, marks map[*file]bitmap) error {
	var first error
	for _, st := range sets {
		if first == nil {
			first = c.mark(ctx, st, marks)
			c.step(1)
		}
		c.p.unlease(ctx, st)
	}
	return first
}

func (c *collecting) mark(ctx context.Context, st *setState, marks map[*file]bitmap) error {
	for i := range st.disks {
		if err := alive(ctx, "collect pool"); err != nil {
			return err
		}
		s, err := c.p.store(st.path, st.folder)
		if err != nil {
			return err
		}
		if err := c.markMap(ctx, s, mapName(st.folder, i), st.facts[i], marks); err != nil {
			return holdfast.Errorf(holdfast.KindOf(err), "collect pool", "nothing is rewritten while the map of disk %d of set %s cannot be read: %w", i, st.id, err).
				Advise("verify the pool, and delete the set if it is damaged")
		}
	}
	return nil
}

func (c *collecting) markMap(ctx context.Context, s blob.Store, name string, fact mapFact, marks map[*file]bitmap) error {
	m, err := openMap(ctx, s, name, c.p.sb.Pool, fact)
	if err != nil {
		return err
	}
	defer m.close()
	files, err := c.p.resolve(m.table)
	if err != nil {
		return err
	}
	for {
		r, ok, err := m.read()
		if err != nil || !ok {
			return err
		}
		if r.zeros() {
			continue
		}
		f := files[r.file]
		if b := marks[f]; b != nil && int64(r.last()) > f.wrote[2] { // what is not marked would go
			return mapCorrupt("it names chunk %d of %s, which has %d", r.last()-1, f.key.dataName(0), f.wrote[2])
		} else if b != nil {
			b.fill(r.first, r.last())
		}
	}
}

// rewriteFile writes a data file anew if it is worth it, and reports whether there is no room for that.
func (c *collecting) rewriteFile(ctx context.Context, f *file, marks bitmap) (full bool, err error) {
	if err := alive(ctx, "collect pool"); err != nil {
		return false, err
	}
	p := c.p
	p.mu.Lock()
	if p.files[f.key] != f {
		p.mu.Unlock()
		return false, nil // its last set was deleted meanwhile
	}
	f.pins++
	p.mu.Unlock()
	defer func() {
		var out trash
		p.mu.Lock()
		if f.pins--; f.pins == 0 {
			out.stale(f)
			if p.unread == 0 {
				p.dropFile(f, &out)
			}
		}
		p.mu.Unlock()
		p.empty(ctx, &out)
	}()
	d, err := p.openData(ctx, f)
	if err != nil {
		if holdfast.KindOf(err) == holdfast.Corrupt {
			return false, nil // Verify reports it; it stays as it is
		}
		return false, err
	}
	defer p.data.release(d)
	groups, size := d.needed(marks)
	if float64(size) >= rewriteBelow*float64(d.r.Size()) {
		return false, nil
	}
	if c.o.DryRun {
		c.report.Rewritten++
		c.report.Freed += d.r.Size() - size
		return false, nil
	}
	err = c.copyFile(ctx, d, groups)
	switch holdfast.KindOf(err) {
	case holdfast.NoSpace:
		return true, nil
	case holdfast.Corrupt:
		return false, nil // as above
	}
	return false, err
}

// needed returns the groups that hold a marked chunk, and about the bytes of a file with only them.
func (d *dataFile) needed(marks bitmap) (groups []uint32, size int64) {
	size = 128 + 80 + 32
	live := bitmap(nil)
	if len(d.moves) == 0 {
		live = marks
	} else {
		live = newBitmap(int64(len(d.footer.Chunks)))
		for _, m := range d.moves {
			for i := range m.count {
				if marks.get(m.old + i) {
					live.fill(m.now+i, m.now+i+1)
				}
			}
		}
	}
	for i := range d.footer.Groups {
		g := &d.footer.Groups[i]
		if g.Type != container.Data {
			continue
		}
		for ord := g.First; ord < g.First+g.Count; ord++ {
			if live.get(ord) {
				groups = append(groups, uint32(i))
				size += g.End() - g.Off + 32 + 36*int64(g.Count) + moveLen
				break
			}
		}
	}
	return groups, size
}

// copyFile writes the next generation of a data file and makes it the one that is read.
func (c *collecting) copyFile(ctx context.Context, d *dataFile, groups []uint32) error {
	p, f := c.p, d.f
	pa := p.paths[f.key.path]
	gen := d.gen + 1
	name := f.key.dataName(gen)
	if err := pa.take(d.r.Size()); err != nil { // more than it can become
		return err
	}
	counted := d.r.Size()
	defer func() { pa.taken.Add(-counted) }()
	o, err := pa.Store.Create(ctx, name)
	if err != nil {
		return err
	}
	size, fact, err := d.copyTo(ctx, o, groups)
	if err != nil {
		o.Abort()
		return err
	}
	if err := o.Commit(); err != nil {
		_ = pa.Store.Remove(context.WithoutCancel(ctx), name) // if it stays it is whole, and found as such
		return err
	}
	p.mu.Lock()
	f.stale = append(f.stale, d.name())
	f.gen, p.gens[f.key] = gen, gen
	pa.taken.Add(size - f.fact[0])
	c.report.Rewritten++
	c.report.Copied += size
	c.report.Freed += f.fact[0] - size
	c.report.ChunksDead += f.fact[2] - fact[2]
	f.fact = fact
	p.mu.Unlock()
	p.data.forget(f)
	return nil
}

// copyTo writes a container with the groups and a last record that says where they went.
func (d *dataFile) copyTo(ctx context.Context, o blob.Object, groups []uint32) (int64, fileFact, error) {
	h, err := container.Header{ID: d.id, Pool: d.pool}, error(nil)
	w := container.NewWriter(o, h, nil)
	var moves []move
	for _, i := range groups {
		if err := alive(ctx, "rewrite data file"); err != nil {
			return 0, fileFact{}, err
		}
		g, err := d.readGroup(i)
		if err != nil {
			return 0, fileFact{}, err
		}
		now, err := w.Append(container.Data, &g)
		if err != nil {
			return 0, fileFact{}, err
		}
		old := d.original(d.footer.Groups[i].First)
		n := uint32(len(g.Chunks))
		if k := len(moves); k > 0 && moves[k-1].old+moves[k-1].count == old {
			moves[k-1].count += n
		} else {
			moves = append(moves, move{old, now, n})
		}
	}
	footer := w.Footer()
	fact := fileFact{0, footer.Plain, int64(len(footer.Chunks))}
	list := encodeMoves(moves)
	if _, err = w.Append(container.Node, &holdfast.Group{Chunks: []holdfast.Piece{{Digest: sum(list), Len: uint32(len(list))}}, Payload: list}); err != nil {
		return 0, fileFact{}, err
	}
	fact[0], err = w.Finish()
	return fact[0], fact, err
}

// original returns the ordinal that maps know a group's first chunk by.
func (d *dataFile) original(now uint32) uint32 {
	for _, m := range d.moves {
		if now >= m.now && now < m.now+m.count {
			return m.old + now - m.now
		}
	}
	return now
}

func encodeMoves(moves []move) []byte {
	b := le.AppendUint32(make([]byte, 0, 4+moveLen*len(moves)), uint32(len(moves)))
	for _, m := range moves {
		b = le.AppendUint32(b, m.old)
		b = le.AppendUint32(b, m.now)
		b = le.AppendUint32(b, m.count)
	}
	return b
}

// parseMoves is the inverse of encodeMoves; chunks is how many the moves must account for.
func parseMoves(b []byte, chunks uint32) ([]move, error) {
	bad := errors.New("the list of moved chunks is damaged")
	if len(b) < 4 || int64(len(b)) != 4+moveLen*int64(le.Uint32(b)) {
		return nil, bad
	}
	moves := make([]move, le.Uint32(b))
	now, old := uint32(0), uint32(0)
	for i := range moves {
		e := b[4+moveLen*i:]
		m := move{le.Uint32(e), le.Uint32(e[4:]), le.Uint32(e[8:])}
		if m.now != now || m.count == 0 || m.count > container.MaxChunks || m.old < old || m.old > container.MaxChunks-m.count {
			return nil, bad
		}
		moves[i], now, old = m, now+m.count, m.old+m.count
	}
	if now != chunks {
		return nil, bad
	}
	return moves, nil
}

// readMoves reads the last record of a rewritten container.
func readMoves(r blob.Reader, footer *container.Footer) ([]move, error) {
	n := len(footer.Groups) - 1
	if n < 0 || footer.Groups[n].Type != container.Node || footer.Groups[n].Count != 1 {
		return nil, holdfast.Errorf(holdfast.Corrupt, "open data file", "a rewritten file without a list of what was moved")
	}
	g, err := container.ReadGroup(r, footer, uint32(n), nil)
	if err != nil {
		return nil, err
	}
	moves, err := parseMoves(g.Payload, footer.Groups[n].First)
	if err == nil && sum(g.Payload) != g.Chunks[0].Digest {
		err = fmt.Errorf("the checksum of the list of moved chunks differs")
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "open data file", "%w", err)
	}
	return moves, nil
}
