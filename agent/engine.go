package agent

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/internal/direct"
)

// Memory of the hot path, whatever the number of VMs and disks: minSlabs slabs, up to maxSlabs where answers come from afar, two
// slots for each worker, and beyond that one group (1 MiB) for each disk that is being read.
const (
	slabBytes = 2 << 20 // one read, one Ask
	minSlabs  = 5       // one being read, two being hashed, one on the way to be answered, one being gathered
	maxSlabs  = 20
	// An answer that is waited for so long comes from so far that more questions must be under way: below it, minSlabs carry 0.2 GB/s.
	farAnswer = 50 * time.Millisecond
	congested = 1 << 20   // bytes under way with which more questions would not help
	maxRuns   = 1024      // extents that share a slab
	minRoom   = 128 << 10 // a slab with less room left is full
)

// carryRoom is the room before a slab's bytes for what was undecided at the end of the one before. Pages of it that no chunking
// needs are never touched.
var carryRoom = chunk.MaxCarry(holdfast.Chunking{Max: holdfast.MaxChunk}) &^ (chunk.Block - 1)

// A run is a part of an extent in a slab, or (zero) an extent that is known to be zeros without being read.
type run struct {
	off        int64
	len        int64
	at         int  // in the slab's buffer
	last, zero bool // last: it ends the extent
}

// A piece is a chunk or a zero run in a slab.
type piece struct {
	off, len int64
	at       int // in the slab's buffer
	zero     bool
	digest   holdfast.Digest
}

// A slab is the unit of work on the way from disk to wire.
type slab struct {
	buf     []byte // carryRoom, then slabBytes
	end     int    // of the bytes read
	runs    []run
	pieces  []piece
	chunks  int           // pieces that are not zero
	batch   uint32        // number of the Ask; 0: there was nothing to ask
	hashers *hashers      // of the domain
	hashing bool          // handed to the workers; ready has not been received from yet
	ready   chan struct{} // a token when it is hashed
}

// A slot is a group on its way through encoding to the wire.
type slot struct {
	builder  *chunk.Builder
	payload  []byte
	level    chunk.Level
	group    holdfast.Group
	encoding bool
	ready    chan struct{}
}

// An engine is the shared part of all pipelines: bounded buffers and the workers that hash and encode.
type engine struct {
	slabs  chan *slab
	slots  chan *slot
	hash   chan *slab
	encode chan *slot
	quit   chan struct{}
	wg     sync.WaitGroup
	made   atomic.Int32 // slabs there may be
	clock  clock.Clock
}

// newEngine starts the workers; close ends them.
func newEngine(workers int) *engine {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	slots := 2 * workers
	e := &engine{
		slabs: make(chan *slab, maxSlabs), slots: make(chan *slot, slots),
		hash: make(chan *slab, maxSlabs), encode: make(chan *slot, slots), quit: make(chan struct{}), clock: clock.System,
	}
	for range minSlabs {
		e.addSlab()
	}
	for range slots {
		e.slots <- nil
	}
	for range workers {
		e.wg.Go(e.work)
	}
	return e
}

// close ends the workers. No pipeline may be running.
func (e *engine) close() {
	close(e.quit)
	e.wg.Wait()
}

// work hashes slabs and encodes groups. Groups first: they are nearer to the end of the pipeline.
func (e *engine) work() {
	var encoders [chunk.LevelBest + 1]*chunk.Encoder
	encode := func(s *slot) {
		if encoders[s.level] == nil {
			encoders[s.level] = chunk.NewEncoder(s.level)
		}
		s.group = s.builder.Encode(encoders[s.level], s.payload)
		s.ready <- struct{}{}
	}
	for {
		select {
		case s := <-e.encode:
			encode(s)
			continue
		default:
		}
		select {
		case s := <-e.encode:
			encode(s)
		case s := <-e.hash:
			s.sum()
		case <-e.quit:
			return
		}
	}
}

// sum computes the digests of a slab's chunks.
func (s *slab) sum() {
	h := s.hashers.get()
	for i := range s.pieces {
		if p := &s.pieces[i]; !p.zero {
			p.digest = h.Sum(s.buf[p.at : p.at+int(p.len)])
		}
	}
	s.hashers.put(h)
	s.ready <- struct{}{}
}

// addSlab allows one slab more, up to maxSlabs. It is made when it is first used.
func (e *engine) addSlab() {
	if e.made.Add(1) > maxSlabs {
		e.made.Add(-1)
		return
	}
	e.slabs <- nil
}

// waitFar calls wait, and allows a slab more if that takes long while none is free and the workers have nothing to do: then latency,
// not work, is what the pipeline waits for.
func (e *engine) waitFar(link sender, wait func()) {
	if len(e.slabs) > 0 || e.made.Load() >= maxSlabs {
		wait()
		return
	}
	began := e.clock.Now()
	wait()
	idle := len(e.slabs) == 0 && len(e.hash) == 0 && len(e.encode) == 0
	if l, ok := link.(interface{ Stats() wire.LinkStats }); ok {
		idle = idle && l.Stats().Unacked < congested // else the line or the appliance is what everything waits for
	}
	if idle && e.clock.Now().Sub(began) >= farAnswer {
		e.addSlab()
	}
}

// slab waits for a free slab.
func (e *engine) slab(ctx context.Context) (*slab, error) {
	select {
	case s := <-e.slabs:
		if s == nil {
			s = &slab{buf: direct.Buffer(carryRoom + slabBytes), ready: make(chan struct{}, 1)}
		}
		s.end, s.runs, s.pieces, s.chunks, s.batch = carryRoom, s.runs[:0], s.pieces[:0], 0, 0
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// freeSlab gives a slab back, waiting for the workers if they have it.
func (e *engine) freeSlab(s *slab) {
	if s.hashing {
		<-s.ready
		s.hashing = false
	}
	e.slabs <- s
}

// slot waits for a free slot.
func (e *engine) slot(ctx context.Context) (*slot, error) {
	select {
	case s := <-e.slots:
		if s == nil {
			s = &slot{builder: chunk.NewBuilder(), payload: make([]byte, 0, chunk.MaxEncoded), ready: make(chan struct{}, 1)}
		}
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// freeSlot gives a slot back, waiting for the workers if they have it.
func (e *engine) freeSlot(s *slot) {
	if s.encoding {
		<-s.ready
		s.encoding = false
	}
	s.builder.Reset()
	s.group = holdfast.Group{}
	e.slots <- s
}

// hashers lends hashers of one domain to the workers.
type hashers struct {
	domain holdfast.Domain
	mu     sync.Mutex
	free   []*holdfast.Hasher
}

func (h *hashers) get() *holdfast.Hasher {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.free); n > 0 {
		x := h.free[n-1]
		h.free = h.free[:n-1]
		return x
	}
	return h.domain.Hasher()
}

func (h *hashers) put(x *holdfast.Hasher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = append(h.free, x)
}
