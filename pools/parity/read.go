package parity

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

const (
	// smallShard is read whole at once: one request instead of two.
	smallShard = 128 << 10
	// windowBytes is about how much of an object is read at once, which bounds the memory of a read.
	windowBytes = 8 << 20
)

// shard is one shard of an object that is open for reading.
type shard struct {
	r     blob.Reader
	label label
	whole []byte // all of it, if it is small
	err   error  // why it cannot be used
}

// reader reads an object. It keeps the context of Open: io.ReaderAt has none.
type reader struct {
	s    *Stripe
	ctx  context.Context
	name string
	layout
	sum uint32

	mu     sync.Mutex
	shards []*shard // by index; nil: not tried yet
	told   map[int]bool
	heals  bool // the healer's own: what it finds is not queued for healing again
}

// Open implements blob.Store. It fails with kind NotExist if fewer than k members have a shard, Corrupt if too many shards are
// damaged, Offline if too few members answer.
func (s *Stripe) Open(ctx context.Context, name string) (blob.Reader, error) {
	if err := s.check(ctx, "open", name); err != nil {
		return nil, err
	}
	r, err := s.open(ctx, name, false)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// open opens k shards that fit together; for the healer all that there are.
func (s *Stripe) open(ctx context.Context, name string, heals bool) (*reader, error) {
	op := "open " + name
	r := &reader{s: s, ctx: ctx, name: name, shards: make([]*shard, s.n()), told: map[int]bool{}, heals: heals}
	r.try(0, s.k)
	if heals || !r.agree() {
		r.try(s.k, s.n())
	}
	if r.agree() {
		r.tell()
		return r, nil
	}
	defer r.Close()
	if err := blob.Cancelled(ctx, op); err != nil {
		return nil, err
	}
	good, damaged, unknown := 0, 0, 0
	var errs []error
	for _, sh := range r.shards {
		switch {
		case sh.err == nil:
			good++
		case errors.Is(sh.err, holdfast.NotExist):
		case errors.Is(sh.err, holdfast.Corrupt):
			damaged++
			errs = append(errs, sh.err)
		default:
			unknown++
			errs = append(errs, sh.err)
		}
	}
	switch {
	case good+damaged+unknown < s.k:
		return nil, holdfast.Errorf(holdfast.NotExist, op, "%d of %d shards are there; that is no object", good+damaged, s.n())
	case good+unknown >= s.k && unknown > 0:
		return nil, tooFew(op, errs)
	}
	return nil, holdfast.Errorf(holdfast.Corrupt, op, "%d shards are whole; %d are needed: %w", good, s.k, errors.Join(errs...)).
		Advise("bring back members that were replaced, or restore from another pool")
}

// try opens the shards of the indexes from lo to hi, at once.
func (r *reader) try(lo, hi int) {
	var wg sync.WaitGroup
	for i := lo; i < hi; i++ {
		if r.shards[i] == nil {
			wg.Go(func() { r.shards[i] = r.s.openShard(r.ctx, r.name, i) })
		}
	}
	wg.Wait()
}

func (s *Stripe) openShard(ctx context.Context, name string, index int) *shard {
	m := s.slots[s.position(name, index)].Load()
	if m.store == nil {
		return &shard{err: errLost}
	}
	sh := &shard{}
	sh.r, sh.err = m.store.Open(ctx, name)
	if sh.err == nil {
		sh.err = sh.readLabel(s.geometry, name, index)
	}
	if sh.err != nil {
		s.note(m, sh.err)
		sh.close()
	}
	return sh
}

func (sh *shard) readLabel(g geometry, name string, index int) error {
	op := "read label of " + name
	size := sh.r.Size()
	if size < labelLen {
		return holdfast.Errorf(holdfast.Corrupt, op, "the shard has %d bytes", size)
	}
	b := make([]byte, labelLen)
	if size <= smallShard {
		b = make([]byte, size)
	}
	if err := blob.ReadFull(sh.r, b, size-int64(len(b)), name); err != nil {
		return err
	}
	l, err := decodeLabel(b[len(b)-labelLen:])
	if err != nil {
		return err
	}
	if l.geometry != g || l.name != name || l.index != index || g.layout(l.length).shardSize() != size {
		return holdfast.Errorf(holdfast.Corrupt, op, "it is shard %d of %q of stripe %s with %d bytes, not shard %d of stripe %s", l.index, l.name, l.id, size, index, g.id)
	}
	if size <= smallShard {
		sh.whole = b
	}
	sh.label = l
	return nil
}

func (sh *shard) close() {
	if sh != nil && sh.r != nil {
		_ = sh.r.Close() // only read
		sh.r = nil
	}
}

// agree finds k shards of the same object and marks those of another as damaged.
func (r *reader) agree() bool {
	type content struct {
		length int64
		sum    uint32
	}
	count := map[content]int{}
	for _, sh := range r.shards {
		if sh != nil && sh.err == nil {
			count[content{sh.label.length, sh.label.sum}]++
		}
	}
	for c, n := range count {
		if n < r.s.k { // more data than parity shards: at most one content has k
			continue
		}
		r.layout, r.sum = r.s.layout(c.length), c.sum
		for _, sh := range r.shards {
			if sh != nil && sh.err == nil && (sh.label.length != c.length || sh.label.sum != c.sum) {
				sh.err = holdfast.Errorf(holdfast.Corrupt, "open "+r.name, "a shard of other content")
				sh.close()
			}
		}
		return true
	}
	return false
}

// tell reports shards that should be there and are not usable, once each, and has them healed.
func (r *reader) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, sh := range r.shards {
		if sh == nil || sh.err == nil || r.told[i] {
			continue
		}
		m := r.s.slots[r.s.position(r.name, i)].Load()
		missing := errors.Is(sh.err, holdfast.NotExist)
		if m.store == nil || !missing && !errors.Is(sh.err, holdfast.Corrupt) || missing && m.empty.Load() {
			continue // the member's own trouble has been told
		}
		r.told[i] = true
		r.bad(m, sh.err)
	}
}

// bad reports a bad shard and has it healed.
func (r *reader) bad(m *member, err error) {
	r.s.opts.Listener.Emit(holdfast.Event{Type: EventShardBad, Severity: holdfast.Warning, Fields: map[string]string{"store": m.name, "object": r.name},
		Text: fmt.Sprintf("The shard of %s on %s is bad: %v. The others stand in for it.", r.name, m.name, err)})
	if !r.heals {
		r.s.enqueue(r.name)
	}
}

func (r *reader) Size() int64 { return r.length }

func (r *reader) DropCache() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sh := range r.shards {
		if sh != nil && sh.r != nil {
			sh.whole = nil
			sh.r.DropCache()
		}
	}
}

func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sh := range r.shards {
		sh.close()
	}
	return nil
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	op := "read " + r.name
	if off < 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, op, "at the negative offset %d", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= r.length {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), r.length-off)]
	step := max(1, int64(windowBytes/(r.k*r.block)))
	for done := 0; done < len(want); {
		from, _, _ := r.find(off + int64(done))
		last, _, _ := r.find(off + int64(len(want)) - 1)
		n, err := r.window(op, want[done:], off+int64(done), from, min(from+step, last+1))
		if err != nil {
			return done, err
		}
		done += n
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// window copies what p wants of the stripes from..to and returns how much that was.
func (r *reader) window(op string, p []byte, off, from, to int64) (int, error) {
	end := min(off+int64(len(p)), r.length)
	if to < r.stripes() {
		end = min(end, to*int64(r.k)*int64(r.block))
	}
	need := make([]bool, r.s.n())
	_, lo, _ := r.find(off)
	lastStripe, hi, _ := r.find(end - 1)
	for i := range r.k {
		need[i] = lastStripe > from || i >= lo && i <= hi
	}
	b, err := r.blocks(op, from, to, need)
	if err != nil {
		return 0, err
	}
	done := 0
	for at := off; at < end; {
		stripe, block, in := r.find(at)
		n := copy(p[done:end-off], b[stripe-from][block][in:])
		done += n
		at += int64(n)
	}
	return done, nil
}

// blocks returns the blocks of the stripes from..to: [stripe][index], at least those that are needed.
func (r *reader) blocks(op string, from, to int64, need []bool) ([][][]byte, error) {
	got := make([][][]byte, to-from)
	for i := range got {
		got[i] = make([][]byte, r.s.n())
	}
	asked := make([]bool, r.s.n())
	r.fetch(from, to, got, asked, need)
	for {
		short := 0 // how many blocks the worst stripe lacks for being computed
		for _, stripe := range got {
			have, missing := 0, false
			for i, b := range stripe {
				if b != nil {
					have++
				} else if need[i] {
					missing = true
				}
			}
			if missing {
				short = max(short, r.k-have)
			}
		}
		if short <= 0 {
			break
		}
		more := make([]bool, r.s.n())
		for i := range more {
			if !asked[i] && short > 0 {
				more[i] = true
				short--
			}
		}
		if short > 0 && !anyOf(more) {
			return nil, r.failed(op)
		}
		r.fetch(from, to, got, asked, more)
	}
	for i, stripe := range got {
		if err := r.compute(stripe, need, r.blockLen(from+int64(i))); err != nil {
			return nil, holdfast.Errorf(holdfast.Internal, op, "%w", err)
		}
	}
	return got, nil
}

func anyOf(b []bool) bool {
	for _, x := range b {
		if x {
			return true
		}
	}
	return false
}

// compute fills in the needed blocks of a stripe out of the others.
func (r *reader) compute(stripe [][]byte, need []bool, size int) error {
	required, missing := make([]bool, len(stripe)), false
	for i := range stripe {
		if need[i] && stripe[i] == nil {
			required[i], missing = true, true
			stripe[i] = make([]byte, 0, size)
		}
	}
	if !missing {
		return nil
	}
	return r.s.code.ReconstructSome(stripe, required)
}

// fetch reads the stripes from..to of the wanted shards, all at once, and keeps the blocks that are whole.
func (r *reader) fetch(from, to int64, got [][][]byte, asked, want []bool) {
	var wg sync.WaitGroup
	for i := range want {
		if !want[i] || asked[i] {
			continue
		}
		asked[i] = true
		wg.Go(func() { r.fetchShard(i, from, to, got) })
	}
	wg.Wait()
	r.tell()
}

func (r *reader) fetchShard(i int, from, to int64, got [][][]byte) {
	sh := r.shard(i)
	if sh.err != nil {
		return
	}
	m := r.s.slots[r.s.position(r.name, i)].Load()
	start, end := r.at(from), r.at(to)
	b := make([]byte, end-start)
	r.mu.Lock()
	whole := sh.whole
	r.mu.Unlock()
	if whole != nil {
		copy(b, whole[start:end])
	} else if err := blob.ReadFull(sh.r, b, start, r.name); err != nil {
		r.s.note(m, err)
		r.spoil(i, err)
		return
	}
	sums := newSums(r.s.geometry, r.name, i)
	for stripe := from; stripe < to; stripe++ {
		n, at := r.blockLen(stripe), r.at(stripe)-start
		block := b[at : at+int64(n) : at+int64(n)]
		if sums.of(stripe, block) != binary.LittleEndian.Uint32(b[at+int64(n):]) {
			r.damaged(i, m, stripe)
			continue
		}
		got[stripe-from][i] = block
	}
}

// shard returns a shard, opening it if nobody has.
func (r *reader) shard(i int) *shard {
	r.mu.Lock()
	sh := r.shards[i]
	r.mu.Unlock()
	if sh != nil {
		return sh
	}
	sh = r.s.openShard(r.ctx, r.name, i)
	if sh.err == nil && (sh.label.length != r.length || sh.label.sum != r.sum) {
		sh.err = holdfast.Errorf(holdfast.Corrupt, "open "+r.name, "a shard of other content")
		sh.close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shards[i] != nil { // another was faster
		sh.close()
	} else {
		r.shards[i] = sh
	}
	return r.shards[i]
}

// spoil gives a shard up for this reader: a new entry stands for it, because others may be reading the old one.
func (r *reader) spoil(i int, err error) {
	if r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.shards[i]
	r.shards[i] = &shard{r: old.r, err: err} // still closed by Close
}

// damaged reports a damaged block; the shard's other blocks stay in use.
func (r *reader) damaged(i int, m *member, stripe int64) {
	r.mu.Lock()
	told := r.told[i]
	r.told[i] = true
	r.mu.Unlock()
	if !told {
		r.bad(m, holdfast.Errorf(holdfast.Corrupt, "read "+r.name, "block %d does not fit its checksum", stripe))
	}
}

// failed says why a read cannot be done.
func (r *reader) failed(op string) error {
	if err := blob.Cancelled(r.ctx, op); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	kind := holdfast.Corrupt
	for _, sh := range r.shards {
		if sh == nil || sh.err == nil {
			continue
		}
		errs = append(errs, sh.err)
		if k := holdfast.KindOf(sh.err); k != holdfast.NotExist && k != holdfast.Corrupt {
			kind = holdfast.Offline
		}
	}
	return holdfast.Errorf(kind, op, "too few shards can be read: %w", errors.Join(errs...)).Advise("connect or replace the members that are away")
}
