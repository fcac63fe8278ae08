package ltfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Tape is what a volume is read from: a *drive.Drive, or a *Folder.
type Tape interface {
	Locate(ctx context.Context, partition uint8, object uint64) error
	Read(ctx context.Context, p []byte) (int, error)
	LastFile(ctx context.Context) error
	Position() (partition uint8, object uint64, known bool)
	Attributes(ctx context.Context, partition uint8) (map[uint16]scsi.Attribute, error)
}

var (
	_ Tape = (*drive.Drive)(nil)
	_ Tape = (*Folder)(nil)
)

// A Volume is an LTFS volume open for reading. Not safe for concurrent use.
type Volume struct {
	t        Tape
	Serial   string // of the VOL1 label, from the bar code
	Label    Label
	Index    *Index
	Problems []string // why the volume is not consistent, though it can be read; empty: it is
	parts    map[string]uint8
	buf      []byte
	last     [2]*Index // the last index of each partition
}

const firstIndex = 4 // object at which what follows the labels begins

// Open reads the labels of both partitions and the newest index. Invalid: it is no LTFS volume.
func Open(ctx context.Context, t Tape) (*Volume, error) {
	v := &Volume{t: t, parts: map[string]uint8{}, buf: make([]byte, maxBlock)}
	var labels [2]Label
	for p := range uint8(2) {
		serial, l, err := v.label(ctx, p)
		if err != nil {
			return nil, err
		}
		labels[p], v.Serial = l, serial
		v.parts[l.Partition] = p
	}
	v.Label = labels[0]
	a, b := labels[0], labels[1]
	a.Partition, b.Partition = "", ""
	if a != b || len(v.parts) != 2 {
		return nil, corrupt("open LTFS volume", "the labels of its partitions differ")
	}
	for p := range uint8(2) {
		x, whole, err := v.lastIndex(ctx, p)
		if err != nil {
			return nil, err
		}
		v.last[p] = x
		if !whole {
			v.problem("partition %s does not end with an index", v.letter(p))
		}
	}
	v.choose(ctx)
	if v.Index == nil {
		return nil, corrupt("open LTFS volume", "no index in either partition")
	}
	return v, nil
}

func (v *Volume) problem(format string, args ...any) {
	v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
}

func (v *Volume) letter(p uint8) string {
	for l, q := range v.parts {
		if p == q {
			return l
		}
	}
	return "?"
}

// label reads the label construct of a partition: VOL1, filemark, XML, filemark.
func (v *Volume) label(ctx context.Context, p uint8) (string, Label, error) {
	const op = "open LTFS volume"
	none := func(why string) error {
		return holdfast.Errorf(holdfast.Invalid, op, "partition %d has no LTFS label: %s", p, why)
	}
	if err := v.t.Locate(ctx, p, 0); err != nil {
		return "", Label{}, none(err.Error())
	}
	n, err := v.t.Read(ctx, v.buf)
	if err != nil || n != 80 || string(v.buf[:4]) != "VOL1" || string(v.buf[24:28]) != "LTFS" || v.buf[79] != '4' {
		return "", Label{}, none("it does not begin with VOL1")
	}
	serial := strings.TrimSpace(string(v.buf[4:10]))
	if _, err := v.t.Read(ctx, v.buf); !errors.Is(err, drive.ErrFilemark) {
		return "", Label{}, none("no filemark behind VOL1")
	}
	if n, err = v.t.Read(ctx, v.buf); err != nil || n > maxLabel {
		return "", Label{}, none("no XML label")
	}
	l, err := ParseLabel(v.buf[:n])
	if err != nil {
		return "", l, err
	}
	if _, err := v.t.Read(ctx, v.buf); !errors.Is(err, drive.ErrFilemark) {
		return "", l, none("no filemark behind the XML label")
	}
	return serial, l, nil
}

// lastIndex finds the newest index of a partition, at its end, or by reading it from the front where it ends with something else. whole says that it ends with it.
func (v *Volume) lastIndex(ctx context.Context, p uint8) (x *Index, whole bool, err error) {
	if err := v.t.Locate(ctx, p, 0); err != nil {
		return nil, false, err
	}
	if err := v.t.LastFile(ctx); err == nil {
		if x, end, err := v.file(ctx, p); err == nil && x != nil && errors.Is(end, drive.ErrFilemark) {
			if _, err := v.t.Read(ctx, v.buf); errors.Is(err, drive.ErrEndOfData) {
				return x, true, nil
			}
		}
	}
	if err := v.t.Locate(ctx, p, firstIndex); err != nil {
		return nil, false, nil // there is nothing behind the labels
	}
	for {
		y, end, err := v.file(ctx, p)
		if err != nil {
			return nil, false, err
		}
		if y != nil && errors.Is(end, drive.ErrFilemark) {
			x = y
		}
		if !errors.Is(end, drive.ErrFilemark) {
			return x, false, nil
		}
	}
}

// file reads the records up to the next filemark, or the end, which it returns, and the index that they are, if they are one.
func (v *Volume) file(ctx context.Context, p uint8) (x *Index, end, err error) {
	_, at, _ := v.t.Position()
	var b bytes.Buffer
	for first := true; ; first = false {
		n, err := v.t.Read(ctx, v.buf)
		switch {
		case errors.Is(err, drive.ErrFilemark) || errors.Is(err, drive.ErrEndOfData):
			if x, e := ParseIndex(b.Bytes()); e == nil && x.UUID == v.Label.UUID && x.Self == (Place{v.letter(p), at}) {
				return x, err, nil
			}
			return nil, err, nil
		case err != nil && holdfast.KindOf(err) == holdfast.Corrupt: // what cannot be read is no index, and nothing behind it is found
			return nil, err, nil
		case err != nil:
			return nil, nil, err
		}
		if (first && bytes.HasPrefix(v.buf[:n], []byte("<?xml")) || b.Len() > 0) && b.Len()+n <= MaxIndex {
			b.Write(v.buf[:n])
		}
	}
}

// choose takes the newer index and says what does not fit.
func (v *Volume) choose(ctx context.Context) {
	ip, dp := v.last[v.parts[v.Label.Index]], v.last[v.parts[v.Label.Data]]
	switch {
	case ip == nil || dp == nil:
		v.Index = ip
		if ip == nil {
			v.Index = dp
		}
		v.problem("one partition has no index")
	case ip.Generation < dp.Generation:
		v.Index = dp
		v.problem("the index partition has generation %d, the data partition %d", ip.Generation, dp.Generation)
	default:
		v.Index = ip
		if ip.Previous == nil || *ip.Previous != dp.Self || ip.Generation != dp.Generation {
			v.problem("the index partition's index does not name the data partition's last one")
		}
	}
	v.coherency(ctx)
}

// coherency compares what the medium's memory says of the last indexes.
func (v *Volume) coherency(ctx context.Context) {
	for p := range uint8(2) {
		as, err := v.t.Attributes(ctx, p)
		if err != nil {
			v.problem("the medium memory of partition %s cannot be read: %v", v.letter(p), err)
			continue
		}
		a, ok := as[scsi.AttrCoherency]
		x := v.last[p]
		if !ok || x == nil {
			v.problem("partition %s has no coherency information", v.letter(p))
			continue
		}
		c, err := ParseCoherency(a.Value)
		if err != nil || c.UUID != v.Label.UUID || c.Generation != x.Generation || c.Block != x.Self.Block {
			v.problem("the coherency information of partition %s does not name its last index", v.letter(p))
		}
	}
}

// A Coherency is the volume coherency information of a partition in the medium's memory.
type Coherency struct {
	Change     uint64 // volume change reference when it was written
	Generation uint64
	Block      uint64 // of the index
	UUID       string
}

// ParseCoherency reads attribute 080Ch.
func ParseCoherency(b []byte) (Coherency, error) {
	const op = "read LTFS coherency information"
	if len(b) < 70 || b[0] != 8 || binary.BigEndian.Uint16(b[25:]) < 43 || string(b[27:32]) != "LTFS\x00" {
		return Coherency{}, corrupt(op, "%d bytes", len(b))
	}
	be := binary.BigEndian
	return Coherency{Change: be.Uint64(b[1:]), Generation: be.Uint64(b[9:]), Block: be.Uint64(b[17:]), UUID: strings.TrimRight(string(b[32:69]), "\x00")}, nil
}

// Encode is the inverse of ParseCoherency.
func (c Coherency) Encode() []byte {
	be := binary.BigEndian
	b := be.AppendUint64([]byte{8}, c.Change)
	b = be.AppendUint64(b, c.Generation)
	b = be.AppendUint64(b, c.Block)
	b = be.AppendUint16(b, 43)
	b = append(b, "LTFS\x00"...)
	b = append(b, fmt.Sprintf("%-36.36s\x00", c.UUID)...)
	return append(b, 1)
}

// Walk calls do for every entry below the root with its path, directories before what is in them. A nil file stands for a directory.
func (x *Index) Walk(do func(path string, f *File) error) error { return x.Root.walk("", do) }

func (d *Directory) walk(path string, do func(string, *File) error) error {
	for i := range d.Files {
		if err := do(path+"/"+d.Files[i].Name.String(), &d.Files[i]); err != nil {
			return err
		}
	}
	for i := range d.Dirs {
		p := path + "/" + d.Dirs[i].Name.String()
		if err := do(p, nil); err != nil {
			return err
		}
		if err := d.Dirs[i].walk(p, do); err != nil {
			return err
		}
	}
	return nil
}

// zeros is what holes are made of.
var zeros [64 << 10]byte

// Read writes a file's content to w. Holes are zeros. Corrupt where the records are not what the index says.
func (v *Volume) Read(ctx context.Context, f *File, w io.Writer) error {
	at := int64(0)
	fill := func(to int64) error {
		if w == io.Discard { // a volume from elsewhere may claim holes of any length
			at = max(at, to)
		}
		for at < to {
			if err := ctx.Err(); err != nil {
				return holdfast.Errorf(holdfast.Cancelled, "read LTFS file", "%w", err)
			}
			n, err := w.Write(zeros[:min(int64(len(zeros)), to-at)])
			if at += int64(n); err != nil {
				return err
			}
		}
		return nil
	}
	for _, e := range f.Extents {
		if err := fill(e.FileOffset); err != nil {
			return err
		}
		if err := v.extent(ctx, f, e, w); err != nil {
			return err
		}
		at = e.FileOffset + e.Bytes
	}
	return fill(f.Length)
}

// extent writes one extent's bytes to w. All of its records but the last have exactly the label's block length.
func (v *Volume) extent(ctx context.Context, f *File, e Extent, w io.Writer) error {
	const op = "read LTFS file"
	p, ok := v.parts[e.Partition]
	if !ok {
		return corrupt(op, "%s: an extent in partition %q", f.Name, e.Partition)
	}
	block := int64(v.Label.Block)
	skip, left := e.ByteOffset%block, e.Bytes
	if err := v.t.Locate(ctx, p, e.Block+uint64(e.ByteOffset/block)); err != nil {
		return err
	}
	for left > 0 {
		n, err := v.t.Read(ctx, v.buf)
		if errors.Is(err, drive.ErrFilemark) || errors.Is(err, drive.ErrEndOfData) {
			return corrupt(op, "%s: the data ends %d bytes too early", f.Name, left)
		}
		if err != nil {
			return err
		}
		if k := min(int64(n)-skip, left); k <= 0 || k < left && int64(n) != block {
			return corrupt(op, "%s: a record of %d bytes with %d bytes still due", f.Name, n, left)
		} else if _, err := w.Write(v.buf[skip : skip+k]); err != nil {
			return err
		} else {
			left, skip = left-k, 0
		}
	}
	return nil
}

// Check reads every file and returns what is wrong with the volume: empty if nothing is.
func (v *Volume) Check(ctx context.Context) ([]string, error) {
	out := append([]string(nil), v.Problems...)
	highest := uint64(1)
	err := v.Index.Walk(func(path string, f *File) error {
		if f == nil {
			return nil
		}
		highest = max(highest, f.UID)
		err := v.Read(ctx, f, io.Discard)
		if k := holdfast.KindOf(err); err != nil && k != holdfast.Corrupt && k != holdfast.NotExist {
			return err
		}
		if err != nil {
			out = append(out, fmt.Sprintf("%s: %v", path, err))
		}
		return nil
	})
	if highest > v.Index.HighestUID {
		out = append(out, fmt.Sprintf("a file has id %d, above the highest, %d", highest, v.Index.HighestUID))
	}
	return out, err
}
