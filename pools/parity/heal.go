package parity

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// maxQueue bounds the objects that wait to be healed; what does not fit is found again by the next read or Scrub.
const maxQueue = 100_000

// Progress is told how many of how many objects are done. It must return quickly.
type Progress func(done, of int)

// enqueue has an object healed in the background.
func (s *Stripe) enqueue(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.opts.ReadOnly || s.queued[name] || len(s.queue) >= maxQueue {
		return
	}
	s.queue, s.queued[name] = append(s.queue, name), true
	if s.idle == nil {
		s.idle = make(chan struct{})
		go s.work(s.idle)
	}
}

// work heals what is queued and ends; Close waits for it.
func (s *Stripe) work(idle chan struct{}) {
	defer close(idle)
	for {
		s.mu.Lock()
		if len(s.queue) == 0 || s.closed {
			s.idle = nil
			s.mu.Unlock()
			return
		}
		name := s.queue[0]
		s.queue = s.queue[1:]
		delete(s.queued, name)
		s.mu.Unlock()
		_, _ = s.heal(s.ctx, name) // it tells the listener itself
	}
}

// Settle waits until nothing is queued for healing.
func (s *Stripe) Settle(ctx context.Context) error {
	s.mu.Lock()
	idle := s.idle
	s.mu.Unlock()
	if idle == nil {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return blob.Cancelled(ctx, "wait for healing")
	}
}

// heal checks every byte of an object's shards and writes the bad ones again. It returns how many it wrote.
func (s *Stripe) heal(ctx context.Context, name string) (healed int, err error) {
	defer s.lock(name)()
	r, err := s.open(ctx, name, true)
	if err != nil {
		if errors.Is(err, holdfast.NotExist) {
			return 0, nil // removed meanwhile
		}
		return 0, s.unhealed(name, err)
	}
	defer r.Close()
	r.DropCache()
	r.examine()
	var targets []int
	for i := range r.shards {
		if r.told[i] {
			targets = append(targets, i)
		}
	}
	if len(targets) == 0 {
		return 0, blob.Cancelled(ctx, "heal "+name)
	}
	healed, err = s.rewrite(r, targets)
	if err != nil {
		return healed, s.unhealed(name, err)
	}
	return healed, nil
}

func (s *Stripe) unhealed(name string, err error) error {
	if !errors.Is(err, holdfast.Cancelled) {
		s.opts.Listener.Emit(holdfast.Event{Type: EventShardUnhealed, Severity: holdfast.Alarm, Fields: map[string]string{"object": name},
			Text: fmt.Sprintf("Shards of %s could not be written again: %v", name, err)})
	}
	return err
}

// examine reads all blocks of all shards, so that every bad one is known.
func (r *reader) examine() {
	all := make([]bool, r.s.n())
	for i := range all {
		all[i] = true
	}
	step := max(1, int64(windowBytes/(r.s.n()*r.block)))
	for from := int64(0); from < r.stripes(); from += step {
		to := min(from+step, r.stripes())
		got := make([][][]byte, to-from)
		for i := range got {
			got[i] = make([][]byte, r.s.n())
		}
		r.fetch(from, to, got, make([]bool, r.s.n()), all)
	}
}

// rewrite computes shards out of the others and writes them. The lock of the name is held. Nothing is committed unless what was
// computed has the object's own checksum. A target that cannot be written does not keep the others from it.
func (s *Stripe) rewrite(r *reader, targets []int) (healed int, err error) {
	w := s.newWriter(r.name)
	defer w.abort()
	for _, i := range targets {
		if w.members[i].store == nil {
			w.errs[i] = errLost
			continue
		}
		w.out[i], w.errs[i] = w.members[i].store.Create(r.ctx, r.name)
	}
	sum, err := s.recompute(r, w, targets)
	if err != nil {
		return 0, err
	}
	if sum != r.sum {
		return 0, holdfast.Errorf(holdfast.Corrupt, "heal "+r.name, "what the shards give together is not the object: its checksum is %08x, not %08x", sum, r.sum)
	}
	w.commit(s, label{geometry: s.geometry, length: r.length, sum: r.sum, name: r.name})
	for _, i := range targets {
		if w.errs[i] != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", w.members[i].name, w.errs[i]))
			continue
		}
		healed++
		s.opts.Listener.Emit(holdfast.Event{Type: EventShardHealed, Fields: map[string]string{"store": w.members[i].name, "object": r.name},
			Text: fmt.Sprintf("The shard of %s on %s was written again.", r.name, w.members[i].name)})
	}
	return healed, err
}

// recompute writes the blocks of the shards that w has open and returns the checksum of the whole object.
func (s *Stripe) recompute(r *reader, w *writer, targets []int) (sum uint32, err error) {
	need := make([]bool, s.n())
	for i := range need {
		need[i] = i < s.k || slices.Contains(targets, i)
	}
	left := r.length
	step := max(1, int64(windowBytes/(s.n()*s.block)))
	for from := int64(0); from < r.stripes(); from += step {
		got, err := r.blocks("heal "+r.name, from, min(from+step, r.stripes()), need)
		if err != nil {
			return 0, err
		}
		for n, stripe := range got {
			for i, b := range stripe {
				if i < s.k {
					part := b[:min(int64(len(b)), left)]
					sum = crc32.Update(sum, castagnoli, part)
					left -= int64(len(part))
				}
				if w.out[i] == nil {
					continue
				}
				if err := w.record(i, from+int64(n), b); err != nil {
					w.drop(i, err)
				}
			}
		}
	}
	return sum, nil
}

// restore makes sure that one member has its shard of an object.
func (s *Stripe) restore(ctx context.Context, name string, place int) error {
	defer s.lock(name)()
	index := s.index(name, place)
	have := s.openShard(ctx, name, index)
	have.close()
	r, err := s.open(ctx, name, false)
	if errors.Is(err, holdfast.NotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.Close()
	if have.err == nil && have.label.length == r.length && have.label.sum == r.sum {
		return nil
	}
	_, err = s.rewrite(r, []int{index})
	return err
}

// Rebuild puts a new store in a place and gives it its shard of every object, while others write, read and remove. The new store takes
// part from the beginning: objects written meanwhile are complete. With store nil the one in the place is filled up, as after
// a Rebuild that was interrupted, or when a member comes back that was away. Two members can be rebuilt one after the other, in
// any order. The store that was in the place is not closed; it is the caller's again.
func (s *Stripe) Rebuild(ctx context.Context, place int, store blob.Store, name string, progress Progress) error {
	op := fmt.Sprintf("rebuild place %d", place)
	if err := s.writable(op); err != nil {
		return err
	}
	if place < 0 || place >= s.n() {
		return holdfast.Errorf(holdfast.Invalid, op, "the stripe has %d places", s.n())
	}
	m := s.slots[place].Load()
	if store == nil {
		if store = m.store; store == nil {
			return holdfast.Errorf(holdfast.Invalid, op, "%s is lost", m.name).Advise("name the path that replaces it")
		}
	} else {
		m = &member{store: store, name: name}
	}
	if err := s.adopt(ctx, op, store, place); err != nil {
		return err
	}
	m.empty.Store(true)
	s.slots[place].Store(m)
	count, _, err := s.census(ctx, "")
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(count))
	for i, n := range names {
		if err := s.restore(ctx, n, place); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		if progress != nil {
			progress(i+1, len(names))
		}
	}
	if err := store.Remove(ctx, rebuilding); err != nil {
		return err
	}
	m.empty.Store(false)
	m.failing.Store(false)
	s.opts.Listener.Emit(holdfast.Event{Type: EventRebuilt, Fields: map[string]string{"store": m.name}, Text: fmt.Sprintf("%s has its shard of all %d objects.", m.name, len(names))})
	return nil
}

// adopt labels a store as the member of a place, being rebuilt.
func (s *Stripe) adopt(ctx context.Context, op string, store blob.Store, place int) error {
	mine := memberLabel{s.geometry, place}
	l, err := readMember(ctx, store, true)
	switch {
	case err == nil && l != mine:
		return holdfast.Errorf(holdfast.Exist, op, "the store is place %d of stripe %s", l.position, l.id).Advise("empty it first, or name another")
	case err != nil && !errors.Is(err, holdfast.NotExist) && !errors.Is(err, holdfast.Corrupt):
		return err
	}
	if werr := blob.WriteAll(ctx, store, rebuilding, nil); werr != nil { // before the labels: whoever opens it knows that it is not whole
		return werr
	}
	if err == nil {
		return nil
	}
	return writeMember(ctx, store, mine)
}

// A Report says what Scrub found.
type Report struct {
	Objects  int
	Healed   int      // shards written again
	Orphans  int      // leftovers of objects that are not there, removed
	Unhealed []string // objects with shards that could not be healed
}

// Scrub reads every byte of every shard, heals what is bad, and removes leftovers of objects that were never finished or are removed.
// Leftovers go only while all members answer and are whole. It works while others write, read and remove.
func (s *Stripe) Scrub(ctx context.Context, progress Progress) (Report, error) {
	var rep Report
	if err := s.writable("scrub"); err != nil {
		return rep, err
	}
	count, asked, err := s.census(ctx, "")
	if err != nil {
		return rep, err
	}
	_, whole := s.Members()
	tidy := asked == s.n() && !slices.Contains(whole, false)
	names := slices.Sorted(maps.Keys(count))
	for i, n := range names {
		is, err := s.Exists(ctx, n)
		switch {
		case err != nil && !errors.Is(err, holdfast.Offline):
			return rep, err
		case err != nil: // too few members to tell
			rep.Unhealed = append(rep.Unhealed, n)
		case is:
			rep.Objects++
			healed, err := s.heal(ctx, n)
			rep.Healed += healed
			if errors.Is(err, holdfast.Cancelled) {
				return rep, err
			}
			if err != nil {
				rep.Unhealed = append(rep.Unhealed, n)
			}
		case tidy:
			if err := s.tidy(ctx, n); err != nil {
				return rep, err
			}
			rep.Orphans++
		}
		if progress != nil {
			progress(i+1, len(names))
		}
	}
	return rep, nil
}

// tidy removes the leftovers of a name that is no object and that nobody is creating.
func (s *Stripe) tidy(ctx context.Context, name string) error {
	defer s.lock(name)() // no Commit of this name comes between looking and removing
	s.mu.Lock()
	flying := s.flying[name] > 0
	s.mu.Unlock()
	if flying {
		return nil
	}
	if is, err := s.Exists(ctx, name); err != nil || is {
		return err
	}
	return s.remove(ctx, "remove leftovers of "+name, name)
}
