package hft

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
)

// ErrNextTape says that the tape takes no more: it was committed, or is to be, and the stream goes on with its next part on the next tape of the set.
var ErrNextTape = errors.New("the tape is full")

// A Stream is an object on its way to tape. It outlives the tape that it began on.
type Stream struct {
	ID         holdfast.ID
	Kind, Name string
	r          io.Reader
	part       int
	off        int64
	hash       *holdfast.Hasher // of the whole content
	done       bool
}

// NewStream returns a stream of the content of r. Kind and name are checked when it is put.
func NewStream(id holdfast.ID, kind, name string, r io.Reader) *Stream {
	return &Stream{ID: id, Kind: kind, Name: name, r: r, part: 1, hash: holdfast.Domain{}.Hasher()}
}

// Done reports whether the whole content was put.
func (s *Stream) Done() bool { return s.done }

// A Key is what the drive encrypts a tape with. Its bytes never leave for anything but the drive.
type Key struct{ Bytes, Descriptor []byte }

func (k *Key) set(ctx context.Context, d *drive.Drive) error {
	if k == nil {
		return d.SetKey(ctx, nil, nil)
	}
	return d.SetKey(ctx, k.Bytes, k.Descriptor)
}

// A Writer appends to one tape. Not safe for concurrent use. After an error it is of no more use: what Commit has returned is on the tape, nothing else is.
type Writer struct {
	d     *drive.Drive
	label Label
	key   *Key
	buf   []byte
	done  []Entry // committed
	open  []Entry // since
	err   error
	full  bool
}

// Create labels a tape, whatever was on it, and begins it with a catalog of the set's earlier tapes. The caller has made sure that nobody needs what is there.
func Create(ctx context.Context, d *drive.Drive, l Label, key *Key, prior []Entry) (*Writer, error) {
	const op = "label tape"
	if l.Block == 0 {
		l.Block = DefaultBlock
	}
	l.Block = min(l.Block, d.Capabilities().MaxBlock)
	if err := l.check(op); err != nil {
		return nil, err
	}
	if l.Encrypted() != (key != nil) {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "an encrypted tape needs a key, and its label the wrapped one")
	}
	w := &Writer{d: d, label: l, key: key, buf: make([]byte, l.Block)}
	if err := d.Rewind(ctx); err != nil {
		return nil, err
	}
	if err := (*Key)(nil).set(ctx, d); err != nil { // the label can be read without a key
		return nil, err
	}
	p := encode(l)
	if len(p) > maxLabel || len(p)+headerLen > MaxBlock {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "a label of %d bytes", len(p))
	}
	b := make([]byte, headerLen+len(p))
	copy(b[headerLen:], p)
	block{kind: typeLabel, tape: l.ID}.seal(b)
	if err := d.Write(ctx, b); err != nil {
		return nil, err
	}
	if err := d.Flush(ctx, 1); err != nil {
		return nil, err
	}
	if err := key.set(ctx, d); err != nil {
		return nil, err
	}
	if err := w.catalog(ctx, prior); err != nil {
		return nil, err
	}
	return w, nil
}

// Append goes on writing to a tape whose label must be want's: same tape, same set. known is what the caller believes to be committed on it: if any
// of that is missing the tape is Corrupt and is not written to. What a crash left behind the last commit is cut off, or on write-once media passed over.
func Append(ctx context.Context, d *drive.Drive, want Label, key *Key, known []Entry) (*Writer, error) {
	const op = "append to tape"
	r, err := Open(ctx, d)
	if err != nil {
		return nil, err
	}
	if r.label.ID != want.ID || r.label.Set != want.Set || r.label.Seq != want.Seq {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the tape in the drive is %s, not %s", r.label.ID, want.ID).Advise("take stock of the library again: a cartridge was swapped or relabelled")
	}
	if err := r.Unlock(ctx, key); err != nil {
		return nil, err
	}
	f, err := r.Tail(ctx)
	if err != nil {
		return nil, err
	}
	if f.Suspect {
		return nil, corrupt(op, "the tape has lost something that was written: %s", f.Broken[0])
	}
	have := map[uint64]Entry{}
	for _, e := range f.Objects {
		have[e.At] = e
	}
	for _, e := range known {
		if have[e.At] != e {
			return nil, corrupt(op, "the tape does not have %s %s at %d, which was committed", e.Kind, e.Name, e.At)
		}
	}
	w := &Writer{d: d, label: r.label, key: key, buf: make([]byte, r.label.Block), done: slices.Clone(f.Objects)}
	if err := w.place(ctx, f); err != nil {
		return nil, err
	}
	return w, nil
}

// place goes to where writing begins.
func (w *Writer) place(ctx context.Context, f Found) error {
	if f.Clean || !w.d.Capabilities().WORM {
		return w.d.Locate(ctx, 0, f.End)
	}
	if err := w.d.EndOfData(ctx); err != nil {
		if holdfast.KindOf(err) != holdfast.Corrupt {
			return err
		}
		return holdfast.Errorf(holdfast.NoSpace, "append to tape", "%w: the drive does not find where the data of this write-once tape ends: %w", ErrNextTape, err).
			Advise("the tape is as good as full: what was committed is read, and writing goes on on the next tape of the set")
	}
	return w.d.Filemarks(ctx, 1) // closes what a crash has left open
}

// Label returns the tape's label.
func (w *Writer) Label() Label { return w.label }

// Objects returns what is committed.
func (w *Writer) Objects() []Entry { return slices.Clone(w.done) }

// Full reports that the tape takes no further object.
func (w *Writer) Full() bool { return w.full || w.d.Warned() }

// block writes one block whose payload of n bytes lies in the buffer.
func (w *Writer) block(ctx context.Context, k block, n int) error {
	k.tape = w.label.ID
	b := w.buf[:headerLen+n]
	k.seal(b)
	return w.d.Write(ctx, b)
}

// fail makes an error final.
func (w *Writer) fail(err error) error {
	if errors.Is(err, drive.ErrFull) {
		w.full = true
		err = holdfast.Errorf(holdfast.NoSpace, "write tape", "%w before the commit: what was written since the last one does not count", ErrNextTape).
			Advise("write it again on the next tape of the set")
	}
	w.err = err
	return err
}

// Put writes a stream, or as much of it as fits: ErrNextTape then says that another tape gets the rest (Stream.Done tells whether there is any). Nothing of it is on the tape
// before Commit.
func (w *Writer) Put(ctx context.Context, s *Stream) error {
	if len(s.Kind) == 0 || len(s.Kind) > maxKind || len(s.Name) > MaxName || s.ID.IsZero() || s.Kind == catalog || s.done {
		return holdfast.Errorf(holdfast.Invalid, "write tape", "an object without id, with a kind or name out of bounds, or put before")
	}
	if w.err != nil {
		return w.err
	}
	if w.Full() {
		return holdfast.Errorf(holdfast.NoSpace, "write tape", "%w", ErrNextTape)
	}
	e, err := w.object(ctx, s)
	if err != nil {
		return w.fail(err)
	}
	w.open = append(w.open, e)
	if e.More {
		return holdfast.Errorf(holdfast.NoSpace, "write tape", "%w", ErrNextTape)
	}
	return nil
}

// object writes one tape file.
func (w *Writer) object(ctx context.Context, s *Stream) (Entry, error) {
	_, at, _ := w.d.Position()
	e := Entry{Tape: w.label.ID, Seq: w.label.Seq, At: at, ID: s.ID, Kind: s.Kind, Name: s.Name, Part: s.part, Offset: s.off}
	p := encode(head{s.ID, s.Kind, s.Name, s.part, s.off})
	k := block{kind: typeHead, file: at}
	if err := w.block(ctx, k, copy(w.buf[headerLen:], p)); err != nil {
		return e, err
	}
	hash, blocks := s.hash, int64(0)
	if s.part > 1 { // the first part's sum is the whole's so far
		hash = holdfast.Domain{}.Hasher()
	}
	for ctx.Err() == nil {
		n, err := io.ReadFull(s.r, w.buf[headerLen:])
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return e, err
		}
		if n > 0 {
			k.kind, k.number, k.off = typeData, k.number+1, s.off
			summed := make(chan struct{})
			go func() { // while the drive takes the block, which only reads it too
				defer close(summed)
				_, _ = hash.Write(w.buf[headerLen : headerLen+n])
				if hash != s.hash {
					_, _ = s.hash.Write(w.buf[headerLen : headerLen+n])
				}
			}()
			err := w.block(ctx, k, n)
			<-summed
			if err != nil {
				return e, err
			}
			s.off, blocks = s.off+int64(n), blocks+1
		}
		if err != nil {
			s.done = true
			break
		}
		if w.d.Warned() && s.Kind != catalog {
			e.More = true
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return e, holdfast.Errorf(holdfast.KindOf(err), "write tape", "%w", err)
	}
	e.Length, e.PartSum = s.off-e.Offset, hash.Digest()
	if !e.More {
		e.Sum = s.hash.Digest()
	}
	p = encode(trailer{s.ID, s.part, e.Length, blocks, e.PartSum, e.More, e.Sum})
	s.part++
	k.kind, k.number, k.off = typeTrailer, k.number+1, 0
	if err := w.block(ctx, k, copy(w.buf[headerLen:], p)); err != nil {
		return e, err
	}
	if s.Kind == catalog {
		return e, nil // its filemark is the commit's
	}
	return e, w.d.Filemarks(ctx, 1)
}

// catalog writes a catalog and waits until everything is on the medium.
func (w *Writer) catalog(ctx context.Context, prior []Entry) error {
	all := slices.Concat(w.done, w.open)
	c := encode(catalogue{Tape: w.label.ID, Set: w.label.Set, Seq: w.label.Seq, Objects: append([]Entry{}, all...), Prior: prior})
	if len(c) > MaxCatalog {
		return w.fail(holdfast.Errorf(holdfast.NoSpace, "write tape catalog", "%d bytes", len(c)))
	}
	if _, err := w.object(ctx, NewStream(holdfast.NewID(), catalog, "", bytes.NewReader(c))); err != nil {
		return w.fail(err)
	}
	if err := w.d.Flush(ctx, 1); err != nil {
		return w.fail(err)
	}
	w.done, w.open = all, nil
	return nil
}

// Commit makes everything that was put durable and returns it. After an error nothing of it counts, and the writer is of no more use.
func (w *Writer) Commit(ctx context.Context) ([]Entry, error) {
	if w.err != nil {
		return nil, w.err
	}
	fresh := slices.Clone(w.open)
	if err := w.catalog(ctx, nil); err != nil {
		return nil, err
	}
	return fresh, nil
}
