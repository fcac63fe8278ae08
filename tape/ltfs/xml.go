// Package ltfs reads, writes and checks LTFS volumes (format 2.4.0; also reads what earlier 2.x versions wrote): labels, indexes and files in two partitions, on a tape drive or in
// a folder of the reference implementation's file layout.
//
// What Writer.Sync has returned for survives a crash: the index goes to the data partition, then to the index partition, then into the medium's memory. A volume that a crash left without
// its last index on one partition is read by the other's; Check says what is not as it should be, and NewWriter repairs it. It does not merge what two writers did, and no other may use the drive meanwhile.
// Indexes are foreign input: their size, depth and number of entries are bounded. It imports drive, scsi and the ground floor.
package ltfs

import (
	"bytes"
	"encoding/xml"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// Bounds.
const (
	MaxIndex   = 256 << 20 // bytes of an index
	MaxEntries = 1 << 22   // files and directories of a volume
	maxDepth   = 256
	maxLabel   = 4096
	maxBlock   = 1 << 20
	maxName    = 255 // code points
)

// A Place is a partition's letter and a block in it.
type Place struct {
	Partition string `xml:"partition"`
	Block     uint64 `xml:"startblock"`
}

// A Label is the XML label of a partition.
type Label struct {
	XMLName   xml.Name `xml:"ltfslabel"`
	Version   string   `xml:"version,attr"`
	Creator   string   `xml:"creator"`
	Formatted string   `xml:"formattime"`
	UUID      string   `xml:"volumeuuid"`
	Partition string   `xml:"location>partition"`
	Index     string   `xml:"partitions>index"`
	Data      string   `xml:"partitions>data"`
	Block     int      `xml:"blocksize"`
	Compress  string   `xml:"compression"`
}

// An Index is the state of a volume at one time.
type Index struct {
	XMLName    xml.Name  `xml:"ltfsindex"`
	Version    string    `xml:"version,attr"`
	Creator    string    `xml:"creator"`
	Comment    string    `xml:"comment"`
	UUID       string    `xml:"volumeuuid"`
	Generation uint64    `xml:"generationnumber"`
	Updated    string    `xml:"updatetime"`
	Self       Place     `xml:"location"`
	Previous   *Place    `xml:"previousgenerationlocation"`
	AllowPol   string    `xml:"allowpolicyupdate"`
	HighestUID uint64    `xml:"highestfileuid"`
	Lock       string    `xml:"volumelockstate"`
	Root       Directory `xml:"directory"`
}

// A Name is an entry's name, which may be percent-encoded in the XML.
type Name struct {
	Encoded string `xml:"percentencoded,attr"`
	Text    string `xml:",chardata"`
}

// String returns the name itself.
func (n Name) String() string {
	if n.Encoded == "true" || n.Encoded == "1" {
		if s, err := url.PathUnescape(n.Text); err == nil {
			return s
		}
	}
	return n.Text
}

// Times are an entry's five times.
type Times struct {
	Created  string `xml:"creationtime"`
	Changed  string `xml:"changetime"`
	Modified string `xml:"modifytime"`
	Accessed string `xml:"accesstime"`
	BackedUp string `xml:"backuptime"`
}

// A Directory is a folder.
type Directory struct {
	Name     Name   `xml:"name"`
	ReadOnly string `xml:"readonly"`
	Times
	UID   uint64      `xml:"fileuid"`
	Attrs []Attribute `xml:"extendedattributes>xattr"`
	Dirs  []Directory `xml:"contents>directory"`
	Files []File      `xml:"contents>file"`
}

// A File is a file or a symbolic link.
type File struct {
	Name     Name   `xml:"name"`
	Length   int64  `xml:"length"`
	ReadOnly string `xml:"readonly"`
	Times
	UID     uint64      `xml:"fileuid"`
	Extents []Extent    `xml:"extentinfo>extent"`
	Attrs   []Attribute `xml:"extendedattributes>xattr"`
	Symlink Name        `xml:"symlink"`
}

// An Attribute is an extended attribute.
type Attribute struct {
	Key   Name `xml:"key"`
	Value struct {
		Type string `xml:"type,attr"`
		Text string `xml:",chardata"`
	} `xml:"value"`
}

// An Extent says where a part of a file is; what no extent covers is zeros.
type Extent struct {
	FileOffset int64  `xml:"fileoffset"`
	Partition  string `xml:"partition"`
	Block      uint64 `xml:"startblock"`
	ByteOffset int64  `xml:"byteoffset"`
	Bytes      int64  `xml:"bytecount"`
}

func corrupt(op, format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, op, format, args...)
}

// TimeFormat is how times are written: nine digits, UTC.
const TimeFormat = "2006-01-02T15:04:05.000000000Z"

// decode reads one XML document after a look at how deep it goes, since the decoder itself knows no bound.
func decode(op string, b []byte, into any) error {
	d, depth, n := xml.NewDecoder(bytes.NewReader(b)), 0, 0
	for {
		t, err := d.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return corrupt(op, "%w", err)
		}
		switch e := t.(type) {
		case xml.StartElement:
			if depth++; depth > 2*maxDepth+8 {
				return corrupt(op, "it goes too deep")
			}
			if e.Name.Local == "file" || e.Name.Local == "directory" {
				n++
			}
		case xml.EndElement:
			depth--
		}
		if n > MaxEntries {
			return corrupt(op, "more than %d entries", MaxEntries)
		}
	}
	if err := xml.Unmarshal(b, into); err != nil {
		return corrupt(op, "%w", err)
	}
	return nil
}

func version2(v string) bool { return strings.HasPrefix(v, "2.") || strings.HasPrefix(v, "1.") }

// ParseLabel reads a label.
func ParseLabel(b []byte) (Label, error) {
	const op = "read LTFS label"
	var l Label
	if err := decode(op, b, &l); err != nil {
		return l, err
	}
	switch {
	case !version2(l.Version):
		return l, holdfast.Errorf(holdfast.Unsupported, op, "version %q", l.Version).Advise("read the volume with a newer version of Holdfast")
	case !letter(l.Partition) || !letter(l.Index) || !letter(l.Data) || l.Index == l.Data || l.Partition != l.Index && l.Partition != l.Data:
		return l, corrupt(op, "partitions %q, %q in %q", l.Index, l.Data, l.Partition)
	case l.Block < 4096 || l.Block > maxBlock:
		return l, holdfast.Errorf(holdfast.Unsupported, op, "blocks of %d bytes", l.Block)
	case !uuid(l.UUID):
		return l, corrupt(op, "volume UUID %q", l.UUID)
	}
	return l, nil
}

func letter(s string) bool { return len(s) == 1 && s[0] >= 'a' && s[0] <= 'z' }

func uuid(s string) bool {
	_, err := holdfast.ParseID(s)
	return err == nil && s == strings.ToLower(s) && len(s) == 36
}

// ParseIndex reads an index and checks it by itself: names, lengths, extents.
func ParseIndex(b []byte) (*Index, error) {
	const op = "read LTFS index"
	x := &Index{}
	if err := decode(op, b, x); err != nil {
		return nil, err
	}
	switch {
	case !version2(x.Version):
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "version %q", x.Version).Advise("read the volume with a newer version of Holdfast")
	case x.Generation == 0 || !letter(x.Self.Partition) || !uuid(x.UUID):
		return nil, corrupt(op, "generation %d of %q in partition %q", x.Generation, x.UUID, x.Self.Partition)
	}
	if _, err := time.Parse(TimeFormat, x.Updated); err != nil {
		return nil, corrupt(op, "update time %q", x.Updated)
	}
	return x, x.Root.check("", 0)
}

// check checks a directory's entries and everything below.
func (d *Directory) check(path string, depth int) error {
	const op = "read LTFS index"
	if depth > maxDepth {
		return corrupt(op, "%s: too deep", path)
	}
	names := map[string]bool{}
	fresh := func(n string) error {
		if n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") || len([]rune(n)) > maxName {
			return corrupt(op, "%s: a name %.80q", path, n)
		}
		if names[n] {
			return corrupt(op, "%s: two entries named %q", path, n)
		}
		names[n] = true
		return nil
	}
	for i := range d.Files {
		if err := fresh(d.Files[i].Name.String()); err != nil {
			return err
		}
		if err := d.Files[i].check(path); err != nil {
			return err
		}
	}
	for i := range d.Dirs {
		n := d.Dirs[i].Name.String()
		if err := fresh(n); err != nil {
			return err
		}
		if err := d.Dirs[i].check(path+"/"+n, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// check checks a file's extents and sorts them.
func (f *File) check(path string) error {
	const op = "read LTFS index"
	slices.SortFunc(f.Extents, func(a, b Extent) int {
		switch {
		case a.FileOffset < b.FileOffset:
			return -1
		case a.FileOffset > b.FileOffset:
			return 1
		}
		return 0
	})
	at := int64(0)
	for _, e := range f.Extents {
		if e.FileOffset < at || e.Bytes <= 0 || e.ByteOffset < 0 || e.Bytes > f.Length-e.FileOffset || !letter(e.Partition) {
			return corrupt(op, "%s/%s: an extent of %d bytes at %d of %d", path, f.Name, e.Bytes, e.FileOffset, f.Length)
		}
		at = e.FileOffset + e.Bytes
	}
	if f.Length < 0 {
		return corrupt(op, "%s/%s: %d bytes", path, f.Name, f.Length)
	}
	return nil
}
