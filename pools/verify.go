package pools

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// MaxDamaged bounds a verify report: a pool whose medium is gone does not make a list of each of its chunks. The last entry
// of a list that long says that there is more.
const MaxDamaged = 4096

// verifyBatch is the number of refs of a map that are read at a time.
const verifyBatch = 4096

// Verify reads stored bytes back and checks them: by the pool's own Verifier, or else by VerifyByReading. Damage is in the
// report and is not an error.
func Verify(ctx context.Context, p Pool, o VerifyOptions) (VerifyReport, error) {
	if v, ok := p.(Verifier); ok {
		return v.Verify(ctx, o)
	}
	return VerifyByReading(ctx, p, o)
}

// VerifyByReading reads and re-hashes all data of the sets, as restores would, and names for each damaged chunk the VM, the
// disk and the extents. It needs nothing of a pool but Sets, Open, Map and Read. A set deleted meanwhile is passed over; one asked
// for by id that is not there is NotExist. Other errors end it: they say nothing about the stored bytes.
func VerifyByReading(ctx context.Context, p Pool, o VerifyOptions) (VerifyReport, error) {
	v := &verifier{pool: p, tools: openers(0, p.Traits().Domain), o: o}
	ids := o.Sets
	if len(ids) == 0 {
		for m, err := range p.Sets(ctx) {
			switch {
			case err != nil && holdfast.KindOf(err) == holdfast.Corrupt:
				v.damaged(Damage{Where: "list of sets", Set: m.ID, Text: err.Error()})
				continue
			case err != nil:
				return v.report, err
			}
			ids = append(ids, m.ID)
			for _, d := range m.Disks {
				v.all += d.Size
			}
		}
	}
	for _, id := range ids {
		set, err := p.Open(ctx, id)
		switch {
		case err == nil:
		case holdfast.KindOf(err) == holdfast.Corrupt:
			v.damaged(Damage{Where: "set", Set: id, Text: err.Error()})
			continue
		case holdfast.KindOf(err) == holdfast.NotExist && len(o.Sets) == 0:
			continue // deleted since it was listed
		default:
			return v.report, err
		}
		err = v.set(ctx, set)
		if e := set.Close(); err == nil {
			err = e
		}
		if err != nil {
			return v.report, err
		}
	}
	return v.report, nil
}

// A verifier is one VerifyByReading.
type verifier struct {
	pool      Pool
	tools     []*opener
	o         VerifyOptions
	done, all int64

	mu     sync.Mutex // guards what follows while workers run
	report VerifyReport
}

// damaged adds to the report.
func (v *verifier) damaged(d Damage) {
	switch n := len(v.report.Damaged); {
	case n < MaxDamaged:
		v.report.Damaged = append(v.report.Damaged, d)
	case n == MaxDamaged:
		v.report.Damaged = append(v.report.Damaged, Damage{Where: "report", Text: "there is more damage than is listed here"})
	}
}

func (v *verifier) set(ctx context.Context, set Set) error {
	m := set.Manifest()
	if len(v.o.Sets) > 0 {
		for _, d := range m.Disks {
			v.all += d.Size
		}
	}
	v.report.Sets++
	for i := range m.Disks {
		d := &diskVerifier{v: v, set: set, m: &m, d: &m.Disks[i], found: map[holdfast.Digest]*Damage{}}
		if err := d.run(ctx); err != nil {
			return err
		}
		v.done += d.d.Size
		if v.o.Progress != nil {
			v.o.Progress(v.done, v.all)
		}
	}
	return nil
}

// A diskVerifier verifies one disk of one set.
type diskVerifier struct {
	v     *verifier
	set   Set
	m     *holdfast.Manifest
	d     *holdfast.Disk
	found map[holdfast.Digest]*Damage // guarded by v.mu
}

func (d *diskVerifier) run(ctx context.Context) error {
	defer d.tell()
	batch := make([]holdfast.Ref, 0, verifyBatch)
	for r, err := range d.set.Map(ctx, d.d.ID) {
		if err != nil && holdfast.KindOf(err) != holdfast.Corrupt {
			return err
		}
		if err != nil { // nobody knows what the disk held from here on
			end := int64(0)
			if len(batch) > 0 {
				end = batch[len(batch)-1].End()
			}
			d.bad(holdfast.Ref{Extent: holdfast.Extent{Off: end, Len: d.d.Size - end}}, err.Error())
			break
		}
		if r.Digest.IsZero() {
			continue
		}
		if batch = append(batch, r); len(batch) == verifyBatch {
			if err := d.refs(ctx, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return d.refs(ctx, batch)
}

// refs verifies what the refs name. Where a read ends with Corrupt, the part that did not come is tried again in halves, so
// that the rest of the disk is looked at all the same.
func (d *diskVerifier) refs(ctx context.Context, refs []holdfast.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	var want, got holdfast.Extents
	for _, r := range refs {
		want = append(want, r.Extent)
	}
	read := func(ctx context.Context) iter.Seq2[*holdfast.Parcel, error] {
		return d.set.Read(ctx, d.d.ID, want.Normal(d.d.Size))
	}
	err := eachParcel(ctx, d.v.tools, read, func(t *opener, p *holdfast.Parcel) error {
		came := d.parcel(t, p)
		d.v.mu.Lock()
		defer d.v.mu.Unlock()
		d.v.report.Bytes += int64(len(p.Payload))
		got = append(got, came...)
		return nil
	})
	if err != nil && holdfast.KindOf(err) != holdfast.Corrupt {
		return err
	}
	text := "the pool did not deliver it"
	if err != nil {
		text = err.Error()
	}
	got = got.Normal(d.d.Size)
	left := slices.DeleteFunc(slices.Clone(refs), func(r holdfast.Ref) bool { return len(holdfast.Extents{r.Extent}.Subtract(got)) == 0 })
	if err == nil || len(left) == 1 {
		for _, r := range left {
			d.bad(r, text)
		}
		return nil
	}
	half := len(left) / 2
	if err := d.refs(ctx, left[:half]); err != nil {
		return err
	}
	return d.refs(ctx, left[half:])
}

// parcel verifies one parcel, notes what is bad, and returns the extents that came.
func (d *diskVerifier) parcel(t *opener, p *holdfast.Parcel) holdfast.Extents {
	came := make(holdfast.Extents, 0, len(p.Places))
	for _, pl := range p.Places {
		came = append(came, holdfast.Extent{Off: pl.Off, Len: int64(pl.Len)})
	}
	err := t.survey(p)
	var plain []byte
	if err == nil {
		plain, err = t.dec.Decode(&p.Group, t.buf)
	}
	if err != nil {
		for _, e := range came {
			d.bad(holdfast.Ref{Extent: e}, err.Error())
		}
		return came
	}
	good, n := make([]bool, len(p.Chunks)), int64(0)
	for i, c := range p.Chunks {
		if t.used[i] {
			good[i] = t.hash.Sum(t.chunk(plain, i)) == c.Digest
			n++
		}
	}
	d.v.mu.Lock()
	d.v.report.Chunks += n
	d.v.mu.Unlock()
	for _, pl := range p.Places {
		from := uint32(0)
		for i, c := range p.Chunks {
			lo, hi := max(from, pl.At), min(from+c.Len, pl.At+pl.Len)
			if lo < hi && !good[i] {
				e := holdfast.Extent{Off: pl.Off + int64(lo-pl.At), Len: int64(hi - lo)}
				d.bad(holdfast.Ref{Extent: e, Digest: c.Digest}, fmt.Sprintf("%d stored bytes do not have the chunk's digest", c.Len))
			}
			from += c.Len
		}
	}
	return came
}

// bad notes an extent. Extents of one chunk become one entry.
func (d *diskVerifier) bad(r holdfast.Ref, text string) {
	d.v.mu.Lock()
	defer d.v.mu.Unlock()
	f := d.found[r.Digest]
	if f == nil {
		f = &Damage{Where: "set", Digest: r.Digest, Set: d.m.ID, VM: d.m.VM.Name, Disk: d.d.Name, Text: text}
		d.found[r.Digest] = f
	}
	f.Extents = append(f.Extents, r.Extent)
}

// tell moves what was found into the report, by offset.
func (d *diskVerifier) tell() {
	all := make([]*Damage, 0, len(d.found))
	for _, f := range d.found {
		if f.Extents = holdfast.Extents(f.Extents).Normal(d.d.Size); len(f.Extents) == 0 {
			f.Extents = holdfast.Extents{{Off: 0, Len: d.d.Size}} // delivered for somewhere outside the disk
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *Damage) int { return cmp.Compare(a.Extents[0].Off, b.Extents[0].Off) })
	for _, f := range all {
		d.v.damaged(*f)
	}
}
