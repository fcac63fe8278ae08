package agent

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

func testPipeline(t testing.TB, e *engine, f *frozenDisk, w []work) *pipeline {
	t.Helper()
	c, err := holdfast.ParseChunking("adaptive")
	if err != nil {
		t.Fatal(err)
	}
	split, err := chunk.NewSplitter(c)
	if err != nil {
		t.Fatal(err)
	}
	meta := f.Meta()
	return &pipeline{e: e, disk: &meta, src: frozenReader{f}, work: w, split: split, hashers: &hashers{}, level: chunk.LevelFast,
		meter: &holdfast.Meter{}, haves: make(chan wire.Message, maxSlabs+1)}
}

// answering answers every Ask at once, and keeps nothing.
type answering struct {
	p       *pipeline
	missing bool
}

func (a answering) Send(_ context.Context, m wire.Message) error {
	if ask, ok := m.Body.(wire.Ask); ok {
		have := wire.Have{Batch: ask.Batch, Missing: make([]bool, len(ask.Digests))}
		for i := range have.Missing {
			have.Missing[i] = a.missing
		}
		a.p.haves <- wire.Message{Type: wire.TypeHave, Body: have}
	}
	return nil
}

// recorder answers "missing" to everything and remembers the order of things.
type recorder struct {
	p    *pipeline
	put  map[holdfast.Digest]bool
	refs []holdfast.Ref
	bad  string
}

func (r *recorder) Send(ctx context.Context, m wire.Message) error {
	switch b := m.Body.(type) {
	case *holdfast.Group:
		for _, c := range b.Chunks {
			if r.put[c.Digest] {
				r.bad = "a chunk was put twice while it was under way"
			}
			r.put[c.Digest] = true
		}
	case wire.Place:
		for _, ref := range b.Refs {
			if !ref.Digest.IsZero() && !r.put[ref.Digest] {
				r.bad = "a ref was placed before its chunk was put"
			}
			if n := len(r.refs); n > 0 && ref.Off < r.refs[n-1].End() {
				r.bad = "refs are out of order"
			}
			r.refs = append(r.refs, ref)
		}
	case wire.Ask:
		// What was put is known, as a pool would know it.
		have := wire.Have{Batch: b.Batch, Missing: make([]bool, len(b.Digests))}
		for i, d := range b.Digests {
			have.Missing[i] = !r.put[d]
		}
		r.p.haves <- wire.Message{Type: wire.TypeHave, Body: have}
	}
	return nil
}

// Goal: chunks are put before they are placed, and once; refs come in order and cover exactly the work; claims do not pile up.
// Method: a disk with much repetition and extents of all sizes. Send is called by two stages, so a lock is put around it.
func TestPutsComeBeforePlaces(t *testing.T) {
	e := newEngine(2)
	defer e.close()
	one := content(1, 8<<20)
	data := append(append(append([]byte{}, one...), one...), content(2, 8<<20)...)
	h := newMemHost()
	f := &frozenDisk{h: h, d: h.addVM("a", data).disks[0], data: data}
	var w []work
	for off := int64(0); off < int64(len(data)); {
		n := min(4096*(1+off/4096%97), int64(len(data))-off)
		w = append(w, work{Extent: holdfast.Extent{Off: off, Len: n}, zero: off/4096%31 == 7})
		off += n + 4096*(off/4096%3)
	}
	p := testPipeline(t, e, f, w)
	r := &recorder{p: p, put: map[holdfast.Digest]bool{}}
	p.link = &locked{to: r}
	if err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.bad != "" {
		t.Error(r.bad)
	}
	var want, got holdfast.Extents
	for _, x := range w {
		want = append(want, x.Extent)
	}
	for _, x := range r.refs {
		got = append(got, x.Extent)
	}
	if want, got := want.Normal(1<<40), got.Normal(1<<40); want.Total() != got.Total() || want.Subtract(got).Total() != 0 {
		t.Errorf("%d bytes placed, %d wanted", got.Total(), want.Total())
	}
	if len(p.claims.at) > 4096 {
		t.Errorf("%d claims are left", len(p.claims.at))
	}
	if len(e.slabs) != int(e.made.Load()) || len(e.slots) != cap(e.slots) {
		t.Errorf("%d slabs and %d slots came back", len(e.slabs), len(e.slots))
	}
}

// Goal: answers from afar get more slabs, up to the bound, and near ones do not.
func TestSlabsFollowTheDistanceOfAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			wait time.Duration
			want int32
		}{{farAnswer / 2, minSlabs}, {farAnswer * 2, maxSlabs}} {
			e := newEngine(1)
			for range 3 * maxSlabs {
				held := len(e.slabs)
				for range held {
					<-e.slabs
				}
				e.waitFar(nil, func() { <-time.After(c.wait) })
				for range held {
					e.slabs <- nil
				}
			}
			if got := e.made.Load(); got != c.want || len(e.slabs) != int(got) {
				t.Errorf("waiting %v: %d slabs, %d of them free; want %d", c.wait, got, len(e.slabs), c.want)
			}
			e.close()
		}
	})
}

// locked makes a sender safe for concurrent use, as a link is.
type locked struct {
	mu sync.Mutex
	to sender
}

func (l *locked) Send(ctx context.Context, m wire.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Send(ctx, m)
}

// Goal: an answer that does not fit its question ends the pipeline with an error, and nothing hangs or is lost.
func TestWrongAnswersEndThePipeline(t *testing.T) {
	for name, spoil := range map[string]func(*wire.Have){
		"other batch": func(h *wire.Have) { h.Batch += 7 },
		"too few":     func(h *wire.Have) { h.Missing = h.Missing[1:] },
	} {
		e := newEngine(2)
		h := newMemHost()
		data := content(1, 40<<20)
		f := &frozenDisk{h: h, d: h.addVM("a", data).disks[0], data: data}
		p := testPipeline(t, e, f, []work{{Extent: holdfast.Extent{Len: int64(len(data))}}})
		p.link = spoiling{p, spoil}
		if err := p.run(t.Context()); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if len(e.slabs) != int(e.made.Load()) || len(e.slots) != cap(e.slots) {
			t.Errorf("%s: %d slabs and %d slots came back", name, len(e.slabs), len(e.slots))
		}
		e.close()
	}
}

type spoiling struct {
	p     *pipeline
	spoil func(*wire.Have)
}

func (s spoiling) Send(_ context.Context, m wire.Message) error {
	if ask, ok := m.Body.(wire.Ask); ok {
		have := wire.Have{Batch: ask.Batch, Missing: make([]bool, len(ask.Digests))}
		if ask.Batch == 2 {
			s.spoil(&have)
		}
		s.p.haves <- wire.Message{Type: wire.TypeHave, Body: have}
	}
	return nil
}
