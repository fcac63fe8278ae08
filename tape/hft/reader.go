package hft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
)

// A Reader reads one tape. Not safe for concurrent use.
type Reader struct {
	d     *drive.Drive
	label Label
	buf   []byte
}

// Open reads the label of the tape in a drive. NotExist: the tape is blank. Invalid: what is on it is not ours, or cannot be read; it is not to be written to.
func Open(ctx context.Context, d *drive.Drive) (*Reader, error) {
	const op = "read tape label"
	r := &Reader{d: d, buf: make([]byte, MaxBlock)}
	if err := d.Rewind(ctx); err != nil {
		return nil, err
	}
	if err := (*Key)(nil).set(ctx, d); err != nil {
		return nil, err
	}
	n, err := d.Read(ctx, r.buf)
	foreign := func(why string) error {
		return holdfast.Errorf(holdfast.Invalid, op, "the tape has something else on it: %s", why).Advise("if nobody needs what is on the tape, label it by force")
	}
	switch {
	case errors.Is(err, drive.ErrEndOfData):
		return nil, holdfast.Errorf(holdfast.NotExist, op, "the tape is blank")
	case errors.Is(err, drive.ErrFilemark):
		return nil, foreign("it begins with a filemark")
	case err != nil && (holdfast.KindOf(err) == holdfast.Invalid || holdfast.KindOf(err) == holdfast.Permission || holdfast.KindOf(err) == holdfast.Corrupt):
		return nil, foreign(err.Error())
	case err != nil:
		return nil, err
	}
	k, p, err := parseBlock(r.buf[:n])
	if holdfast.KindOf(err) == holdfast.Unsupported && err != nil {
		return nil, err
	}
	if err != nil || k.kind != typeLabel || k.file != 0 || k.number != 0 {
		return nil, foreign("no label of ours")
	}
	if err := decode(op, p, &r.label); err != nil {
		return nil, err
	}
	if r.label.ID != k.tape {
		return nil, corrupt(op, "the label names tape %s in a block of %s", r.label.ID, k.tape)
	}
	return r, r.label.check(op)
}

// Label returns the tape's label.
func (r *Reader) Label() Label { return r.label }

// Unlock gives the drive the tape's key; nil for a tape that is not encrypted.
func (r *Reader) Unlock(ctx context.Context, key *Key) error {
	if r.label.Encrypted() && key == nil {
		return holdfast.Errorf(holdfast.Permission, "read tape", "tape %s is encrypted, and its key is not there", r.label.Barcode).Advise("give the pool its key, or open the label's keyring with a passphrase")
	}
	return key.set(ctx, r.d)
}

// next reads the next block of a tape file and checks that it is the one. ErrFilemark ends the file.
func (r *Reader) next(ctx context.Context, file uint64, number uint32) (block, []byte, error) {
	n, err := r.d.Read(ctx, r.buf)
	if err != nil {
		return block{}, nil, err
	}
	k, p, err := parseBlock(r.buf[:n])
	if err == nil && (k.tape != r.label.ID || k.file != file || k.number != number) {
		err = corrupt("read tape", "block %d of file %d of tape %s where block %d of file %d is due", k.number, k.file, k.tape, number, file)
	}
	return k, p, err
}

// file reads the object at the place at hand and hands its content to the writer that pick chooses by its kind. It ends behind the trailer, before the filemark. The
// error is Corrupt for what is not whole; an entry without a kind says that there was no head.
func (r *Reader) file(ctx context.Context, pick func(kind string) io.Writer) (Entry, error) {
	const op = "read tape object"
	_, at, known := r.d.Position()
	e := Entry{Tape: r.label.ID, Seq: r.label.Seq, At: at}
	if !known {
		return e, holdfast.Errorf(holdfast.Transient, op, "%w", drive.ErrLost)
	}
	k, p, err := r.next(ctx, at, 0)
	if err != nil {
		return e, err
	}
	var h head
	if k.kind != typeHead {
		return e, corrupt(op, "block type %d instead of a head", k.kind)
	}
	if err := decode(op, p, &h); err != nil {
		return e, err
	}
	if h.ID.IsZero() || h.Part < 1 || h.Offset < 0 || h.Kind == "" || len(h.Kind) > maxKind || len(h.Name) > MaxName {
		return e, corrupt(op, "a head out of bounds")
	}
	e.ID, e.Kind, e.Name, e.Part, e.Offset = h.ID, h.Kind, h.Name, h.Part, h.Offset
	w, hash, blocks := pick(e.Kind), holdfast.Domain{}.Hasher(), int64(0)
	for number := uint32(1); ; number++ {
		if k, p, err = r.next(ctx, at, number); errors.Is(err, drive.ErrFilemark) || errors.Is(err, drive.ErrEndOfData) {
			return e, fmt.Errorf("%w: %w", corrupt(op, "%s %s ends without a trailer", e.Kind, e.Name), err)
		} else if err != nil {
			return e, err
		}
		if k.kind == typeTrailer {
			break
		}
		if k.kind != typeData || k.off != e.Offset+e.Length || len(p) == 0 {
			return e, corrupt(op, "a block of type %d with bytes from %d, where %d is due", k.kind, k.off, e.Offset+e.Length)
		}
		_, _ = hash.Write(p)
		if _, err := w.Write(p); err != nil {
			return e, err
		}
		e.Length, blocks = e.Length+int64(len(p)), blocks+1
	}
	var t trailer
	if err := decode(op, p, &t); err != nil {
		return e, err
	}
	e.PartSum, e.More, e.Sum = t.PartSum, t.More, t.Sum
	if t.ID != e.ID || t.Part != e.Part || t.Length != e.Length || t.Blocks != blocks || t.PartSum != hash.Digest() || t.More != t.Sum.IsZero() {
		return e, corrupt(op, "the trailer of %s %s does not fit what was read", e.Kind, e.Name)
	}
	return e, nil
}

// A Join puts the parts of an object together and checks the whole.
type Join struct {
	w    io.Writer
	hash *holdfast.Hasher
	id   holdfast.ID
	part int
	off  int64
	done bool
}

// NewJoin returns a Join that writes to w.
func NewJoin(w io.Writer) *Join {
	return &Join{w: w, hash: holdfast.Domain{}.Hasher()}
}

// Done reports whether the last part has come and the whole was right.
func (j *Join) Done() bool { return j.done }

// Read reads an object's next part. What it hands on has the right checksums block by block; only Join.Done says that the whole is right.
func (r *Reader) Read(ctx context.Context, e Entry, j *Join) error {
	const op = "read tape object"
	if e.Tape != r.label.ID {
		return holdfast.Errorf(holdfast.Invalid, op, "%s is on tape %s, not on %s", e.Name, e.Tape, r.label.ID)
	}
	if e.Part != j.part+1 || e.Offset != j.off || j.part > 0 && e.ID != j.id || j.done {
		return holdfast.Errorf(holdfast.Invalid, op, "part %d from %d of %s does not follow part %d", e.Part, e.Offset, e.ID, j.part)
	}
	if err := r.d.Locate(ctx, 0, e.At); err != nil {
		return err
	}
	into := j.w
	if e.More || e.Part > 1 { // an object of one part has one sum
		into = io.MultiWriter(j.w, j.hash)
	}
	got, err := r.file(ctx, func(string) io.Writer { return into })
	if err != nil {
		return err
	}
	if got != e {
		return corrupt(op, "the object at %d is not the one that the catalog lists", e.At)
	}
	j.id, j.part, j.off = e.ID, e.Part, e.Offset+e.Length
	if !e.More {
		if whole := j.hash.Digest(); e.Part > 1 && whole != e.Sum || e.Part == 1 && e.PartSum != e.Sum {
			return corrupt(op, "the parts of %s %s do not make the whole", e.Kind, e.Name)
		}
		j.done = true
	}
	return nil
}

// Found is what a tape holds by itself.
type Found struct {
	Label   Label
	Objects []Entry // committed: listed by the last whole catalog
	Prior   []Entry // of earlier tapes of the set
	Loose   []Entry // whole, but behind the last commit
	End     uint64  // address behind the last catalog's filemark: where writing goes on
	Clean   bool    // the data ends there
	// Broken tells of what is not whole. After a crash there may be one thing behind the last commit, which is nothing to worry about. Suspect says that no crash
	// leaves a tape so: something that was written was lost.
	Broken  []string
	Suspect bool
	Damage  []string // what was committed and is not whole
}

const maxDamage = 1000

func (f *Found) damaged(format string, args ...any) {
	if len(f.Damage) < maxDamage {
		f.Damage = append(f.Damage, fmt.Sprintf(format, args...))
	}
}

// limited is a buffer that refuses to grow beyond MaxCatalog.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > MaxCatalog {
		return 0, corrupt("read tape catalog", "more than %d bytes", MaxCatalog)
	}
	return l.Buffer.Write(p)
}

// catalog decodes a catalog of this tape.
func (r *Reader) catalog(b []byte) (catalogue, error) {
	const op = "read tape catalog"
	var c catalogue
	if err := decode(op, b, &c); err != nil {
		return c, err
	}
	if c.Tape != r.label.ID || c.Set != r.label.Set || c.Seq != r.label.Seq {
		return c, corrupt(op, "it is of tape %s", c.Tape)
	}
	return c, nil
}

// Tail finds the last commit by reading the end of the tape, or, where that is not a whole catalog or the drive cannot find it, by Scan.
func (r *Reader) Tail(ctx context.Context) (Found, error) {
	f, err := r.tail(ctx)
	if err == nil {
		return f, nil
	}
	if k := holdfast.KindOf(err); k == holdfast.Cancelled || k == holdfast.Permission {
		return f, err
	}
	return r.Scan(ctx)
}

func (r *Reader) tail(ctx context.Context) (Found, error) {
	f := Found{Label: r.label, Clean: true}
	if err := r.d.LastFile(ctx); err != nil {
		return f, err
	}
	var buf limited
	e, err := r.file(ctx, func(string) io.Writer { return &buf })
	if err != nil {
		return f, err
	}
	if _, err := r.d.Read(ctx, r.buf); !errors.Is(err, drive.ErrFilemark) {
		return f, corrupt("read tape catalog", "no filemark behind it: %v", err)
	}
	_, f.End, _ = r.d.Position()
	if _, err := r.d.Read(ctx, r.buf); !errors.Is(err, drive.ErrEndOfData) {
		return f, corrupt("read tape catalog", "the data does not end behind it: %v", err)
	}
	if e.Kind != catalog {
		return f, corrupt("read tape catalog", "the last object is a %s", e.Kind)
	}
	c, err := r.catalog(buf.Bytes())
	f.Objects, f.Prior = c.Objects, c.Prior
	return f, err
}

// Prior returns what the catalog that directly follows the label lists of earlier tapes of the set: Tail tells it only where nothing else was committed.
func (r *Reader) Prior(ctx context.Context) ([]Entry, error) {
	if err := r.d.Locate(ctx, 0, 2); err != nil {
		return nil, err
	}
	var buf limited
	e, err := r.file(ctx, func(string) io.Writer { return &buf })
	if err != nil {
		return nil, err
	}
	if e.Kind != catalog {
		return nil, corrupt("read tape catalog", "a %s follows the label", e.Kind)
	}
	c, err := r.catalog(buf.Bytes())
	return c.Prior, err
}

// Scan reads the whole tape from the front, checks everything, and says what is committed. Damage is in the report; the error is the drive's.
func (r *Reader) Scan(ctx context.Context) (Found, error) {
	f := Found{Label: r.label, End: 2}
	if err := r.d.Locate(ctx, 0, 1); err != nil {
		return f, err
	}
	if _, err := r.d.Read(ctx, r.buf); errors.Is(err, drive.ErrEndOfData) {
		f.End = 1 // a label, and the power went
		return f, nil
	} else if !errors.Is(err, drive.ErrFilemark) {
		f.damaged("no filemark behind the label: %v", err)
		f.End = 1
		return f, nil
	}
	whole := map[uint64]Entry{}
	for more := true; more; {
		_, at, _ := r.d.Position()
		err := r.scanOne(ctx, &f, whole)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF): // here the data ends
			more, f.Clean = false, at == f.End
		default:
			more = r.skip(ctx, &f, at, err)
		}
		if err := ctx.Err(); err != nil {
			return f, holdfast.Errorf(holdfast.KindOf(err), "read tape", "%w", err)
		}
	}
	for _, e := range f.Objects {
		if whole[e.At] != e {
			f.damaged("%s %s at %d was committed and is not whole", e.Kind, e.Name, e.At)
		}
	}
	return f, nil
}

// scanOne reads one object and its filemark. io.EOF: the data ends before the object or before its filemark.
func (r *Reader) scanOne(ctx context.Context, f *Found, whole map[uint64]Entry) error {
	var buf limited
	e, err := r.file(ctx, func(kind string) io.Writer {
		if kind == catalog {
			return &buf
		}
		return io.Discard
	})
	switch {
	case e.Kind == "" && errors.Is(err, drive.ErrEndOfData):
		return io.EOF
	case e.Kind == "" && errors.Is(err, drive.ErrFilemark): // an empty tape file: closed after a crash on write-once media
		return nil
	case err != nil:
		return err
	}
	if _, err := r.d.Read(ctx, r.buf); errors.Is(err, drive.ErrEndOfData) {
		f.Loose = append(f.Loose, e)
		return io.EOF
	} else if !errors.Is(err, drive.ErrFilemark) {
		return corrupt("read tape object", "no filemark behind %s %s: %v", e.Kind, e.Name, err)
	}
	if e.Kind != catalog {
		whole[e.At] = e
		f.Loose = append(f.Loose, e)
		return nil
	}
	c, err := r.catalog(buf.Bytes())
	if err != nil {
		return err
	}
	f.Objects, f.Loose = c.Objects, nil
	if len(c.Prior) > 0 {
		f.Prior = c.Prior
	}
	_, f.End, _ = r.d.Position()
	return nil
}

// skip notes what is broken at a place and goes behind the next filemark. False: there is none. A crash leaves a part from the front of what was written
// and nothing behind it, so whatever is broken and has something behind it, or is there and has other bytes, makes the tape suspect.
func (r *Reader) skip(ctx context.Context, f *Found, at uint64, why error) bool {
	if len(f.Broken) < maxDamage {
		f.Broken = append(f.Broken, fmt.Sprintf("the object at %d: %v", at, why))
	}
	switch _, _, known := r.d.Position(); {
	case errors.Is(why, drive.ErrFilemark): // it ended early, and the filemark was passed
		f.Suspect = f.Suspect || !r.d.Capabilities().WORM
		return true
	case errors.Is(why, drive.ErrEndOfData):
		return false
	case known:
		f.Suspect = true
	default:
		if r.d.Ready(ctx) != nil || r.d.Locate(ctx, 0, at) != nil {
			return false
		}
	}
	if r.d.NextFile(ctx) != nil {
		return false
	}
	f.Suspect = true
	return true
}
