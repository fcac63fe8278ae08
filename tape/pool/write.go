package pool

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/changer"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/media"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// An object is something to be written. It can be opened again and again: what a drive loses is written anew.
type object struct {
	kind, name string
	open       func() (io.ReadCloser, error)
	id         holdfast.ID // on tape; set when it is committed
}

// A source remembers that it was the reading that failed, not the tape.
type source struct {
	io.ReadCloser
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// A job is a list of objects on their way to a media set.
type job struct {
	p    *Pool
	set  holdfast.ID
	objs []*object
	next int // objs before it are whole on tapes, committed or not
	safe int // objs before it are committed

	at  *hft.Stream // the object under way, which may go on on another tape
	src *source
}

// put writes objects to a media set and returns when all of them are committed. Tapes that are full or fail are replaced by further ones of the set, drives that
// fail by others; what was not committed is written anew.
func (p *Pool) put(ctx context.Context, set holdfast.ID, objs []*object) (err error) {
	select {
	case p.writing <- struct{}{}:
		defer func() { <-p.writing }()
	case <-ctx.Done():
		return holdfast.Errorf(holdfast.KindOf(ctx.Err()), "write tape", "%w", ctx.Err())
	}
	first, struck := p.preface(set)
	j := &job{p: p, set: set, objs: append(first, objs...)}
	defer func() {
		if cerr := j.drop(); err == nil {
			err = cerr
		}
	}()
	for idle := 0; j.safe < len(j.objs); {
		before := j.safe
		if err := j.tape(ctx); err != nil {
			if idle++; idle > mountTries || fatal(ctx, err, j.src) {
				return err
			}
			p.log("writing to tape goes on after: %v", err)
		}
		if j.safe > before {
			idle = 0
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.book.Deleted {
		if slices.Contains(struck, p.book.Deleted[i].Record) {
			p.book.Deleted[i].Written = true
		}
	}
	return p.save()
}

// fatal reports whether writing cannot go on in another way.
func fatal(ctx context.Context, err error, src *source) bool {
	if src != nil && src.err != nil || ctx.Err() != nil || errors.Is(err, errFinal) {
		return true
	}
	switch holdfast.KindOf(err) {
	case holdfast.Cancelled, holdfast.Permission, holdfast.Unsupported:
		return true
	}
	return false
}

// errFinal says that there is no cartridge or no drive left to go on with.
var errFinal = errors.New("writing cannot go on")

// drop forgets the object under way.
func (j *job) drop() error {
	if j.src == nil {
		return nil
	}
	err := j.src.Close()
	j.at, j.src = nil, nil
	return err
}

// tape writes to one tape until everything is on it, or it is full, or something fails.
func (j *job) tape(ctx context.Context) error {
	x, err := j.p.writable(ctx, j.set)
	if err != nil {
		return err
	}
	defer j.p.stations.give(x)
	id, w := x.tape.label.ID, x.tape.writer
	for err == nil && j.next < len(j.objs) {
		if err = j.open(); err != nil {
			return err
		}
		if err = w.Put(ctx, j.at); err == nil || errors.Is(err, hft.ErrNextTape) && j.at.Done() {
			j.objs[j.next].id = j.at.ID
			j.next++
			if cerr := j.drop(); cerr != nil {
				return cerr
			}
		}
	}
	full := errors.Is(err, hft.ErrNextTape)
	var fresh []hft.Entry
	if err == nil || full {
		fresh, err = w.Commit(ctx)
	}
	if err != nil {
		return j.failed(ctx, x, err)
	}
	j.safe = j.next
	if full {
		x.tape.writer = nil
	}
	if err := j.p.committed(j.set, id, fresh, full); err != nil {
		return err
	}
	if cleaned, err := j.p.stations.tend(ctx, x); err != nil || cleaned {
		return err
	}
	return nil
}

// open begins the object that is next, unless it is under way.
func (j *job) open() error {
	if j.at != nil {
		return nil
	}
	o := j.objs[j.next]
	r, err := o.open()
	if err != nil {
		return err
	}
	j.src = &source{ReadCloser: r}
	j.at = hft.NewStream(holdfast.NewID(), o.kind, o.name, j.src)
	return nil
}

// failed goes back to the last commit and draws the conclusion for tape and drive.
func (j *job) failed(ctx context.Context, x *station, err error) error {
	id := x.tape.label.ID
	x.tape.writer = nil
	spent := j.src
	j.next = j.safe
	if cerr := j.drop(); cerr != nil {
		return cerr
	}
	j.src = nil
	if spent != nil && spent.err != nil {
		return holdfast.Errorf(holdfast.KindOf(spent.err), "write tape", "%w: what was to be written cannot be read: %w", errFinal, spent.err)
	}
	switch k := holdfast.KindOf(err); {
	case errors.Is(err, hft.ErrNextTape):
		j.p.fill(id)
	case k == holdfast.Corrupt || k == holdfast.Immutable:
		x.tape = nil
		j.p.spoil(id, err)
	default:
		j.p.stations.doubt(ctx, x, err)
	}
	return err
}

// writable returns a station with the tape that writing to a media set goes on with, at its end.
func (p *Pool) writable(ctx context.Context, set holdfast.ID) (*station, error) {
	p.mu.Lock()
	c := p.book.Next(set)
	if c == nil {
		p.mu.Unlock()
		return p.begin(ctx, set)
	}
	tape, known := *c, p.objectsOf(set, c.ID)
	p.mu.Unlock()
	x, err := p.mount(ctx, tape)
	if err != nil {
		if errors.Is(err, errAway) && ctx.Err() == nil {
			p.fill(tape.ID) // the media set goes on with another one
			p.log("writing goes on on another tape: %v", err)
		}
		return nil, err
	}
	if x.tape.writer != nil {
		return x, nil
	}
	key, err := p.keyOf(x.tape.label)
	if err == nil {
		x.tape.writer, err = hft.Append(ctx, x.hold.Drive, x.tape.label, key, known)
	}
	if err == nil {
		return x, nil
	}
	switch k := holdfast.KindOf(err); {
	case k == holdfast.Cancelled || k == holdfast.Permission:
	case errors.Is(err, hft.ErrNextTape):
		p.fill(tape.ID)
	case k == holdfast.Corrupt || k == holdfast.Invalid || k == holdfast.Immutable:
		p.spoil(tape.ID, err)
	default:
		p.stations.doubt(ctx, x, err)
	}
	x.tape = nil
	p.stations.give(x)
	return nil, err
}

// begin labels a cartridge for a media set.
func (p *Pool) begin(ctx context.Context, set holdfast.ID) (*station, error) {
	x, found, err := p.scratch(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	seq, prior := 1, slices.Clone(p.objects[set])
	for _, c := range p.book.Of(set) {
		seq = max(seq, c.Seq+1)
	}
	p.mu.Unlock()
	l := hft.Label{ID: holdfast.NewID(), Pool: p.id, PoolName: p.name, Set: set, Seq: seq, Barcode: found.Barcode, Serial: found.Serial, Created: p.clk.Now().UTC(), Block: p.config.Block}
	key, err := p.newKey(&l)
	var w *hft.Writer
	if err == nil {
		w, err = hft.Create(ctx, x.hold.Drive, l, key, prior)
	}
	if err != nil {
		switch k := holdfast.KindOf(err); k {
		case holdfast.Cancelled, holdfast.Permission, holdfast.Unsupported:
		case holdfast.Immutable, holdfast.Corrupt, holdfast.NoSpace:
			p.refuse(found, media.Suspect, err)
		default:
			p.stations.doubt(ctx, x, err)
		}
		x.tape = nil
		p.stations.give(x)
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.entryOf(found)
	*c = media.Cartridge{ID: l.ID, Barcode: found.Barcode, Serial: found.Serial, State: media.Labelled, WORM: found.WORM, Set: set, Seq: seq, Created: l.Created, Size: found.Size}
	p.book.Forget()
	x.tape = &mounted{label: w.Label(), writer: w}
	if x.tape.reader, err = nil, p.save(); err != nil {
		p.stations.give(x)
		return nil, err
	}
	p.log("cartridge %s is number %d of media set %s", c.Barcode, seq, set)
	return x, nil
}

// entryOf returns the book's line for a cartridge that was found; the caller holds mu.
func (p *Pool) entryOf(found media.Cartridge) *media.Cartridge {
	for _, c := range p.book.Barcode(found.Barcode) {
		if c.Serial == found.Serial || c.Serial == "" || found.Serial == "" {
			return c
		}
	}
	c := &media.Cartridge{}
	p.book.Cartridges = append(p.book.Cartridges, c)
	return c
}

// refuse notes that a cartridge that was looked at cannot be taken.
func (p *Pool) refuse(found media.Cartridge, s media.State, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.entryOf(found)
	if c.Set.IsZero() || c.State == media.Recycled {
		id, set, seq := c.ID, c.Set, c.Seq
		*c = found
		c.ID, c.Set, c.Seq = id, set, seq
	}
	c.State, c.Why = s, why.Error()
	p.log("cartridge %s is %s: %v", c.Barcode, s, why)
	p.saveLater()
}

// scratch finds a cartridge that may be written from its beginning, and returns it loaded: one that was recycled or is known as blank, then one that nobody knows and
// that is blank, then one of a media set that has expired. NoSpace if there is none.
func (p *Pool) scratch(ctx context.Context) (*station, media.Cartridge, error) {
	tried := map[string]bool{}
	for {
		inv, err := p.stations.lib.Changer().Inventory(ctx)
		if err != nil {
			return nil, media.Cartridge{}, err
		}
		code := p.candidate(&inv, tried)
		if code == "" {
			return nil, media.Cartridge{}, holdfast.Errorf(holdfast.NoSpace, "find a cartridge to write on", "%w: there is no blank or recycled cartridge in the library", errFinal).
				Advise("import blank cartridges, or recycle a media set that is not needed")
		}
		tried[code] = true
		x, err := p.seat(ctx, func(v *changer.Inventory) (scsi.Element, error) { return locate(v, &media.Cartridge{Barcode: code}) })
		if errors.Is(err, errAway) {
			continue
		}
		if err != nil {
			return nil, media.Cartridge{}, err
		}
		found, err := p.inspect(ctx, x, code)
		if err == nil {
			return x, found, nil
		}
		k := holdfast.KindOf(err)
		if k == holdfast.Invalid {
			p.refuse(found, media.Foreign, err)
		} else {
			p.stations.doubt(ctx, x, err)
		}
		x.tape = nil
		p.stations.give(x)
		if k == holdfast.Cancelled {
			return nil, found, err
		}
	}
}

// candidate returns the bar code of the cartridge to look at next; empty: there is none.
func (p *Pool) candidate(inv *changer.Inventory, tried map[string]bool) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.book.Expire(p.clk.Now(), p.keep)
	best, rank := "", 0
	for _, e := range slices.Concat(inv.Slots, inv.Drives) {
		if !e.Full || e.Barcode == "" || tried[e.Barcode] || slices.Contains(inv.Twice, e.Barcode) || p.stations.lib.Changer().Cleaning(e.Barcode) || !p.config.wants(e.Barcode) {
			continue
		}
		r := 0
		switch known := p.book.Barcode(e.Barcode); {
		case len(known) == 0 && !p.config.Admitted:
			r = 2
		case len(known) == 1 && known[0].Takeable():
			r = 3
		case len(known) == 1 && known[0].State == media.Expired && known[0].Vaulted == "" && !known[0].WORM && p.pins[known[0].Set] == 0:
			r = 1
		}
		if r > rank {
			best, rank = e.Barcode, r
		}
	}
	if rank == 1 {
		set := p.book.Set(p.book.Barcode(best)[0].Set)
		p.log("media set %s has expired and is recycled", set.ID)
		p.book.Recycle(set, p.clk.Now())
	}
	return best
}

// inspect looks whether what is in a station may be written from its beginning: it is blank, or carries the label that the book has given up, or one of ours with
// nothing on it, left by a crash. Invalid: it is something else.
func (p *Pool) inspect(ctx context.Context, x *station, code string) (media.Cartridge, error) {
	const op = "look at cartridge"
	d := x.hold.Drive
	x.tape = nil
	found := media.Cartridge{Barcode: code, WORM: d.Capabilities().WORM}
	r, err := hft.Open(ctx, d)
	blank := holdfast.KindOf(err) == holdfast.NotExist && err != nil
	if err != nil && !blank && holdfast.KindOf(err) != holdfast.Invalid && holdfast.KindOf(err) != holdfast.Corrupt {
		return found, err
	}
	why := err
	if as, aerr := d.Attributes(ctx, 0); aerr == nil {
		serial, size := as[scsi.AttrSerial], as[scsi.AttrMaximum]
		found.Serial = serial.Text()
		if n, ok := size.Uint(); ok {
			found.Size = int64(n) << 20
		}
	}
	p.mu.Lock()
	var known *media.Cartridge
	if all := p.book.Barcode(code); len(all) == 1 {
		c := *all[0]
		known = &c
	}
	p.mu.Unlock()
	switch {
	case known != nil && known.Serial != "" && found.Serial != "" && known.Serial != found.Serial:
		return found, holdfast.Errorf(holdfast.Invalid, op, "its medium has the serial number %s, and the one with this bar code has %s", found.Serial, known.Serial)
	case blank:
		return found, nil
	case why != nil:
		return found, holdfast.Errorf(holdfast.Invalid, op, "%w", why)
	}
	l := r.Label()
	if known != nil && known.State == media.Recycled && l.ID == known.ID && !found.WORM {
		return found, nil
	}
	if l.Pool != p.id && !l.Pool.IsZero() { // a label of no pool was made by hand, to be taken by one
		return found, holdfast.Errorf(holdfast.Invalid, op, "it belongs to pool %s (%q)", l.Pool, l.PoolName)
	}
	if p.known(l.ID) {
		return found, holdfast.Errorf(holdfast.Invalid, op, "it is tape %s, which the pool knows by another bar code", l.ID)
	}
	return found, p.empty(ctx, r, l, found.WORM)
}

// empty reports, as Invalid, that a tape with a label of ours that the book does not know holds something.
func (p *Pool) empty(ctx context.Context, r *hft.Reader, l hft.Label, worm bool) error {
	key, err := p.keyOf(l)
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
	if len(f.Objects) > 0 || f.Suspect || worm {
		return holdfast.Errorf(holdfast.Invalid, "look at cartridge", "it is tape %s of this pool, which does not know it: it holds %d objects", l.ID, len(f.Objects)).
			Advise("read the catalog from the cartridges again")
	}
	return nil
}

func (p *Pool) known(tape holdfast.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.book.Tape(tape) != nil
}
