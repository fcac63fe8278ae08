package pool

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/tape/changer"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/media"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Rebuilt says what was found on the cartridges.
type Rebuilt struct {
	Cartridges int      `json:"cartridges"` // of this pool
	Others     []string `json:"others"`     // bar codes of cartridges that are blank, foreign, or could not be read, and why
	Sets       int      `json:"sets"`
	// Lacking lists backup sets of which something is not there, and what is needed: they are in the pool if only cartridges are missing that can be brought.
	Lacking []string `json:"lacking"`
}

// Rebuild makes the state of a pool anew from the cartridges in its library, in whatever order they are, and replaces what is in Env.StateDir. The pool must not be open. Cartridges that
// are not in the library and that others name count as vaulted. What was deleted and no tape was told of is there again.
func Rebuild(ctx context.Context, keeper *library.Keeper, env pools.Env, id holdfast.PoolID, config json.RawMessage) (Rebuilt, error) {
	c, keep, err := readConfig(config)
	if err != nil {
		return Rebuilt{}, err
	}
	f, err := state(env, true)
	if err != nil {
		return Rebuilt{}, err
	}
	lib, end, err := keeper.Use(ctx, c.Library, options(env))
	if err != nil {
		return Rebuilt{}, err
	}
	r, err := rebuildOn(ctx, env, f, id, c, keep, lib)
	return r, errors.Join(err, end(ctx))
}

// A rebuilder collects what cartridges say.
type rebuilder struct {
	p       *Pool
	report  Rebuilt
	tapes   map[holdfast.ID]*media.Cartridge
	entries map[holdfast.ID]map[place]hft.Entry // by media set
	begun   map[holdfast.ID]time.Time           // media sets by their earliest date
	heads   []preface
	gone    map[holdfast.ID]bool // records that count no more
	read    map[holdfast.ID]bool // records that lie in files
}

type place struct {
	tape holdfast.ID
	at   uint64
}

func rebuildOn(ctx context.Context, env pools.Env, f fsys.FS, id holdfast.PoolID, c Config, keep time.Duration, lib *library.Library) (_ Rebuilt, err error) {
	const op = "read the catalog from tape"
	if lib.Changer() == nil {
		return Rebuilt{}, noRobot()
	}
	lock, err := f.Lock(lockName)
	if err != nil {
		return Rebuilt{}, fsys.Classify(op, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	for _, dir := range []string{recordDir, objectDir, spoolDir} {
		if err := f.MkdirAll(dir); err != nil {
			return Rebuilt{}, fsys.Classify(op, err)
		}
	}
	p := bare(env, f, id, c, keep, lib)
	sealing, err := c.Sealing(env)
	if err != nil {
		return Rebuilt{}, err
	}
	if sealing.Secret != nil {
		s, err := sealing.Secret()
		if err != nil {
			return Rebuilt{}, err
		}
		p.secret = &s
	}
	defer func() { err = errors.Join(err, p.stations.rest(context.WithoutCancel(ctx))) }()
	b := &rebuilder{p: p, tapes: map[holdfast.ID]*media.Cartridge{}, entries: map[holdfast.ID]map[place]hft.Entry{}, begun: map[holdfast.ID]time.Time{},
		gone: map[holdfast.ID]bool{}, read: map[holdfast.ID]bool{}}
	if err := b.cartridges(ctx); err != nil {
		return b.report, err
	}
	b.order()
	if err := b.spanned(ctx); err != nil {
		return b.report, err
	}
	if len(b.heads) == 0 {
		return b.report, holdfast.Errorf(holdfast.NotExist, op, "no cartridge in the library says what pool %s is", id).Advise("import the first cartridge of one of the pool's media sets")
	}
	slices.SortFunc(b.heads, func(x, y preface) int { return y.Begun.Compare(x.Begun) })
	p.head = b.heads[0].superblock
	if err := p.unlock(env); err != nil {
		return b.report, err
	}
	head := p.head
	if len(head.Keyring) > 0 {
		head.Chunking.Seed = 0
	}
	if err := b.backups(); err != nil {
		return b.report, err
	}
	return b.report, writeState(f, head, p.book, p.objects)
}

// search finds the one pool whose cartridges are in a library; with a name in the configuration, the one of that name.
func search(ctx context.Context, env pools.Env, lib *library.Library, c Config) (id holdfast.PoolID, err error) {
	const op = "look for a pool on tape"
	p := bare(env, nil, id, c, 0, lib)
	defer func() { err = errors.Join(err, p.stations.rest(context.WithoutCancel(ctx))) }()
	inv, err := lib.Changer().Inventory(ctx)
	if err != nil {
		return id, err
	}
	for _, e := range slices.Concat(inv.Drives, inv.Slots) {
		if !e.Full || e.Barcode == "" || lib.Changer().Cleaning(e.Barcode) || !c.wants(e.Barcode) {
			continue
		}
		x, err := p.seat(ctx, func(v *changer.Inventory) (scsi.Element, error) {
			return locate(v, &media.Cartridge{Barcode: e.Barcode})
		})
		if errors.Is(err, errAway) {
			continue
		}
		if err != nil {
			return id, err
		}
		r, err := hft.Open(ctx, x.hold.Drive)
		x.tape = nil
		p.stations.give(x)
		if ctx.Err() != nil {
			return id, err
		}
		if err != nil || r.Label().Pool.IsZero() || c.Name != "" && r.Label().PoolName != c.Name {
			continue // blank, foreign, or of another pool
		}
		if l := r.Label(); !id.IsZero() && l.Pool != id {
			return holdfast.PoolID{}, holdfast.Errorf(holdfast.Invalid, op, "there are cartridges of the pools %s and %s", id, l.Pool).
				Advise("say which one by the name that is on its labels, or by the beginning of its bar codes")
		}
		id = r.Label().Pool
	}
	if id.IsZero() {
		return id, holdfast.Errorf(holdfast.NotExist, op, "no cartridge in the library belongs to a pool").Advise("import the pool's cartridges through the library's door")
	}
	return id, nil
}

// cartridges looks at everything in the library.
func (b *rebuilder) cartridges(ctx context.Context) error {
	robot := b.p.stations.lib.Changer()
	inv, err := robot.Inventory(ctx)
	if err != nil {
		return err
	}
	for _, e := range slices.Concat(inv.Drives, inv.Slots) {
		if !e.Full || e.Barcode == "" || robot.Cleaning(e.Barcode) {
			continue
		}
		if err := b.cartridge(ctx, e.Barcode); err != nil {
			if ctx.Err() != nil || holdfast.KindOf(err) == holdfast.Permission {
				return err
			}
			b.report.Others = append(b.report.Others, fmt.Sprintf("%s: %v", e.Barcode, err))
		}
	}
	return nil
}

// cartridge reads what one cartridge says of itself and of its media set.
func (b *rebuilder) cartridge(ctx context.Context, barcode string) (err error) {
	const op = "read the catalog from tape"
	x, err := b.p.seat(ctx, func(v *changer.Inventory) (scsi.Element, error) { return locate(v, &media.Cartridge{Barcode: barcode}) })
	if err != nil {
		return err
	}
	defer func() {
		x.tape = nil
		b.p.stations.give(x)
	}()
	r, err := hft.Open(ctx, x.hold.Drive)
	if err != nil {
		return err
	}
	l := r.Label()
	if l.Pool != b.p.id {
		return holdfast.Errorf(holdfast.Invalid, op, "it belongs to pool %s (%q)", l.Pool, l.PoolName)
	}
	c := media.Cartridge{ID: l.ID, Barcode: barcode, State: media.Full, WORM: x.hold.Drive.Capabilities().WORM, Set: l.Set, Seq: l.Seq, Created: l.Created.UTC()}
	if as, err := x.hold.Drive.Attributes(ctx, 0); err == nil {
		serial, size := as[scsi.AttrSerial], as[scsi.AttrMaximum]
		c.Serial = serial.Text()
		if n, ok := size.Uint(); ok {
			c.Size = int64(n) << 20
		}
	}
	if l.Serial != "" && c.Serial != "" && l.Serial != c.Serial {
		return holdfast.Errorf(holdfast.Invalid, op, "its label is a copy: it was written for medium %s", l.Serial)
	}
	if b.tapes[l.ID] != nil && b.tapes[l.ID].Barcode != "" {
		return holdfast.Errorf(holdfast.Invalid, op, "it has the same label as %s", b.tapes[l.ID].Barcode)
	}
	key, err := b.p.keyOf(l)
	if err != nil {
		return err
	}
	if err := r.Unlock(ctx, key); err != nil {
		return err
	}
	f, err := r.Tail(ctx)
	if err != nil {
		return err
	}
	if l.Seq > 1 && len(f.Objects) > 0 && len(f.Prior) == 0 {
		if f.Prior, err = r.Prior(ctx); err != nil && holdfast.KindOf(err) != holdfast.Corrupt {
			return err
		}
	}
	if f.Suspect || len(f.Damage) > 0 {
		c.State, c.Why = media.Suspect, strings.Join(slices.Concat(f.Damage, f.Broken), "; ")
	}
	for _, e := range f.Objects {
		c.Used += e.Length
	}
	b.tapes[l.ID] = &c
	b.report.Cartridges++
	b.note(l, f)
	for _, e := range f.Objects {
		if e.Kind == hft.Record && e.Part == 1 && !e.More {
			if err := b.record(e.ID, e.Name, func(w io.Writer) error { return r.Read(ctx, e, hft.NewJoin(w)) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// note keeps what a tape lists. What it says of earlier tapes of its media set counts where these are not there themselves.
func (b *rebuilder) note(l hft.Label, f hft.Found) {
	if b.entries[l.Set] == nil {
		b.entries[l.Set] = map[place]hft.Entry{}
	}
	if t, ok := b.begun[l.Set]; !ok || l.Created.Before(t) {
		b.begun[l.Set] = l.Created.UTC()
	}
	for _, e := range slices.Concat(f.Objects, f.Prior) {
		b.entries[l.Set][place{e.Tape, e.At}] = e
		if b.tapes[e.Tape] == nil {
			b.tapes[e.Tape] = &media.Cartridge{ID: e.Tape, State: media.Full, Set: l.Set, Seq: e.Seq, Vaulted: "a place that is not known"}
		}
	}
}

// record reads one record to its file, or takes in what it says.
func (b *rebuilder) record(id holdfast.ID, name string, read func(io.Writer) error) error {
	const op = "read the catalog from tape"
	if b.read[id] {
		return nil
	}
	file := recordName(id)
	if err := b.p.fs.Remove(file); err != nil && holdfast.KindOf(fsys.Classify(op, err)) != holdfast.NotExist {
		return fsys.Classify(op, err)
	}
	w, err := b.p.fs.Create(file)
	if err != nil {
		return fsys.Classify(op, err)
	}
	if err = read(w); err == nil {
		err = w.Sync()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err == nil && name != prefaceName && name != deletedName {
		b.read[id] = strings.HasPrefix(name, setPrefix)
		return fsys.Classify(op, b.p.fs.SyncDir(recordDir))
	}
	if err == nil {
		err = b.say(file, name)
	}
	if rerr := b.p.fs.Remove(file); err == nil && rerr != nil {
		err = rerr
	}
	return fsys.Classify(op, err)
}

// say takes in a preface or a list of deletions.
func (b *rebuilder) say(file, name string) error {
	raw, err := fsys.ReadFile(b.p.fs, file, maxDeletions)
	if err != nil {
		return err
	}
	var h preface
	if err := json.Unmarshal(raw, &h); err != nil {
		return holdfast.Errorf(holdfast.Corrupt, "read the catalog from tape", "%w", err)
	}
	for _, id := range h.Deleted {
		b.gone[id] = true
	}
	if name != prefaceName {
		return nil
	}
	if err := h.check(); err != nil || h.ID != b.p.id {
		return errors.Join(err, holdfast.Errorf(holdfast.Corrupt, "read the catalog from tape", "a tape describes pool %s", h.ID))
	}
	b.heads = append(b.heads, h)
	b.begun[h.Media] = h.Begun.UTC()
	return nil
}

// order makes book and lists of what was collected.
func (b *rebuilder) order() {
	book := b.p.book
	for set, all := range b.entries {
		list := make([]hft.Entry, 0, len(all))
		for _, e := range all {
			list = append(list, e)
		}
		slices.SortFunc(list, func(x, y hft.Entry) int { return cmp.Or(cmp.Compare(x.Seq, y.Seq), cmp.Compare(x.At, y.At)) })
		b.p.objects[set] = list
		book.Sets = append(book.Sets, &media.Set{ID: set, Created: b.begun[set]})
	}
	slices.SortFunc(book.Sets, func(x, y *media.Set) int {
		return cmp.Or(x.Created.Compare(y.Created), slices.Compare(x.ID[:], y.ID[:]))
	})
	for _, c := range b.tapes {
		book.Cartridges = append(book.Cartridges, c)
	}
	slices.SortFunc(book.Cartridges, func(x, y *media.Cartridge) int {
		return cmp.Or(x.Created.Compare(y.Created), slices.Compare(x.ID[:], y.ID[:]))
	})
	for i, s := range book.Sets {
		if i+1 < len(book.Sets) {
			book.Close(s, book.Sets[i+1].Created)
			continue
		}
		if all := book.Of(s.ID); len(all) > 0 && all[len(all)-1].State == media.Full && all[len(all)-1].Vaulted == "" {
			all[len(all)-1].State = media.Writable // if it is full, the next writing finds out
		}
	}
}

// spanned reads the records that lie on more than one tape.
func (b *rebuilder) spanned(ctx context.Context) error {
	for _, s := range b.p.book.Sets {
		for _, e := range b.p.objects[s.ID] {
			if e.Kind != hft.Record || e.Part != 1 || !e.More || b.read[e.ID] {
				continue
			}
			parts := b.p.parts(s.ID, e.ID)
			if parts == nil {
				continue // its end was never committed
			}
			err := b.record(e.ID, e.Name, func(w io.Writer) error { return b.p.read(ctx, parts, w) })
			if err != nil && ctx.Err() != nil {
				return err
			}
			if err != nil {
				b.report.Lacking = append(b.report.Lacking, fmt.Sprintf("%s: its record cannot be read: %v", e.Name, err))
			}
		}
	}
	return nil
}

// backups enters the backup sets whose records were read.
func (b *rebuilder) backups() error {
	book := b.p.book
	latest := map[holdfast.SetID]*media.Backup{}
	for _, s := range book.Sets { // the oldest first: what was written last counts
		for _, e := range b.p.objects[s.ID] {
			if e.Kind != hft.Record || !strings.HasPrefix(e.Name, setPrefix) || e.Part != 1 || b.gone[e.ID] {
				continue
			}
			if !b.read[e.ID] {
				b.report.Lacking = append(b.report.Lacking, fmt.Sprintf("%s: its record is on tape %d of media set %s, which is not there", e.Name, e.Seq, s.ID))
				continue
			}
			r, err := b.p.record(e.ID)
			if err == nil {
				_, err = b.p.where(r, s.ID, func(uint32) bool { return true })
			}
			if err != nil {
				b.report.Lacking = append(b.report.Lacking, fmt.Sprintf("%s: %v", e.Name, err))
				continue
			}
			latest[r.manifest.ID] = summary(r, s.ID, e.ID)
		}
	}
	for _, n := range latest {
		book.Backups = append(book.Backups, n)
	}
	slices.SortFunc(book.Backups, func(x, y *media.Backup) int { return slices.Compare(x.ID.ID[:], y.ID.ID[:]) })
	for _, s := range book.Sets {
		for _, e := range b.p.objects[s.ID] {
			if b.gone[e.ID] {
				book.Deleted = append(book.Deleted, media.Deletion{Record: e.ID, Media: s.ID, Written: true})
			}
		}
	}
	b.report.Sets = len(book.Backups)
	return nil
}
