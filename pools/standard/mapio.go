package standard

import (
	"context"
	"sort"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// A mapWriter streams one disk's map into an object. It holds one block and the table of files. Not safe for concurrent use.
type mapWriter struct {
	o     blob.Object
	size  int64
	cur   run  // not yet in the block; len 0: none
	full  bool // cur ends where its last chunk does
	table mapTable
	files []*file // as in the table
	index map[*file]uint32
	block []byte // with room for its head
	end   mapEnd
	chain chain
	bytes int64
}

func newMapWriter(o blob.Object, pool holdfast.PoolID, size int64) (*mapWriter, error) {
	w := &mapWriter{o: o, size: size, index: map[*file]uint32{}, block: make([]byte, blockHead, blockLen)}
	return w, w.write(appendMapHead(pool, size))
}

func (w *mapWriter) write(b []byte) error {
	w.chain.add(b)
	w.bytes += int64(len(b))
	_, err := w.o.Write(b)
	return err
}

// fileIndex returns the index of a data file in the table.
func (w *mapWriter) fileIndex(f *file) (uint32, error) {
	if i, ok := w.index[f]; ok {
		return i, nil
	}
	if len(w.files) >= maxMapFiles {
		return 0, holdfast.Errorf(holdfast.Invalid, "write map", "the disk lies in more than %d data files", maxMapFiles).Advise("back the VM up in full")
	}
	i := uint32(len(w.files))
	w.index[f] = i
	w.files = append(w.files, f)
	w.table.keys, w.table.ids = append(w.table.keys, f.key), append(w.table.ids, f.id.Load())
	return i, nil
}

// ref adds an extent that holds bytes of a chunk, or zeros where f is nil.
func (w *mapWriter) ref(r *holdfast.Ref, l loc) error {
	n := run{off: r.Off, len: r.Len, file: zeroFile}
	if l.f != nil {
		i, err := w.fileIndex(l.f)
		if err != nil {
			return err
		}
		n.file, n.skip, n.first, n.count = i, r.Skip, l.ord, 1
	}
	c := &w.cur
	if c.len > 0 && c.file == n.file && c.end() == n.off && (n.zeros() || w.full && n.skip == 0 && c.last() == n.first) {
		c.len += n.len
		c.count += n.count
	} else if err := w.add(n); err != nil {
		return err
	}
	w.full = int64(r.Skip)+r.Len == int64(l.len)
	return nil
}

// add adds a run that begins at or after the end of what is there.
func (w *mapWriter) add(n run) error {
	err := w.flush()
	w.cur, w.full = n, false
	return err
}

// flush moves cur into the block, and a full block to the object.
func (w *mapWriter) flush() error {
	if w.cur.len == 0 {
		return nil
	}
	w.block = appendRun(w.block, &w.cur)
	w.end.runs++
	w.cur = run{}
	if len(w.block) < blockLen {
		return nil
	}
	return w.writeBlock()
}

func (w *mapWriter) writeBlock() error {
	if len(w.block) == blockHead {
		return nil
	}
	putBlockHead(w.block, uint32((w.end.runs-1)/blockRuns))
	err := w.write(w.block)
	w.block = w.block[:blockHead]
	return err
}

// finish writes the table and the trailer and commits the object.
func (w *mapWriter) finish() (mapFact, error) {
	err := w.flush()
	if err == nil {
		err = w.writeBlock()
	}
	if err != nil {
		return mapFact{}, err
	}
	t := w.table.encode()
	if len(t) > maxTable {
		return mapFact{}, holdfast.Errorf(holdfast.Invalid, "write map", "the disk lies in too many data files").Advise("back the VM up in full")
	}
	w.end.table, w.end.size = uint32(len(t)), w.size
	if err := w.write(t); err != nil {
		return mapFact{}, err
	}
	w.end.sum = w.chain.sum
	if err := w.write(w.end.encode()); err != nil {
		return mapFact{}, err
	}
	return mapFact{Bytes: w.bytes, Sum: w.end.sum}, w.o.Commit()
}

// A mapReader reads a map, block by block. Not safe for concurrent use.
type mapReader struct {
	r     blob.Reader
	end   mapEnd
	table *mapTable
	buf   []byte
	block []byte // runs of the block at hand that were not returned yet
	next  int64  // number of the block after it
	last  int64  // end of the run returned last
}

// openMap opens the map that a set record describes.
func openMap(ctx context.Context, s blob.Store, name string, pool holdfast.PoolID, fact mapFact) (*mapReader, error) {
	r, err := s.Open(ctx, name)
	if holdfast.KindOf(err) == holdfast.NotExist && err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read map", "%s is not there any more", name).Advise("restore another point in time, and verify the pool")
	}
	if err != nil {
		return nil, err
	}
	m, err := newMapReader(r, pool)
	if err == nil && (m.end.sum != fact.Sum || r.Size() != fact.Bytes) {
		err = mapCorrupt("%s is not the map that the set record describes", name)
	}
	if err != nil {
		_ = r.Close() // only read
		return nil, err
	}
	return m, nil
}

// newMapReader reads head, table and trailer. The reader is the caller's until it succeeds.
func newMapReader(r blob.Reader, pool holdfast.PoolID) (*mapReader, error) {
	if r.Size() < mapHead+tableHead+mapTrailer {
		return nil, mapCorrupt("it has %d bytes", r.Size())
	}
	m := &mapReader{r: r}
	head, tail := make([]byte, mapHead), make([]byte, mapTrailer)
	if err := readFull(r, head, 0); err != nil {
		return nil, err
	}
	size, err := parseMapHead(head, pool)
	if err != nil {
		return nil, err
	}
	if err := readFull(r, tail, r.Size()-mapTrailer); err != nil {
		return nil, err
	}
	if m.end, err = parseMapEnd(tail, r.Size()); err != nil {
		return nil, err
	}
	if m.end.size != size {
		return nil, mapCorrupt("head and trailer disagree")
	}
	t := make([]byte, m.end.table)
	if err := readFull(r, t, m.end.tableOff()); err != nil {
		return nil, err
	}
	m.table, err = parseTable(t)
	return m, err
}

func (m *mapReader) close() { _ = m.r.Close() } // only read

// read returns the next run, or false at the end.
func (m *mapReader) read() (run, bool, error) {
	if len(m.block) == 0 {
		if m.next >= m.end.blocks() {
			return run{}, false, nil
		}
		if err := m.load(m.next); err != nil {
			return run{}, false, err
		}
	}
	r := parseRun(m.block)
	if !r.check(m.last, m.end.size, len(m.table.keys)) {
		return run{}, false, mapCorrupt("a run of %d bytes at %d after %d", r.len, r.off, m.last)
	}
	m.block = m.block[runLen:]
	m.last = r.end()
	return r, true, nil
}

// raw reads block number i, head and all.
func (m *mapReader) raw(i int64) ([]byte, error) {
	runs := min(blockRuns, m.end.runs-i*blockRuns)
	if m.buf == nil {
		m.buf = make([]byte, min(blockLen, blockHead+m.end.runs*runLen))
	}
	b := m.buf[:blockHead+runs*runLen]
	return b, readFull(m.r, b, mapHead+i*blockLen)
}

// load makes block number i the one at hand.
func (m *mapReader) load(i int64) error {
	b, err := m.raw(i)
	if err != nil {
		return err
	}
	if err := checkBlock(b, uint32(i)); err != nil {
		return err
	}
	m.block, m.next = b[blockHead:], i+1
	return nil
}

// seek makes read return the first run that ends after off.
func (m *mapReader) seek(off int64) error {
	var bad error
	first := make([]byte, 8)
	// The last block that begins at or before off, by the first run's offset.
	i := sort.Search(int(m.end.blocks()), func(i int) bool {
		if err := readFull(m.r, first, mapHead+int64(i)*blockLen+blockHead); err != nil && bad == nil {
			bad = err
		}
		return int64(le.Uint64(first)) > off
	})
	if bad != nil {
		return bad
	}
	m.block, m.next, m.last = nil, int64(max(i-1, 0)), 0
	for {
		if len(m.block) == 0 {
			if m.next >= m.end.blocks() {
				return nil
			}
			if err := m.load(m.next); err != nil {
				return err
			}
		}
		n := len(m.block) / runLen
		k := sort.Search(n, func(i int) bool { r := parseRun(m.block[i*runLen:]); return r.end() > off })
		m.block = m.block[k*runLen:]
		if k < n {
			return nil
		}
	}
}

// verify reads the whole map and checks its sum.
func (m *mapReader) verify(ctx context.Context) error {
	var c chain
	head := make([]byte, mapHead)
	if err := readFull(m.r, head, 0); err != nil {
		return err
	}
	c.add(head)
	for i := range m.end.blocks() {
		if err := alive(ctx, "verify map"); err != nil {
			return err
		}
		b, err := m.raw(i)
		if err != nil {
			return err
		}
		c.add(b)
	}
	t := make([]byte, m.end.table)
	if err := readFull(m.r, t, m.end.tableOff()); err != nil {
		return err
	}
	if c.add(t); c.sum != m.end.sum {
		return mapCorrupt("its checksum differs")
	}
	return nil
}
