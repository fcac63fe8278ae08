package ltfs

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Medium is a Tape that can be written: a *drive.Drive with two partitions, or a *Dir.
type Medium interface {
	Tape
	Write(ctx context.Context, p []byte) error
	Filemarks(ctx context.Context, n int) error
	Flush(ctx context.Context, n int) error
	EndOfData(ctx context.Context) error
	SetAttributes(ctx context.Context, partition uint8, as ...scsi.Attribute) error
}

var (
	_ Medium = (*drive.Drive)(nil)
	_ Medium = (*Dir)(nil)
)

// Options of Format.
type Options struct {
	Serial  string // six characters A-Z and 0-9, from the bar code
	Name    string // of the volume
	UUID    holdfast.ID
	Block   int // bytes; 0: 512 KiB
	Creator string
	Now     time.Time
}

const defaultBlock = 512 << 10

var (
	serialForm = regexp.MustCompile(`^[A-Z0-9]{6}$`)
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9._-]{1,255}$`) // what every implementation writes the same way
)

func stamp(t time.Time) string { return t.UTC().Format(TimeFormat) }

// Format writes the labels and the first indexes on a medium of two partitions, whatever was there.
func Format(ctx context.Context, m Medium, o Options) error {
	const op = "format LTFS volume"
	if o.Block == 0 {
		o.Block = defaultBlock
	}
	if !serialForm.MatchString(o.Serial) || !nameForm.MatchString(o.Name) || o.UUID.IsZero() || o.Block < 4096 || o.Block > maxBlock || o.Creator == "" {
		return holdfast.Errorf(holdfast.Invalid, op, "serial %q, name %q, blocks of %d bytes", o.Serial, o.Name, o.Block)
	}
	l := Label{Version: "2.4.0", Creator: o.Creator, Formatted: stamp(o.Now), UUID: o.UUID.String(), Index: "a", Data: "b", Block: o.Block}
	for p, letter := range []string{"a", "b"} {
		l.Partition = letter
		if err := m.Locate(ctx, uint8(p), 0); err != nil {
			return err
		}
		for _, record := range [][]byte{fmt.Appendf(nil, "VOL1%sL%13s%-13s%42s4", o.Serial, "", "LTFS", ""), l.encode()} {
			if err := m.Write(ctx, record); err != nil {
				return err
			}
			if err := m.Filemarks(ctx, 1); err != nil {
				return err
			}
		}
	}
	now := stamp(o.Now)
	v := &Volume{t: m, Serial: o.Serial, Label: l, parts: map[string]uint8{"a": 0, "b": 1}, buf: make([]byte, maxBlock)}
	v.Index = &Index{Version: "2.4.0", UUID: l.UUID, HighestUID: 1, Lock: "unlocked", AllowPol: "true",
		Root: Directory{Name: Name{Text: o.Name}, ReadOnly: "false", Times: Times{now, now, now, now, now}, UID: 1}}
	w := &Writer{v: v, m: m, creator: o.Creator, dirty: true}
	if err := w.Sync(ctx, o.Now); err != nil {
		return err
	}
	for p := range uint8(2) {
		text := func(id uint16, format byte, width int, s string) scsi.Attribute {
			b := bytes.Repeat([]byte{' '}, width)
			if format == scsi.FormatText {
				clear(b)
			}
			copy(b, s)
			return scsi.Attribute{ID: id, Format: format, Value: b}
		}
		err := m.SetAttributes(ctx, p, text(scsi.AttrAppVendor, scsi.FormatASCII, 8, "HOLDFAST"), text(scsi.AttrAppName, scsi.FormatASCII, 32, "LTFS"),
			text(scsi.AttrMediumText, scsi.FormatText, 160, o.Name), scsi.Attribute{ID: scsi.AttrLocalization, Value: []byte{0x81}},
			text(scsi.AttrBarcode, scsi.FormatASCII, 32, o.Serial), text(scsi.AttrAppFormat, scsi.FormatASCII, 16, "2.4.0"))
		if err != nil {
			return err
		}
	}
	return nil
}

// A Writer adds files to a volume. What Sync has returned for survives a crash; what came later is cut off from the index, not from the tape. Not safe for concurrent use.
type Writer struct {
	v       *Volume
	m       Medium
	creator string
	dirty   bool
	begun   bool // the place is the end of the data partition
}

// NewWriter opens a volume for adding files. A volume that a crash left inconsistent is repaired first: the newest index is written anew to both partitions, behind whatever is in the data partition.
func NewWriter(ctx context.Context, m Medium, creator string, now time.Time) (*Writer, error) {
	v, err := Open(ctx, m)
	if err != nil {
		return nil, err
	}
	w := &Writer{v: v, m: m, creator: creator}
	if v.Index.Lock == "locked" || v.Index.Lock == "permlocked" {
		return nil, holdfast.Errorf(holdfast.Immutable, "write LTFS volume", "the volume is locked")
	}
	if len(v.Problems) > 0 {
		w.dirty = true
		if err := w.Sync(ctx, now); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Index returns the state of the volume with what was added.
func (w *Writer) Index() *Index { return w.v.Index }

// find returns the directory at a path, making what is not there.
func (w *Writer) find(dirs []string, now time.Time) (*Directory, error) {
	d := &w.v.Index.Root
next:
	for _, n := range dirs {
		if !nameForm.MatchString(n) || n == "." || n == ".." {
			return nil, holdfast.Errorf(holdfast.Invalid, "write LTFS file", "a name %.80q", n).Advise("use letters, digits, '.', '_' and '-'")
		}
		for i := range d.Dirs {
			if d.Dirs[i].Name.String() == n {
				d = &d.Dirs[i]
				continue next
			}
		}
		t := stamp(now)
		w.v.Index.HighestUID++
		d.Dirs = append(d.Dirs, Directory{Name: Name{Text: n}, ReadOnly: "false", Times: Times{t, t, t, t, t}, UID: w.v.Index.HighestUID})
		d = &d.Dirs[len(d.Dirs)-1]
	}
	return d, nil
}

// Add writes a file at a path, which must be new. Its BLAKE3 sum goes into the extended attribute holdfast.blake3.
func (w *Writer) Add(ctx context.Context, path string, r io.Reader, now time.Time) error {
	const op = "write LTFS file"
	parts := strings.Split(strings.Trim(path, "/"), "/")
	name := parts[len(parts)-1]
	d, err := w.find(parts[:len(parts)-1], now)
	if err != nil {
		return err
	}
	if !nameForm.MatchString(name) || name == "." || name == ".." {
		return holdfast.Errorf(holdfast.Invalid, op, "a name %.80q", name).Advise("use letters, digits, '.', '_' and '-'")
	}
	for i := range d.Files {
		if d.Files[i].Name.String() == name {
			return holdfast.Errorf(holdfast.Exist, op, "%s is there already", path)
		}
	}
	for i := range d.Dirs {
		if d.Dirs[i].Name.String() == name {
			return holdfast.Errorf(holdfast.Exist, op, "%s is a directory", path)
		}
	}
	if err := w.end(ctx); err != nil {
		return err
	}
	_, at, _ := w.m.Position()
	size, hash, buf := int64(0), holdfast.Domain{}.Hasher(), w.v.buf[:w.v.Label.Block]
	hash.Reset()
	for done := false; !done; {
		n, err := io.ReadFull(r, buf)
		if done = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !done {
			return err
		}
		if n == 0 {
			break
		}
		if err := w.m.Write(ctx, buf[:n]); err != nil {
			w.begun = false
			return err
		}
		_, _ = hash.Write(buf[:n])
		size += int64(n)
	}
	t := stamp(now)
	w.v.Index.HighestUID++
	f := File{Name: Name{Text: name}, Length: size, ReadOnly: "false", Times: Times{t, t, t, t, t}, UID: w.v.Index.HighestUID}
	if size > 0 {
		f.Extents = []Extent{{Partition: w.v.Label.Data, Block: at, Bytes: size}}
	}
	f.Attrs = []Attribute{{Key: Name{Text: "holdfast.blake3"}}}
	f.Attrs[0].Value.Text = hash.Digest().String()
	d.Files, w.dirty = append(d.Files, f), true
	d.Modified, d.Changed = t, t
	return nil
}

// end goes to the end of the data partition.
func (w *Writer) end(ctx context.Context) error {
	if w.begun {
		return nil
	}
	if err := w.m.Locate(ctx, w.v.parts[w.v.Label.Data], 0); err != nil {
		return err
	}
	if err := w.m.EndOfData(ctx); err != nil {
		if holdfast.KindOf(err) != holdfast.Corrupt {
			return err
		}
		if e := w.behindIndex(ctx); e != nil {
			return errors.Join(err, e)
		}
	}
	w.begun = true
	return nil
}

// behindIndex goes behind the data partition's last whole index, where a power cut took the mark of where the data ends: what follows is in no index.
func (w *Writer) behindIndex(ctx context.Context) error {
	p := w.v.parts[w.v.Label.Data]
	last := w.v.last[p]
	if last == nil {
		return corrupt("write LTFS volume", "the data partition has neither an index nor an end")
	}
	if err := w.m.Locate(ctx, p, last.Self.Block); err != nil {
		return err
	}
	buf := make([]byte, maxBlock)
	for {
		if _, err := w.m.Read(ctx, buf); errors.Is(err, drive.ErrFilemark) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Sync writes the index to the data partition, then to the index partition, then to the medium's memory. A crash in between leaves one that NewWriter repairs from the other.
func (w *Writer) Sync(ctx context.Context, now time.Time) error {
	if !w.dirty {
		return nil
	}
	x := w.v.Index
	if err := w.end(ctx); err != nil {
		return err
	}
	if last := w.v.last[w.v.parts[w.v.Label.Data]]; last != nil {
		p := last.Self
		x.Previous = &p
	}
	x.Generation, x.Updated, x.Creator, x.Version, x.Comment = x.Generation+1, stamp(now), w.creator, "2.4.0", ""
	if err := w.index(ctx, w.v.Label.Data); err != nil {
		return err
	}
	self := x.Self
	x.Previous = &self
	w.begun = false
	if err := w.m.Locate(ctx, w.v.parts[w.v.Label.Index], firstIndex); err != nil {
		return err
	}
	if err := w.index(ctx, w.v.Label.Index); err != nil {
		return err
	}
	w.dirty = false
	as, err := w.m.Attributes(ctx, 0)
	if err != nil {
		return err
	}
	ref := as[scsi.AttrChangeRef]
	change, _ := ref.Uint()
	for p := range uint8(2) {
		c := Coherency{Change: change, Generation: x.Generation, Block: w.v.last[p].Self.Block, UUID: x.UUID}
		if err := w.m.SetAttributes(ctx, p, scsi.Attribute{ID: scsi.AttrCoherency, Value: c.Encode()}); err != nil {
			return err
		}
	}
	return nil
}

// index writes an index construct at the place at hand, and waits until it is on the medium.
func (w *Writer) index(ctx context.Context, partition string) error {
	if err := w.m.Filemarks(ctx, 1); err != nil {
		return err
	}
	_, at, _ := w.m.Position()
	x := w.v.Index
	x.Self = Place{partition, at}
	for b := x.encode(); len(b) > 0; {
		n := min(len(b), w.v.Label.Block)
		if err := w.m.Write(ctx, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	if err := w.m.Flush(ctx, 1); err != nil {
		return err
	}
	c := *x
	w.v.last[w.v.parts[partition]] = &c
	return nil
}

// A printer writes XML with elements in the order that the reference implementation has.
type printer struct{ bytes.Buffer }

func (p *printer) el(name, value string) {
	p.WriteString("<" + name + ">")
	_ = xml.EscapeText(&p.Buffer, []byte(value)) // a buffer does not fail
	p.WriteString("</" + name + ">\n")
}

func (p *printer) name(tag string, n Name) {
	if n.Encoded != "" {
		p.WriteString("<" + tag + ` percentencoded="` + strconv.FormatBool(n.Encoded == "true" || n.Encoded == "1") + `">`)
		_ = xml.EscapeText(&p.Buffer, []byte(n.Text))
		p.WriteString("</" + tag + ">\n")
		return
	}
	p.el(tag, n.Text)
}

func (p *printer) num(name string, v uint64) { p.el(name, strconv.FormatUint(v, 10)) }

func (p *printer) place(tag string, at Place) {
	p.WriteString("<" + tag + ">\n")
	p.el("partition", at.Partition)
	p.num("startblock", at.Block)
	p.WriteString("</" + tag + ">\n")
}

func (p *printer) times(t Times) {
	p.el("creationtime", t.Created)
	p.el("changetime", t.Changed)
	p.el("modifytime", t.Modified)
	p.el("accesstime", t.Accessed)
	p.el("backuptime", t.BackedUp)
}

func (l *Label) encode() []byte {
	var p printer
	p.WriteString(xml.Header + `<ltfslabel version="` + l.Version + "\">\n")
	p.el("creator", l.Creator)
	p.el("formattime", l.Formatted)
	p.el("volumeuuid", l.UUID)
	fmt.Fprintf(&p, "<location><partition>%s</partition></location>\n<partitions><index>%s</index><data>%s</data></partitions>\n", l.Partition, l.Index, l.Data)
	p.num("blocksize", uint64(l.Block))
	p.el("compression", "false")
	p.WriteString("</ltfslabel>\n")
	return p.Bytes()
}

func (x *Index) encode() []byte {
	var p printer
	p.WriteString(xml.Header + `<ltfsindex version="` + x.Version + "\">\n")
	p.el("creator", x.Creator)
	p.el("volumeuuid", x.UUID)
	p.num("generationnumber", x.Generation)
	p.el("updatetime", x.Updated)
	p.place("location", x.Self)
	if x.Previous != nil {
		p.place("previousgenerationlocation", *x.Previous)
	}
	p.el("allowpolicyupdate", x.AllowPol)
	p.num("highestfileuid", x.HighestUID)
	if x.Lock != "" {
		p.el("volumelockstate", x.Lock)
	}
	x.Root.encode(&p)
	p.WriteString("</ltfsindex>\n")
	return p.Bytes()
}

func (d *Directory) encode(p *printer) {
	p.WriteString("<directory>\n")
	p.name("name", d.Name)
	p.el("readonly", d.ReadOnly)
	p.times(d.Times)
	p.num("fileuid", d.UID)
	attributes(p, d.Attrs)
	p.WriteString("<contents>\n")
	for i := range d.Dirs {
		d.Dirs[i].encode(p)
	}
	for i := range d.Files {
		d.Files[i].encode(p)
	}
	p.WriteString("</contents>\n</directory>\n")
}

func (f *File) encode(p *printer) {
	p.WriteString("<file>\n")
	p.name("name", f.Name)
	p.num("length", uint64(f.Length))
	p.el("readonly", f.ReadOnly)
	p.times(f.Times)
	p.num("fileuid", f.UID)
	attributes(p, f.Attrs)
	if f.Symlink.Text != "" {
		p.name("symlink", f.Symlink)
	}
	if len(f.Extents) > 0 {
		p.WriteString("<extentinfo>\n")
		for _, e := range f.Extents {
			p.WriteString("<extent>\n")
			p.num("fileoffset", uint64(e.FileOffset))
			p.el("partition", e.Partition)
			p.num("startblock", e.Block)
			p.num("byteoffset", uint64(e.ByteOffset))
			p.num("bytecount", uint64(e.Bytes))
			p.WriteString("</extent>\n")
		}
		p.WriteString("</extentinfo>\n")
	}
	p.WriteString("</file>\n")
}

func attributes(p *printer, as []Attribute) {
	if len(as) == 0 {
		return
	}
	p.WriteString("<extendedattributes>\n")
	for _, a := range as {
		p.WriteString("<xattr>\n")
		p.name("key", a.Key)
		if a.Value.Type != "" {
			p.WriteString(`<value type="`)
			_ = xml.EscapeText(&p.Buffer, []byte(a.Value.Type))
			p.WriteString(`">`)
			_ = xml.EscapeText(&p.Buffer, []byte(a.Value.Text))
			p.WriteString("</value>\n")
		} else {
			p.el("value", a.Value.Text)
		}
		p.WriteString("</xattr>\n")
	}
	p.WriteString("</extendedattributes>\n")
}
