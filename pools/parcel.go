package pools

import (
	"context"
	"iter"
	"runtime"
	"sort"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
)

// An opener is one worker's tools for parcels.
type opener struct {
	dec  *chunk.Decoder
	hash *holdfast.Hasher
	buf  []byte // for plaintext; never holds a payload
	ends []int  // where the chunks of the parcel at hand end in its plaintext
	used []bool // which of them its places need
}

// openers makes tools for n workers; 0 stands for one per processor.
func openers(n int, d holdfast.Domain) []*opener {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	out := make([]*opener, n)
	for i := range out {
		out[i] = &opener{dec: chunk.NewDecoder(), hash: d.Hasher(), buf: make([]byte, holdfast.MaxGroupPlain)}
	}
	return out
}

// survey finds the ends and the used chunks of a parcel. The error is Corrupt: a place outside of the plaintext, or a group
// out of bounds, is not what a pool was given.
func (o *opener) survey(p *holdfast.Parcel) error {
	const op = "open parcel"
	if err := p.Check(); err != nil {
		return holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	o.ends, o.used = o.ends[:0], o.used[:0]
	end := 0
	for _, c := range p.Chunks {
		end += int(c.Len)
		o.ends, o.used = append(o.ends, end), append(o.used, false)
	}
	for _, pl := range p.Places {
		if pl.Len == 0 || int64(pl.At)+int64(pl.Len) > int64(end) || pl.Off < 0 {
			return holdfast.Errorf(holdfast.Corrupt, op, "a place of %d bytes at %d of %d", pl.Len, pl.At, end)
		}
		for i := sort.SearchInts(o.ends, int(pl.At)+1); ; i++ {
			o.used[i] = true
			if o.ends[i] >= int(pl.At)+int(pl.Len) {
				break
			}
		}
	}
	return nil
}

// open returns the plaintext of a parcel, of which every chunk that a place needs is verified. It is valid until the next
// open of the same opener.
func (o *opener) open(p *holdfast.Parcel) ([]byte, error) {
	if err := o.survey(p); err != nil {
		return nil, err
	}
	return o.dec.Open(o.hash, &p.Group, o.buf, func(i int) bool { return o.used[i] })
}

// chunk returns chunk i of the plaintext of the surveyed parcel.
func (o *opener) chunk(plain []byte, i int) []byte {
	from := 0
	if i > 0 {
		from = o.ends[i-1]
	}
	return plain[from:o.ends[i]]
}

// eachParcel hands the parcels of a read to workers, releases each afterwards, and returns the first error, the read's or a
// worker's. At most len(workers)+1 parcels are out at a time. read is called with a context that ends at the first error.
func eachParcel(ctx context.Context, workers []*opener, read func(context.Context) iter.Seq2[*holdfast.Parcel, error],
	do func(*opener, *holdfast.Parcel) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	parcels := make(chan *holdfast.Parcel)
	var wg sync.WaitGroup
	for _, o := range workers {
		wg.Go(func() {
			for p := range parcels {
				if ctx.Err() == nil {
					if err := do(o, p); err != nil {
						cancel(err)
					}
				}
				p.Release()
			}
		})
	}
	for p, err := range read(ctx) {
		if err != nil {
			cancel(err) // what a worker met before stays the cause
			break
		}
		parcels <- p // workers drain the channel even after an error
		if ctx.Err() != nil {
			break
		}
	}
	close(parcels)
	wg.Wait()
	return context.Cause(ctx)
}
