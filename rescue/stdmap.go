package rescue

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"iter"
	"sort"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// docs/formats/standard.md, section "Map".
const (
	mapHead    = 64
	mapRun     = 32
	mapRuns    = 4096 // in a block
	mapBlock   = 16 + mapRuns*mapRun
	mapTrailer = 128
	maxTable   = 64 << 20
	maxRuns    = 1 << 33
	zeroRun    = ^uint32(0)
)

// A diskMap is an open map whose sum was checked.
type diskMap struct {
	r     blob.Reader
	size  int64
	count int64 // runs
	files []mapFile
}

// A mapFile is an entry of a map's table.
type mapFile struct {
	key       dataKey
	container uint64
}

// A run is one entry of a map.
type run struct {
	off, len     int64
	skip, file   uint32
	first, count uint32
}

func badMap(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, "read map", format, args...)
}

// openMap opens a map and checks it as a whole.
func openMap(ctx context.Context, s blob.Store, name string, fact mapFact) (*diskMap, error) {
	r, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	m := &diskMap{r: r}
	if err := m.load(fact); err != nil {
		_ = r.Close() // only read
		return nil, err
	}
	return m, nil
}

func (m *diskMap) load(fact mapFact) error {
	le := binary.LittleEndian
	total := m.r.Size()
	if total != fact.Bytes || total < mapHead+16+mapTrailer {
		return badMap("%d bytes instead of %d", total, fact.Bytes)
	}
	t := make([]byte, mapTrailer)
	if err := blob.ReadFull(m.r, t, total-mapTrailer, "map"); err != nil {
		return err
	}
	if string(t[:8]) != "HFSTDEND" || le.Uint32(t[124:]) != crc32.Checksum(t[:124], castagnoli) || holdfast.Digest(t[32:64]) != fact.Sum {
		return badMap("the trailer is damaged, or another map's")
	}
	table := int64(le.Uint32(t[24:]))
	runs := le.Uint64(t[16:])
	if runs > maxRuns || table > maxTable {
		return badMap("%d runs and a table of %d bytes", runs, table)
	}
	m.count, m.size = int64(runs), int64(le.Uint64(t[8:]))
	if mapHead+m.blocks()*16+m.count*mapRun+table+mapTrailer != total {
		return badMap("%d runs and a table of %d bytes in %d bytes", m.count, table, total)
	}
	return m.check(fact.Sum, table)
}

func (m *diskMap) blocks() int64 { return (m.count + mapRuns - 1) / mapRuns }

// runsIn returns how many runs a block has.
func (m *diskMap) runsIn(block int64) int64 { return min(mapRuns, m.count-block*mapRuns) }

// check computes the sum over head, blocks and table, and reads the table.
func (m *diskMap) check(want holdfast.Digest, table int64) error {
	hash := holdfast.Domain{}.Hasher()
	var sum holdfast.Digest
	buf := make([]byte, 32+max(mapBlock, table))
	piece := func(off, n int64) ([]byte, error) {
		copy(buf, sum[:])
		err := blob.ReadFull(m.r, buf[32:32+n], off, "map")
		sum = hash.Sum(buf[:32+n])
		return buf[32 : 32+n], err
	}
	head, err := piece(0, mapHead)
	if err != nil {
		return err
	}
	if string(head[:8]) != "HFSTDMAP" || binary.LittleEndian.Uint16(head[8:]) != 1 || binary.LittleEndian.Uint32(head[12:]) != 0 {
		return badMap("the head is damaged, or of a newer version")
	}
	off := int64(mapHead)
	for i := range m.blocks() {
		n := 16 + m.runsIn(i)*mapRun
		if _, err := piece(off, n); err != nil {
			return err
		}
		off += n
	}
	b, err := piece(off, table)
	if err != nil {
		return err
	}
	if sum != want {
		return badMap("the sum differs")
	}
	return m.readTable(b)
}

// readTable decodes the list of folders and data files.
func (m *diskMap) readTable(b []byte) error {
	le := binary.LittleEndian
	if len(b) < 16 || string(b[:4]) != "HFMT" {
		return badMap("no table")
	}
	folders, files := le.Uint32(b[4:]), le.Uint32(b[8:])
	b = b[16:]
	if int64(folders) > int64(len(b)) || int64(files)*24 > int64(len(b)) {
		return badMap("%d folders and %d files in a table of %d bytes", folders, files, len(b))
	}
	names := make([]string, folders)
	for i := range names {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return badMap("a folder is cut off")
		}
		n := 1 + int(b[0])
		names[i], b = string(b[1:n]), b[n:]
	}
	if int64(len(b)) != int64(files)*24 {
		return badMap("%d bytes for %d files", len(b), files)
	}
	for i := range int(files) {
		e := b[24*i:]
		folder := le.Uint32(e)
		if folder >= folders {
			return badMap("file %d is in folder %d", i, folder)
		}
		m.files = append(m.files, mapFile{dataKey{le.Uint16(e[4:]), names[folder], le.Uint16(e[6:]), le.Uint32(e[8:])}, le.Uint64(e[16:])})
	}
	return nil
}

// runs yields the runs of the map, in order.
func (m *diskMap) runs() iter.Seq2[run, error] {
	le := binary.LittleEndian
	return func(yield func(run, error) bool) {
		buf := make([]byte, mapBlock)
		last := int64(0)
		for i := range m.blocks() {
			n := m.runsIn(i)
			b := buf[:16+n*mapRun]
			err := blob.ReadFull(m.r, b, mapHead+i*mapBlock, "map")
			if err == nil && (string(b[:4]) != "HFMB" || int64(le.Uint32(b[4:])) != i || int64(le.Uint32(b[8:])) != n) {
				err = badMap("block %d is another one", i)
			}
			if err != nil {
				yield(run{}, err)
				return
			}
			for e := b[16:]; len(e) > 0; e = e[mapRun:] {
				r := run{int64(le.Uint64(e)), int64(le.Uint64(e[8:])), le.Uint32(e[16:]), le.Uint32(e[20:]), le.Uint32(e[24:]), le.Uint32(e[28:])}
				if r.off < last || r.len < 1 || r.len > m.size || r.off > m.size-r.len || r.file != zeroRun && int64(r.file) >= int64(len(m.files)) {
					yield(run{}, badMap("a run out of bounds"))
					return
				}
				last = r.off + r.len
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// A remap says where the chunks of a rewritten data file went; nil: none went anywhere.
type remap struct{ entries []moved }

// moved is chunks in a row.
type moved struct{ was, is, count uint32 }

func parseRemap(b []byte) (*remap, error) {
	le := binary.LittleEndian
	bad := func() (*remap, error) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read rewritten file", "the list of its chunks is damaged")
	}
	if len(b) < 4 || int64(len(b)) != 4+12*int64(le.Uint32(b)) {
		return bad()
	}
	r := &remap{}
	was, is := uint64(0), uint64(0)
	for e := b[4:]; len(e) > 0; e = e[12:] {
		m := moved{le.Uint32(e), le.Uint32(e[4:]), le.Uint32(e[8:])}
		if uint64(m.was) < was || uint64(m.is) != is || m.count == 0 {
			return bad()
		}
		was, is = uint64(m.was)+uint64(m.count), is+uint64(m.count)
		r.entries = append(r.entries, m)
	}
	return r, nil
}

// find returns the ordinal that a chunk has now.
func (r *remap) find(was uint32) (uint32, bool) {
	if r == nil {
		return was, true
	}
	i := sort.Search(len(r.entries), func(i int) bool { return r.entries[i].was > was }) - 1
	if i < 0 || was-r.entries[i].was >= r.entries[i].count {
		return 0, false
	}
	return r.entries[i].is + was - r.entries[i].was, true
}
