package pool

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/tape/changer"
	"github.com/holdfast-backup/holdfast/tape/media"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Leg is one cartridge of a restore, and the addresses of what is read from it, ascending.
type Leg struct {
	Cartridge media.Cartridge `json:"cartridge"`
	At        []uint64        `json:"at"`
	Bytes     int64           `json:"bytes"`
}

// Plan says which cartridges reading a set takes, in the order in which they are mounted. It loads nothing.
func (p *Pool) Plan(ctx context.Context, id holdfast.SetID) ([]Leg, error) {
	const op = "plan a restore from tape"
	if err := p.enter(ctx, op); err != nil {
		return nil, err
	}
	b := p.book.Backup(id)
	var r *record
	err := error(holdfast.Errorf(holdfast.NotExist, op, "set %s is not in this pool", id))
	if b != nil {
		r, err = p.record(b.Record)
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return p.legs(r, b.Media)
}

func (p *Pool) legs(r *record, set holdfast.ID) ([]Leg, error) {
	at, err := p.where(r, set, func(uint32) bool { return true })
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	byTape := map[holdfast.ID]*Leg{}
	var out []*Leg
	for _, parts := range at {
		for _, e := range parts {
			l := byTape[e.Tape]
			if l == nil {
				l = &Leg{Cartridge: media.Cartridge{ID: e.Tape, Set: set, Seq: e.Seq}}
				if c := p.book.Tape(e.Tape); c != nil {
					l.Cartridge = *c
				}
				byTape[e.Tape] = l
				out = append(out, l)
			}
			l.At, l.Bytes = append(l.At, e.At), l.Bytes+e.Length
		}
	}
	slices.SortFunc(out, func(a, b *Leg) int { return a.Cartridge.Seq - b.Cartridge.Seq })
	legs := make([]Leg, len(out))
	for i, l := range out {
		slices.Sort(l.At)
		legs[i] = *l
	}
	return legs, nil
}

// away returns the cartridges that a record needs and that are not in the library.
func (p *Pool) away(ctx context.Context, r *record, set holdfast.ID) ([]media.Cartridge, error) {
	legs, err := p.legs(r, set)
	if err != nil || len(legs) == 0 {
		return nil, err
	}
	inv, err := p.stations.lib.Changer().Inventory(ctx)
	if err != nil {
		return nil, err
	}
	var out []media.Cartridge
	for _, l := range legs {
		if _, err := locate(&inv, &l.Cartridge); holdfast.KindOf(err) == holdfast.Offline && err != nil {
			out = append(out, l.Cartridge)
		}
	}
	return out, nil
}

// stagePoll is how often the library is looked at while cartridges are waited for.
const stagePoll = 5 * time.Second

// staging is a request for cartridges.
type staging struct {
	p       *Pool
	need    []media.Cartridge
	pinned  []holdfast.ID // media sets
	release sync.Once
}

// Stage implements pools.Stager. Until Release the media sets are neither recycled nor exported, and the pool cannot be closed.
func (p *Pool) Stage(ctx context.Context, ids ...holdfast.SetID) (_ pools.Staging, err error) {
	const op = "stage sets"
	if err := p.enter(ctx, op); err != nil {
		return nil, err
	}
	s := &staging{p: p}
	for _, id := range ids {
		b := p.book.Backup(id)
		if b == nil {
			err = holdfast.Errorf(holdfast.NotExist, op, "set %s is not in this pool", id)
			break
		}
		s.pinned = append(s.pinned, b.Media)
		p.pins[b.Media]++
	}
	p.users++
	p.mu.Unlock()
	defer func() {
		if err != nil {
			s.Release()
		}
	}()
	if err != nil {
		return nil, err
	}
	seen := map[holdfast.ID]bool{}
	for _, id := range ids {
		legs, err := p.Plan(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, l := range legs {
			if !seen[l.Cartridge.ID] {
				seen[l.Cartridge.ID] = true
				s.need = append(s.need, l.Cartridge)
			}
		}
	}
	return s, ctx.Err()
}

// Needs implements pools.Staging.
func (s *staging) Needs() []pools.Medium {
	var out []pools.Medium
	inv, err := s.p.stations.lib.Changer().Inventory(context.Background())
	for i := range s.need {
		c := &s.need[i]
		if err == nil {
			if _, err := locate(&inv, c); err == nil || holdfast.KindOf(err) != holdfast.Offline {
				continue
			}
		}
		out = append(out, pools.Medium{Label: c.Name(), Place: c.Vaulted})
	}
	return out
}

// Wait implements pools.Staging. Cartridges that are needed and lie in the library's door are brought to slots.
func (s *staging) Wait(ctx context.Context) error {
	for {
		if err := s.p.fromDoor(ctx, func(e scsi.Element) bool {
			return slices.ContainsFunc(s.need, func(c media.Cartridge) bool { return c.Barcode == e.Barcode && e.Barcode != "" })
		}); err != nil {
			return err
		}
		if len(s.Needs()) == 0 {
			return nil
		}
		after, stop := s.p.clk.After(stagePoll)
		select {
		case <-after:
		case <-ctx.Done():
			stop()
			return holdfast.Errorf(holdfast.KindOf(ctx.Err()), "wait for cartridges", "%w", ctx.Err())
		}
	}
}

// Release implements pools.Staging. It may be called again.
func (s *staging) Release() { s.release.Do(func() { s.p.leave(s.pinned...) }) }

// fromDoor brings cartridges in the import/export slots to slots.
func (p *Pool) fromDoor(ctx context.Context, which func(scsi.Element) bool) error {
	robot := p.stations.lib.Changer()
	inv, err := robot.Inventory(ctx)
	if err != nil {
		return err
	}
	for _, e := range inv.Exports {
		if !e.Full || !which(e) {
			continue
		}
		free, err := inv.Free()
		if err == nil {
			err = robot.Move(ctx, e.Address, free.Address, e.Barcode)
		}
		if err == nil {
			inv, err = robot.Inventory(ctx)
		}
		if err != nil {
			return err
		}
		p.home(e.Barcode)
	}
	return nil
}

// home notes that a cartridge is in the library again.
func (p *Pool) home(barcode string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.book.Barcode(barcode) {
		c.Vaulted = ""
	}
	p.saveLater()
}

// Import brings everything in the library's door to slots.
func (p *Pool) Import(ctx context.Context) error {
	return p.fromDoor(ctx, func(scsi.Element) bool { return true })
}

// Export brings a cartridge to the library's door and notes where a person will bring it. Its media set is closed: what is away is not appended to. NoSpace: the
// door is full, take out what is in it first.
func (p *Pool) Export(ctx context.Context, barcode, place string) error {
	const op = "export cartridge"
	if place == "" {
		place = "the vault"
	}
	if err := p.enter(ctx, op); err != nil {
		return err
	}
	all := p.book.Barcode(barcode)
	if len(all) != 1 || all[0].Set.IsZero() {
		p.mu.Unlock()
		return holdfast.Errorf(holdfast.NotExist, op, "the pool has no one cartridge %s", barcode)
	}
	set := p.book.Set(all[0].Set)
	busy := p.pins[set.ID] > 0
	p.mu.Unlock()
	if busy {
		return holdfast.Errorf(holdfast.Busy, op, "media set %s is being written or read", set.ID)
	}
	if err := p.WriteDeletions(ctx); err != nil {
		p.log("write deletions before an export: %v", err) // they come with what is written next
	}
	p.mu.Lock()
	p.book.Close(set, p.clk.Now())
	err := p.save()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if err := p.free(ctx, barcode); err != nil {
		return err
	}
	if _, err := p.stations.lib.Changer().Export(ctx, barcode); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	all[0].Vaulted = place
	return p.save()
}

// free has a drive let go of a cartridge, if one has it.
func (p *Pool) free(ctx context.Context, barcode string) error {
	inv, err := p.stations.lib.Changer().Inventory(ctx)
	if err != nil {
		return err
	}
	e, err := inv.Find(barcode)
	if err != nil || e.Type != scsi.ElementDrive {
		return err
	}
	x, err := p.stations.take(ctx, func(x *station) int {
		if x.bay.Element == e.Address {
			return 1
		}
		return -1
	})
	if err != nil {
		return err
	}
	err = p.stations.clear(ctx, x)
	p.stations.give(x)
	p.mu.Lock()
	idle := p.users == 0
	p.mu.Unlock()
	if idle && err == nil {
		err = p.stations.rest(ctx)
	}
	return err
}

// CloseMediaSet ends the media set that is written to: the next backup set begins another one. Its retention counts from now.
func (p *Pool) CloseMediaSet(ctx context.Context) error {
	if err := p.enter(ctx, "close media set"); err != nil {
		return err
	}
	defer p.mu.Unlock()
	if n := len(p.book.Sets); n > 0 {
		p.book.Close(p.book.Sets[n-1], p.clk.Now())
	}
	return p.save()
}

// Recycle gives a media set up as a whole, with every backup set on it: they are gone when it returns. Without force it is refused (Immutable) as long as a backup set
// is on it or it is kept. Busy: somebody reads or writes it.
func (p *Pool) Recycle(ctx context.Context, id holdfast.ID, force bool) error {
	const op = "recycle media set"
	if err := p.enter(ctx, op); err != nil {
		return err
	}
	defer p.mu.Unlock()
	s := p.book.Set(id)
	if s == nil || s.Given {
		return holdfast.Errorf(holdfast.NotExist, op, "the pool has no media set %s", id)
	}
	if p.pins[id] > 0 {
		return holdfast.Errorf(holdfast.Busy, op, "media set %s is being read or written", id).Advise("try again when that is done")
	}
	live, now := p.book.Live(id), p.clk.Now()
	if !force && (len(live) > 0 || s.Closed.IsZero() || now.Before(s.Closed.Add(p.keep))) {
		return holdfast.Errorf(holdfast.Immutable, op, "%d backup sets are on media set %s, or its time is not up", len(live), id).
			Advise("delete the backup sets and close the media set, or recycle it by force: then they are lost")
	}
	p.book.Recycle(s, now)
	if err := p.save(); err != nil {
		return err
	}
	return p.sweepRecords(live)
}

// sweepRecords removes records of backup sets that are gone. The caller holds mu.
func (p *Pool) sweepRecords(gone []*media.Backup) error {
	for _, b := range gone {
		if err := p.fs.Remove(recordName(b.Record)); err != nil {
			p.log("remove the record of a deleted set: %v", err) // nobody looks for it any more
		}
	}
	return nil
}

// Admit looks at a cartridge and, if it is blank, lets the pool take it.
func (p *Pool) Admit(ctx context.Context, barcode string) error {
	if err := p.enter(ctx, "admit cartridge"); err != nil {
		return err
	}
	p.users++
	p.mu.Unlock()
	defer p.leave()
	x, err := p.seat(ctx, func(v *changer.Inventory) (scsi.Element, error) { return locate(v, &media.Cartridge{Barcode: barcode}) })
	if err != nil {
		return err
	}
	defer p.stations.give(x)
	found, err := p.inspect(ctx, x, barcode)
	if err != nil {
		if holdfast.KindOf(err) == holdfast.Invalid && len(p.Media(barcode)) == 0 {
			p.refuse(found, media.Foreign, err)
		}
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.entryOf(found); c.State == "" || c.State == media.Foreign && c.Set.IsZero() {
		*c = found
		c.State = media.Blank
	}
	return p.save()
}

// Retire takes a cartridge out of use: what is on it is still read.
func (p *Pool) Retire(ctx context.Context, barcode, why string) error {
	const op = "retire cartridge"
	if err := p.enter(ctx, op); err != nil {
		return err
	}
	defer p.mu.Unlock()
	all := p.book.Barcode(barcode)
	if len(all) != 1 {
		return holdfast.Errorf(holdfast.NotExist, op, "the pool has no one cartridge %s", barcode)
	}
	all[0].State, all[0].Why = media.Retired, why
	return p.save()
}

// Media lists the cartridges that the pool knows; with bar codes, those.
func (p *Pool) Media(barcodes ...string) []media.Cartridge {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []media.Cartridge
	for _, c := range p.book.Cartridges {
		if len(barcodes) == 0 || slices.Contains(barcodes, c.Barcode) {
			out = append(out, *c)
		}
	}
	return out
}

// MediaSets lists the media sets that are not given up.
func (p *Pool) MediaSets() []media.Set {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []media.Set
	for _, s := range p.book.Sets {
		if !s.Given {
			out = append(out, *s)
		}
	}
	return out
}
