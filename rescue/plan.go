package rescue

import (
	"cmp"
	"context"
	"io"
	"iter"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// A piece is a part of a chunk and where it belongs on the disk.
type piece struct {
	at     chunkAt
	digest holdfast.Digest
	skip   uint32
	len    uint32
	off    int64
	err    error // it is nowhere
	where  string
}

// A plan is one disk of a set as pieces.
type plan struct {
	manifest holdfast.Manifest
	disk     int
	lib      *library
	pieces   iter.Seq2[piece, error]           // in order of the disk
	others   func(d holdfast.Digest) []chunkAt // more places of a chunk; may be nil
	total    int64                             // bytes of data, where known
	warnings []error
}

// window is how many pieces are sorted at a time, so that each group is read few times.
const window = 1 << 16

// A Damage is bytes of a disk that could not be read.
type Damage struct {
	Where  string          `json:"where"` // the object that is damaged, or missing
	Extent holdfast.Extent `json:"extent"`
	Text   string          `json:"text"`
}

// maxDamages bounds what a report lists.
const maxDamages = 10000

// Options steer a Restore.
type Options struct {
	// KeepGoing restores what can be read of a damaged disk; the rest stays zeros and is in the report. Else the first damage is the error.
	KeepGoing bool
	Progress  func(done, all int64) // bytes of data; may be nil
}

// A Report is what a Restore did.
type Report struct {
	Written  int64    `json:"written"` // bytes of data; the rest of the disk is zeros
	Damaged  []Damage `json:"damaged"`
	Warnings []string `json:"warnings"` // damage that did not matter to this disk, or may not have
}

// Restore writes a disk of a set, by its number in the manifest, into w, which reads as zeros. Every byte was checked. The error names what is
// damaged.
func (p *Pool) Restore(ctx context.Context, id holdfast.SetID, disk int, w io.WriterAt, o Options) (Report, error) {
	r := Report{Damaged: []Damage{}, Warnings: []string{}}
	pl, err := p.engine.disk(ctx, id, disk)
	if err != nil {
		return r, err
	}
	for _, e := range pl.warnings {
		r.Warnings = append(r.Warnings, e.Error())
	}
	b := &builder{plan: pl, w: w, o: o, r: &r, size: pl.manifest.Disks[disk].Size}
	batch := make([]piece, 0, window)
	for x, err := range pl.pieces {
		if err != nil {
			return r, err
		}
		if batch = append(batch, x); len(batch) == window {
			if err := b.write(ctx, batch); err != nil {
				return r, err
			}
			batch = batch[:0]
		}
	}
	return r, b.write(ctx, batch)
}

// A builder is one Restore.
type builder struct {
	*plan
	w    io.WriterAt
	o    Options
	r    *Report
	size int64
}

// write writes pieces, group by group.
func (b *builder) write(ctx context.Context, batch []piece) error {
	type located struct {
		groupAt
		piece
	}
	list := make([]located, 0, len(batch))
	for _, x := range batch {
		if x.off < 0 || x.off+int64(x.len) > b.size {
			return holdfast.Errorf(holdfast.Corrupt, "restore", "bytes at %d lie outside the disk", x.off)
		}
		if x.err != nil {
			if err := b.damaged(x, x.where, x.err); err != nil {
				return err
			}
			continue
		}
		g, err := b.groupOf(ctx, x)
		if err != nil {
			if err := b.elsewhere(ctx, x, err); err != nil {
				return err
			}
			continue
		}
		list = append(list, located{g, x})
	}
	slices.SortFunc(list, func(x, y located) int {
		return cmp.Or(cmp.Compare(x.file, y.file), cmp.Compare(x.group, y.group), cmp.Compare(x.off, y.off))
	})
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].groupAt == list[0].groupAt {
			n++
		}
		some := make([]piece, n)
		for i := range some {
			some[i] = list[i].piece
		}
		if err := b.group(ctx, list[0].groupAt, some); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// groupOf returns the group of a piece's chunk.
func (b *builder) groupOf(ctx context.Context, x piece) (groupAt, error) {
	bk, err := b.lib.open(ctx, int(x.at.file))
	if err != nil {
		return groupAt{}, err
	}
	if int(x.at.ordinal) >= len(bk.f.Chunks) {
		return groupAt{}, holdfast.Errorf(holdfast.Corrupt, "read chunk", "there is no chunk %d", x.at.ordinal)
	}
	return groupAt{int(x.at.file), bk.f.Chunks[x.at.ordinal].Group}, nil
}

// group writes the pieces of one group. Where it is damaged, each piece is looked for elsewhere.
func (b *builder) group(ctx context.Context, at groupAt, some []piece) error {
	if err := blob.Cancelled(ctx, "restore"); err != nil {
		return err
	}
	bk, err := b.lib.open(ctx, at.file)
	if err != nil {
		return err
	}
	first := bk.f.Groups[at.group].First
	used := map[int]bool{}
	for _, x := range some {
		used[int(x.at.ordinal-first)] = true
	}
	plain, err := b.lib.read(ctx, at, func(i int) bool { return used[i] })
	for _, x := range some {
		if err != nil {
			if err := b.elsewhere(ctx, x, err); err != nil {
				return err
			}
			continue
		}
		c := bk.f.Chunks[x.at.ordinal]
		if !x.digest.IsZero() && c.Digest != x.digest || x.skip+x.len > c.Len {
			return holdfast.Errorf(holdfast.Corrupt, "restore", "chunk %d of %s is not the one that is meant", x.at.ordinal, b.lib.files[at.file].label)
		}
		from := c.At + x.skip
		if err := b.put(plain[from:from+x.len], x.off); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) put(p []byte, off int64) error {
	if _, err := b.w.WriteAt(p, off); err != nil {
		return holdfast.Errorf(holdfast.KindOf(err), "write output", "%w", err)
	}
	b.r.Written += int64(len(p))
	if b.o.Progress != nil {
		b.o.Progress(b.r.Written, b.total)
	}
	return nil
}

// elsewhere writes a piece from another place of its chunk, or notes damage.
func (b *builder) elsewhere(ctx context.Context, x piece, why error) error {
	if ctx.Err() != nil {
		return blob.Cancelled(ctx, "restore")
	}
	if b.others != nil {
		for _, at := range b.others(x.digest) {
			if at == x.at {
				continue
			}
			p, err := b.lib.chunk(ctx, at)
			if err == nil && int(x.skip+x.len) <= len(p) {
				return b.put(p[x.skip:x.skip+x.len], x.off)
			}
		}
	}
	return b.damaged(x, b.lib.files[x.at.file].label, why)
}

// damaged notes bytes that cannot be restored, or makes them the end.
func (b *builder) damaged(x piece, where string, why error) error {
	e := holdfast.Extent{Off: x.off, Len: int64(x.len)}
	if !b.o.KeepGoing {
		return holdfast.Errorf(holdfast.Corrupt, "restore", "%s: bytes %d to %d of the disk cannot be read: %w", where, e.Off, e.Off+e.Len, why).
			Advise("restore an older point in time, or repeat with --keep-going to get everything that can be read")
	}
	if n := len(b.r.Damaged); n > 0 && b.r.Damaged[n-1].Where == where && b.r.Damaged[n-1].Extent.Off+b.r.Damaged[n-1].Extent.Len == e.Off {
		b.r.Damaged[n-1].Extent.Len += e.Len
		return nil
	}
	if len(b.r.Damaged) < maxDamages {
		b.r.Damaged = append(b.r.Damaged, Damage{Where: where, Extent: e, Text: why.Error()})
	}
	return nil
}
