package standard

import (
	"encoding/binary"
	"hash/crc32"
	"math"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// docs/formats/standard.md, section "Map", is the format of what this file encodes and decodes.
const (
	mapMagic    = "HFSTDMAP"
	mapEndMagic = "HFSTDEND"
	blockMagic  = "HFMB"
	tableMagic  = "HFMT"
	mapVersion  = 1
	mapHead     = 64
	mapTrailer  = 128
	blockHead   = 16
	runLen      = 32
	blockRuns   = 4096
	blockLen    = blockHead + blockRuns*runLen
	tableHead   = 16
	tableFile   = 24
	maxFolders  = 1 << 20
	maxMapFiles = 1 << 21
	maxTable    = 64 << 20 // bytes
	maxRuns     = 1 << 33
	zeroFile    = math.MaxUint32 // in place of a file's index: the run is zeros
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A run is one entry of a map: the extent holds bytes of chunks that lie in a row in one data file. Put one after the other, the count
// chunks from ordinal first on, without the first skip bytes, begin with the extent's bytes; the first and the last chunk are
// needed, if only in part.
type run struct {
	off, len int64
	skip     uint32
	file     uint32 // index into the map's table, or zeroFile
	first    uint32 // ordinal of the first chunk in the container
	count    uint32
}

func (r *run) end() int64   { return r.off + r.len }
func (r *run) zeros() bool  { return r.file == zeroFile }
func (r *run) last() uint32 { return r.first + r.count }

func appendRun(b []byte, r *run) []byte {
	b = le.AppendUint64(b, uint64(r.off))
	b = le.AppendUint64(b, uint64(r.len))
	b = le.AppendUint32(b, r.skip)
	b = le.AppendUint32(b, r.file)
	b = le.AppendUint32(b, r.first)
	return le.AppendUint32(b, r.count)
}

func parseRun(b []byte) run {
	return run{off: int64(le.Uint64(b)), len: int64(le.Uint64(b[8:])), skip: le.Uint32(b[16:]), file: le.Uint32(b[20:]), first: le.Uint32(b[24:]), count: le.Uint32(b[28:])}
}

// check refuses a run that is out of bounds or begins before the byte end.
func (r *run) check(end, size int64, files int) bool {
	if r.len <= 0 || r.off < end || r.off > size || r.len > size-r.off {
		return false
	}
	if r.zeros() {
		return r.skip == 0 && r.first == 0 && r.count == 0
	}
	return int64(r.file) < int64(files) && r.skip < holdfast.MaxChunk && r.count >= 1 && r.first < container.MaxChunks &&
		r.count <= container.MaxChunks-r.first && r.len <= int64(r.count)*holdfast.MaxChunk
}

func mapCorrupt(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, "read map", format, args...)
}

func appendMapHead(pool holdfast.PoolID, size int64) []byte {
	b := append(make([]byte, 0, mapHead), mapMagic...)
	b = le.AppendUint16(b, mapVersion)
	b = le.AppendUint16(b, mapHead)
	b = le.AppendUint32(b, 0) // incompatible features
	b = append(b, pool.ID[:]...)
	b = le.AppendUint64(b, uint64(size))
	b = append(b, make([]byte, mapHead-4-len(b))...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseMapHead(b []byte, pool holdfast.PoolID) (size int64, err error) {
	if len(b) != mapHead || string(b[:8]) != mapMagic || le.Uint32(b[mapHead-4:]) != crc32.Checksum(b[:mapHead-4], castagnoli) {
		return 0, mapCorrupt("the head's checksum differs")
	}
	if v, f := le.Uint16(b[8:]), le.Uint32(b[12:]); v != mapVersion || f != 0 {
		return 0, holdfast.Errorf(holdfast.Unsupported, "read map", "version %d with features %#x", v, f).Advise("open the pool with a newer version of Holdfast")
	}
	size = int64(le.Uint64(b[32:]))
	if le.Uint16(b[10:]) != mapHead || holdfast.ID(b[16:32]) != pool.ID || size <= 0 || size > holdfast.MaxDiskSize || !zeros(b[40:mapHead-4]) {
		return 0, mapCorrupt("it is not of this pool, or of a disk of %d bytes", size)
	}
	return size, nil
}

func zeros(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// putBlockHead fills the head of a block whose runs follow it.
func putBlockHead(b []byte, number uint32) {
	copy(b, blockMagic)
	le.PutUint32(b[4:], number)
	le.PutUint32(b[8:], uint32((len(b)-blockHead)/runLen))
	le.PutUint32(b[12:], blockCRC(b))
}

func blockCRC(b []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, b[:12]), castagnoli, b[blockHead:])
}

// checkBlock refuses bytes that are not block number of a map.
func checkBlock(b []byte, number uint32) error {
	if len(b) < blockHead || string(b[:4]) != blockMagic || le.Uint32(b[4:]) != number || int(le.Uint32(b[8:])) != (len(b)-blockHead)/runLen || le.Uint32(b[12:]) != blockCRC(b) {
		return mapCorrupt("block %d is damaged", number)
	}
	return nil
}

// A mapTable lists the data files that a map names, by the index its runs use.
type mapTable struct {
	keys []fileKey
	ids  []uint64 // of the containers
}

func (t *mapTable) encode() []byte {
	index := map[string]uint32{}
	var names []string
	for _, k := range t.keys {
		if _, ok := index[k.folder]; !ok {
			index[k.folder] = uint32(len(names))
			names = append(names, k.folder)
		}
	}
	b := append([]byte(nil), tableMagic...)
	b = le.AppendUint32(b, uint32(len(names)))
	b = le.AppendUint32(b, uint32(len(t.keys)))
	b = le.AppendUint32(b, 0)
	for _, n := range names {
		b = append(b, byte(len(n)))
		b = append(b, n...)
	}
	for i, k := range t.keys {
		b = le.AppendUint32(b, index[k.folder])
		b = le.AppendUint16(b, k.path)
		b = le.AppendUint16(b, k.disk)
		b = le.AppendUint32(b, k.number)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint64(b, t.ids[i])
	}
	return b
}

// parseTable is the inverse of encode.
func parseTable(b []byte) (*mapTable, error) {
	if len(b) < tableHead || len(b) > maxTable || string(b[:4]) != tableMagic || le.Uint32(b[12:]) != 0 {
		return nil, mapCorrupt("the table of files is damaged")
	}
	nf, n := le.Uint32(b[4:]), le.Uint32(b[8:])
	if nf > n || nf > maxFolders || n > maxMapFiles || int64(len(b)) < tableHead+2*int64(nf)+tableFile*int64(n) {
		return nil, mapCorrupt("a table of %d files in %d folders has %d bytes", n, nf, len(b))
	}
	names := make([]string, nf)
	rest := b[tableHead:]
	for i := range names {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return nil, mapCorrupt("the table of files ends early")
		}
		names[i] = string(rest[1 : 1+int(rest[0])])
		if _, ok := setOfFolder(names[i]); !ok {
			return nil, mapCorrupt("%q is not a set's folder", names[i])
		}
		rest = rest[1+int(rest[0]):]
	}
	if len(rest) != tableFile*int(n) {
		return nil, mapCorrupt("the table of files has %d bytes left", len(rest))
	}
	t := &mapTable{keys: make([]fileKey, n), ids: make([]uint64, n)}
	for i := range t.keys {
		e := rest[i*tableFile:]
		f, k := le.Uint32(e), &t.keys[i]
		*k = fileKey{path: le.Uint16(e[4:]), disk: le.Uint16(e[6:]), number: le.Uint32(e[8:])}
		if f >= nf || k.path < 1 || k.path > maxPaths || k.number < 1 || k.number >= maxNumber || le.Uint32(e[12:]) != 0 {
			return nil, mapCorrupt("entry %d of the table of files", i)
		}
		k.folder, t.ids[i] = names[f], le.Uint64(e[16:])
	}
	if string(t.encode()) != string(b) {
		return nil, mapCorrupt("the table of files is not in canonical form")
	}
	return t, nil
}

// A mapEnd is what the trailer says.
type mapEnd struct {
	size  int64 // of the disk
	runs  int64
	table uint32          // length of the table in bytes
	sum   holdfast.Digest // of the whole map but the trailer: see chain
}

// blocks returns the number of blocks, and tableOff where the table begins.
func (e *mapEnd) blocks() int64   { return (e.runs + blockRuns - 1) / blockRuns }
func (e *mapEnd) tableOff() int64 { return mapHead + e.blocks()*blockHead + e.runs*runLen }

func (e *mapEnd) encode() []byte {
	b := append(make([]byte, 0, mapTrailer), mapEndMagic...)
	b = le.AppendUint64(b, uint64(e.size))
	b = le.AppendUint64(b, uint64(e.runs))
	b = le.AppendUint32(b, e.table)
	b = le.AppendUint32(b, 0)
	b = append(b, e.sum[:]...)
	b = append(b, make([]byte, mapTrailer-4-len(b))...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseMapEnd(b []byte, length int64) (mapEnd, error) {
	var e mapEnd
	if len(b) != mapTrailer || string(b[:8]) != mapEndMagic || le.Uint32(b[mapTrailer-4:]) != crc32.Checksum(b[:mapTrailer-4], castagnoli) {
		return e, mapCorrupt("the trailer's checksum differs")
	}
	e = mapEnd{size: int64(le.Uint64(b[8:])), runs: int64(le.Uint64(b[16:])), table: le.Uint32(b[24:])}
	copy(e.sum[:], b[32:64])
	if le.Uint32(b[28:]) != 0 || !zeros(b[64:mapTrailer-4]) || e.runs < 0 || e.runs > maxRuns || e.table < tableHead || e.table > maxTable ||
		e.tableOff()+int64(e.table)+mapTrailer != length {
		return e, mapCorrupt("%d runs and a table of %d bytes in %d bytes", e.runs, e.table, length)
	}
	return e, nil
}

// A chain is a checksum of pieces that are written one after the other, without holding them: BLAKE3 of the checksum so far
// followed by the piece, beginning with zeros. The pieces of a map are its head, its blocks and its table.
type chain struct {
	sum holdfast.Digest
	h   *holdfast.Hasher
	buf []byte
}

func (c *chain) add(b []byte) {
	if c.h == nil {
		c.h = holdfast.Domain{}.Hasher()
	}
	c.buf = append(append(c.buf[:0], c.sum[:]...), b...)
	c.sum = c.h.Sum(c.buf)
}
