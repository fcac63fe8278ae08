package sidecar

import (
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/klauspost/reedsolomon"

	"github.com/holdfast-backup/holdfast"
)

// The shape of a side-car; docs/formats/parity.md has the bytes.
const (
	dataShards   = 64
	parityShards = 4
	maxBlock     = 64 << 10 // a burst of maxBlock × stripes × parityShards is repaired
	blockUnit    = 64

	magic     = "HFASTPAR"
	version   = 1
	headLen   = 64
	entryLen  = 12 // crc32c and the first 8 bytes of BLAKE3 of a block
	maxObject = 1 << 32
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A shape is how an object of some size is cut.
type shape struct {
	size    int64
	block   int // bytes; the last block of the object may be shorter
	blocks  int // of data
	stripes int
}

func shapeOf(size int64) shape {
	s := shape{size: size, block: maxBlock}
	if size < dataShards*maxBlock {
		s.block = max(blockUnit, int((size+dataShards*blockUnit-1)/(dataShards*blockUnit))*blockUnit)
	}
	s.blocks = int((size + int64(s.block) - 1) / int64(s.block))
	s.stripes = max(1, (s.blocks+dataShards-1)/dataShards)
	return s
}

// Data block i is shard i / stripes of stripe i mod stripes, so that neighbours lie in different stripes.
func (s shape) place(i int) (stripe, shard int) { return i % s.stripes, i / s.stripes }

// len returns the bytes of data block i.
func (s shape) len(i int) int {
	return int(min(int64(s.block), s.size-int64(i)*int64(s.block)))
}

func (s shape) parities() int { return s.stripes * parityShards }

// An entry is the check of one block: crc to look at on every read, sum to be sure of a repair.
type entry struct {
	crc uint32
	sum uint64
}

// hasher of sums: keyed with zeros, it finds accidents and not forgery. Not safe for concurrent use.
func newHasher() *holdfast.Hasher { return holdfast.Domain{}.Hasher() }

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func check(h *holdfast.Hasher, b []byte) entry {
	d := h.Sum(b)
	return entry{crc32.Checksum(b, castagnoli), le.Uint64(d[:8])}
}

func newRS() reedsolomon.Encoder {
	rs, err := reedsolomon.New(dataShards, parityShards)
	if err != nil {
		panic(err) // the shape is constant and right
	}
	return rs
}

// encode computes the side-car of a whole object. It takes memory for the parity, a sixteenth of the object, and one block.
func encode(r io.ReaderAt, size int64) ([]byte, error) {
	if size < 0 || size > maxObject {
		return nil, holdfast.Errorf(holdfast.Unsupported, "make side-car", "an object of %d bytes", size)
	}
	s, rs, hash := shapeOf(size), newRS(), newHasher()
	parity := make([][][]byte, s.stripes)
	for i := range parity {
		parity[i] = make([][]byte, parityShards)
		for j := range parity[i] {
			parity[i][j] = make([]byte, s.block)
		}
	}
	data := make([]entry, s.blocks)
	buf := make([]byte, s.block)
	for i := range s.blocks {
		n := s.len(i)
		if err := readFull(r, buf[:n], int64(i)*int64(s.block)); err != nil {
			return nil, err
		}
		clear(buf[n:])
		data[i] = check(hash, buf[:n])
		stripe, shard := s.place(i)
		if err := rs.EncodeIdx(buf, shard, parity[stripe]); err != nil {
			return nil, holdfast.Errorf(holdfast.Internal, "make side-car", "%w", err)
		}
	}
	return s.pack(data, parity, hash), nil
}

// pack lays a side-car out.
func (s shape) pack(data []entry, parity [][][]byte, hash *holdfast.Hasher) []byte {
	b := make([]byte, 0, s.parSize())
	table := make([]byte, 0, s.tableLen())
	for _, e := range data {
		table = le.AppendUint64(le.AppendUint32(table, e.crc), e.sum)
	}
	for _, row := range parity {
		for _, p := range row {
			e := check(hash, p)
			table = le.AppendUint64(le.AppendUint32(table, e.crc), e.sum)
		}
	}
	head := make([]byte, headLen)
	copy(head, magic)
	le.PutUint16(head[8:], version)
	le.PutUint16(head[10:], headLen)
	le.PutUint32(head[12:], uint32(s.block))
	le.PutUint16(head[16:], dataShards)
	le.PutUint16(head[18:], parityShards)
	le.PutUint64(head[24:], uint64(s.size))
	le.PutUint32(head[32:], uint32(s.blocks))
	le.PutUint32(head[36:], uint32(s.stripes))
	sum := hash.Sum(table)
	copy(head[40:56], sum[:16])
	le.PutUint32(head[60:], crc32.Checksum(head[:60], castagnoli))
	b = append(append(b, head...), table...)
	for _, row := range parity {
		for _, p := range row {
			b = append(b, p...)
		}
	}
	return append(append(b, table...), head...) // again: the check of the checks must survive what it is there for
}

func (s shape) tableLen() int { return (s.blocks + s.parities()) * entryLen }

func (s shape) parSize() int64 {
	return 2*int64(headLen+s.tableLen()) + int64(s.parities())*int64(s.block)
}

// A table is what a side-car says about its object, without the parity itself.
type table struct {
	shape
	data, parity []entry
	whole        bool // both copies of head and table are right
}

// parHead reads one copy of the head.
func parHead(h []byte) (shape, []byte, bool) {
	if string(h[:8]) != magic || le.Uint16(h[8:]) != version || le.Uint16(h[10:]) != headLen || le.Uint16(h[16:]) != dataShards ||
		le.Uint16(h[18:]) != parityShards || le.Uint32(h[20:]) != 0 || le.Uint32(h[56:]) != 0 || le.Uint32(h[60:]) != crc32.Checksum(h[:60], castagnoli) {
		return shape{}, nil, false
	}
	size := le.Uint64(h[24:])
	if size > maxObject {
		return shape{}, nil, false
	}
	s := shapeOf(int64(size))
	if uint32(s.block) != le.Uint32(h[12:]) || uint32(s.blocks) != le.Uint32(h[32:]) || uint32(s.stripes) != le.Uint32(h[36:]) {
		return shape{}, nil, false
	}
	return s, h[40:56], true
}

// readTable reads head and table from the front of a side-car of n bytes, or from its end where the front is damaged. The error is Corrupt if
// neither is right. Memory is bounded by the size of the side-car.
func readTable(r io.ReaderAt, n int64) (*table, error) {
	var t *table
	right := 0
	for _, back := range []bool{false, true} {
		one, err := readCopy(r, n, back)
		if err != nil {
			return nil, err
		}
		if one != nil {
			right++
			t = one
		}
	}
	if t == nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read side-car", "neither copy of its table is what it was")
	}
	t.whole = right == 2
	return t, nil
}

func readCopy(r io.ReaderAt, n int64, back bool) (*table, error) {
	if n < 2*headLen {
		return nil, nil
	}
	head := make([]byte, headLen)
	at := int64(0)
	if back {
		at = n - headLen
	}
	if err := readFull(r, head, at); err != nil {
		return nil, only(err)
	}
	s, sum, ok := parHead(head)
	if !ok || back && s.parSize() != n || int64(headLen+s.tableLen()) > n {
		return nil, nil // the front copy serves a side-car that was cut short, too
	}
	raw := make([]byte, s.tableLen())
	at = headLen
	if back {
		at = n - headLen - int64(len(raw))
	}
	if err := readFull(r, raw, at); err != nil {
		return nil, only(err)
	}
	if d := newHasher().Sum(raw); string(d[:16]) != string(sum) {
		return nil, nil
	}
	t := &table{shape: s, data: make([]entry, s.blocks), parity: make([]entry, s.parities())}
	for i := range t.data {
		t.data[i] = entry{le.Uint32(raw[i*entryLen:]), le.Uint64(raw[i*entryLen+4:])}
	}
	raw = raw[s.blocks*entryLen:]
	for i := range t.parity {
		t.parity[i] = entry{le.Uint32(raw[i*entryLen:]), le.Uint64(raw[i*entryLen+4:])}
	}
	return t, nil
}

// only lets an error of the medium pass; damage is what this package is for.
func only(err error) error {
	if holdfast.KindOf(err) == holdfast.Corrupt {
		return nil
	}
	return err
}

// parityOff is where parity shard j of a stripe lies in the side-car.
func (t *table) parityOff(stripe, j int) int64 {
	return int64(headLen+t.tableLen()) + int64(stripe*parityShards+j)*int64(t.block)
}

// A finding is what is wrong with an object and its side-car.
type finding struct {
	data   []int // blocks
	parity []int
}

// survey reads everything and says what is damaged.
func (t *table) survey(obj, par io.ReaderAt) (finding, error) {
	var f finding
	hash, buf := newHasher(), make([]byte, t.block)
	for i := range t.data {
		ok, err := t.readData(obj, i, buf, hash)
		if err != nil {
			return f, err
		}
		if !ok {
			f.data = append(f.data, i)
		}
	}
	for i := range t.parity {
		ok, err := t.readParity(par, i/parityShards, i%parityShards, buf, hash)
		if err != nil {
			return f, err
		}
		if !ok {
			f.parity = append(f.parity, i)
		}
	}
	return f, nil
}

// readData reads data block i, padded with zeros to a whole one, and says whether it is what it was. A read that fails is a damaged block.
func (t *table) readData(r io.ReaderAt, i int, buf []byte, hash *holdfast.Hasher) (bool, error) {
	n := t.len(i)
	clear(buf[n:])
	if err := readFull(r, buf[:n], int64(i)*int64(t.block)); err != nil {
		return false, tolerate(err)
	}
	return check(hash, buf[:n]) == t.data[i], nil
}

func (t *table) readParity(r io.ReaderAt, stripe, j int, buf []byte, hash *holdfast.Hasher) (bool, error) {
	if err := readFull(r, buf, t.parityOff(stripe, j)); err != nil {
		return false, tolerate(err)
	}
	return check(hash, buf) == t.parity[stripe*parityShards+j], nil
}

// tolerate: a medium that cannot read a block has lost it; one that is not there at all has not.
func tolerate(err error) error {
	switch holdfast.KindOf(err) {
	case holdfast.Offline, holdfast.Cancelled, holdfast.Permission, holdfast.Busy:
		return err
	}
	return nil
}

// rebuild returns the data blocks of f as they were. Corrupt if a stripe has lost more than the parity can bring back; never a wrong block.
func (t *table) rebuild(obj, par io.ReaderAt, f finding) (map[int][]byte, error) {
	const op = "repair from side-car"
	lost := map[int]bool{}
	stripes := map[int][]int{}
	for _, i := range f.data {
		lost[i] = true
		stripe, _ := t.place(i)
		stripes[stripe] = append(stripes[stripe], i)
	}
	out, rs, hash := map[int][]byte{}, newRS(), newHasher()
	for stripe, blocks := range stripes {
		shards := make([][]byte, dataShards+parityShards)
		missing := 0
		for k := range dataShards {
			i := k*t.stripes + stripe
			shards[k] = make([]byte, t.block)
			if i >= t.blocks {
				continue // never was: zeros
			}
			ok, err := t.readData(obj, i, shards[k], hash)
			if err != nil {
				return nil, err
			}
			if !ok || lost[i] {
				shards[k] = nil
				missing++
			}
		}
		for j := range parityShards {
			p := make([]byte, t.block)
			ok, err := t.readParity(par, stripe, j, p, hash)
			if err != nil {
				return nil, err
			}
			if ok {
				shards[dataShards+j] = p
			} else {
				missing++
			}
		}
		if missing > parityShards {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "%d of %d blocks of a stripe are lost, %d can be brought back", missing, dataShards+parityShards, parityShards)
		}
		if err := rs.ReconstructData(shards); err != nil {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
		}
		for _, i := range blocks {
			_, k := t.place(i)
			b := shards[k][:t.len(i)]
			if check(hash, b) != t.data[i] {
				return nil, holdfast.Errorf(holdfast.Corrupt, op, "block %d does not come out as it was", i)
			}
			out[i] = b
		}
	}
	return out, nil
}

// readFull fills p from off; too short is Corrupt.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return holdfast.Errorf(holdfast.Corrupt, "read", "%d bytes at %d, expected %d", n, off, len(p))
	}
	return err
}
