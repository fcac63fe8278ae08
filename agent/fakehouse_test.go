package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// A house is the appliance's side in memory, behind a real wire.Acceptor on loopback. It checks what an appliance checks, and is the
// agent's Control.
type house struct {
	t        testing.TB
	acceptor *wire.Acceptor
	ln       net.Listener
	wg       sync.WaitGroup
	notices  chan wire.Notice

	mu      sync.Mutex
	chunks  map[holdfast.Digest][]byte
	sets    map[holdfast.SetID]*heldSet
	grants  map[holdfast.TaskID]*grant
	reports map[holdfast.TaskID]wire.Report // the last of each
	ended   map[holdfast.TaskID]chan struct{}
	invs    int
	twice   int // chunks put although they were there
	conns   []net.Conn
	links   []*wire.Link

	hook   func(m wire.Message) error // sees every message; an error is sent as Fail
	noKeep bool                       // do not compare and keep bytes: for benchmarks
}

type heldSet struct {
	manifest holdfast.Manifest
	images   [][]byte
	tokens   map[holdfast.DiskID]string
}

// A grant is what a task may do.
type grant struct {
	began wire.Began
	set   holdfast.SetID // to restore
	done  chan struct{}  // a token for each Done
}

func openHouse(t testing.TB) *house {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, acceptor: wire.NewAcceptor(wire.LinkOptions{}), ln: ln, notices: make(chan wire.Notice, 64),
		chunks: map[holdfast.Digest][]byte{}, sets: map[holdfast.SetID]*heldSet{}, grants: map[holdfast.TaskID]*grant{},
		reports: map[holdfast.TaskID]wire.Report{}, ended: map[holdfast.TaskID]chan struct{}{}}
	ctx, cancel := context.WithCancel(context.Background())
	peer := holdfast.HostID{ID: holdfast.NewID()}
	h.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.conns = append(h.conns, conn)
			h.mu.Unlock()
			h.wg.Go(func() { _ = h.acceptor.Serve(ctx, conn, peer) })
		}
	})
	h.wg.Go(func() {
		for {
			l, err := h.acceptor.Accept(ctx)
			if err != nil {
				return
			}
			h.mu.Lock()
			h.links = append(h.links, l)
			h.mu.Unlock()
			h.wg.Go(func() { h.serve(ctx, l) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		h.acceptor.Close()
		cancel()
		h.wg.Wait()
	})
	return h
}

// The agent's Control.

func (h *house) Run(ctx context.Context, on transport.Handler) error {
	on.Online()
	for {
		select {
		case n := <-h.notices:
			on.Notice(n)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (h *house) Inventory(context.Context, wire.Inventory) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.invs++
	return nil
}

func (h *house) Report(_ context.Context, rs []wire.Report) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range rs {
		before := h.reports[r.Task]
		h.reports[r.Task] = r
		if c := h.ended[r.Task]; c != nil && r.Ended && !before.Ended {
			close(c)
		}
	}
	return nil
}

func (h *house) DialBy(ctx context.Context, _ *wire.Route, o wire.LinkOptions) (*wire.Link, error) {
	return wire.Dial(ctx, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", h.ln.Addr().String())
	}, o)
}

// on sets the hook that sees every message; nil for none.
func (h *house) on(hook func(m wire.Message) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

// cut breaks every connection.
func (h *house) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.Close()
	}
	h.conns = nil
}

// serve runs one link as an appliance does.
func (h *house) serve(ctx context.Context, l *wire.Link) {
	err := h.talk(ctx, l)
	switch {
	case errors.Is(err, io.EOF):
		_ = l.Close(ctx)
	case err != nil:
		_ = l.Send(ctx, wire.Message{Type: wire.TypeFail, Body: wire.FailureOf(err)})
		for { // until the agent has heard it
			m, err := l.Recv(ctx)
			if err != nil {
				break
			}
			m.Release()
		}
		l.Abort(err)
	}
}

func (h *house) talk(ctx context.Context, l *wire.Link) error {
	m, err := l.Recv(ctx)
	if err != nil {
		return err
	}
	begin := m.Body.(wire.Begin)
	h.mu.Lock()
	g := h.grants[begin.Task]
	h.mu.Unlock()
	if g == nil {
		return holdfast.Errorf(holdfast.NotExist, "begin", "no such task")
	}
	if m.Type == wire.TypeOpenSet {
		return h.deliver(ctx, l, g)
	}
	return h.ingest(ctx, l, g)
}

// session is one set being written.
type session struct {
	h      *house
	l      *wire.Link
	g      *grant
	set    *heldSet
	at     []int64 // end of the last ref of each disk
	done   []bool
	hash   *holdfast.Hasher
	dec    *chunk.Decoder
	answer []bool
}

func (h *house) ingest(ctx context.Context, l *wire.Link, g *grant) error {
	if err := l.Send(ctx, wire.Message{Type: wire.TypeBegan, Body: g.began}); err != nil {
		return err
	}
	s := &session{h: h, l: l, g: g, hash: holdfast.Domain{Key: [32]byte(g.began.DomainKey)}.Hasher(), dec: chunk.NewDecoder()}
	for {
		m, err := l.Recv(ctx)
		if err != nil {
			return err
		}
		h.mu.Lock()
		on := h.hook
		h.mu.Unlock()
		if on != nil {
			if err := on(m); err != nil {
				return err
			}
		}
		if err := s.handle(ctx, m); err != nil {
			return err
		}
		m.Release()
	}
}

func (s *session) handle(ctx context.Context, m wire.Message) error {
	h, d := s.h, int(m.Channel)
	switch b := m.Body.(type) {
	case holdfast.Manifest:
		if m.Type == wire.TypeStart {
			return s.start(b)
		}
		return s.commit(ctx, b)
	case wire.Ask:
		s.answer = s.answer[:0]
		h.mu.Lock()
		for _, x := range b.Digests {
			_, have := h.chunks[x]
			s.answer = append(s.answer, !have)
		}
		h.mu.Unlock()
		return s.l.Send(ctx, wire.Message{Type: wire.TypeHave, Channel: m.Channel, Body: wire.Have{Batch: b.Batch, Missing: s.answer}})
	case *holdfast.Group:
		return s.put(b)
	case wire.Place:
		return s.place(d, b.Refs)
	case wire.Tracking:
		h.mu.Lock()
		s.set.tokens = b.Tokens
		h.mu.Unlock()
		return s.l.Send(ctx, wire.Message{Type: wire.TypeTracked})
	case nil:
		switch {
		case m.Type == wire.TypeDiskDone && !s.done[d]:
			s.done[d] = true
			return nil
		case m.Type == wire.TypeDone:
			s.g.done <- struct{}{}
			return nil
		}
	}
	return holdfast.Errorf(holdfast.Invalid, "test appliance", "a %v message", m.Type)
}

func (s *session) start(m holdfast.Manifest) error {
	s.set = &heldSet{manifest: m}
	s.at, s.done = make([]int64, len(m.Disks)), make([]bool, len(m.Disks))
	for _, d := range m.Disks {
		if s.h.noKeep {
			continue
		}
		image := make([]byte, d.Size)
		if d.Inherit {
			s.h.mu.Lock()
			old := s.h.sets[m.Parent]
			s.h.mu.Unlock()
			for i := range old.manifest.Disks {
				if old.manifest.Disks[i].ID == d.ID {
					copy(image, old.images[i])
				}
			}
		}
		s.set.images = append(s.set.images, image)
	}
	return nil
}

func (s *session) put(g *holdfast.Group) error {
	plain, err := s.dec.Open(s.hash, g, nil, nil)
	if err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	at := 0
	for _, c := range g.Chunks {
		if _, have := s.h.chunks[c.Digest]; have {
			s.h.twice++
		}
		s.h.chunks[c.Digest] = bytes.Clone(plain[at : at+int(c.Len)])
		at += int(c.Len)
	}
	return nil
}

func (s *session) place(d int, refs []holdfast.Ref) error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	for _, r := range refs {
		if r.Off < s.at[d] || r.End() > s.set.manifest.Disks[d].Size || s.done[d] {
			return holdfast.Errorf(holdfast.Invalid, "test appliance", "ref at %d after %d", r.Off, s.at[d])
		}
		s.at[d] = r.End()
		if r.Digest.IsZero() {
			if !s.h.noKeep {
				clear(s.set.images[d][r.Off:r.End()])
			}
			continue
		}
		c, ok := s.h.chunks[r.Digest]
		if !ok || int64(r.Skip)+r.Len > int64(len(c)) {
			return holdfast.Errorf(holdfast.NotExist, "test appliance", "a ref to a chunk that is not there")
		}
		if !s.h.noKeep {
			copy(s.set.images[d][r.Off:r.End()], c[r.Skip:])
		}
	}
	return nil
}

func (s *session) commit(ctx context.Context, m holdfast.Manifest) error {
	for i, done := range s.done {
		if !done {
			return holdfast.Errorf(holdfast.Invalid, "test appliance", "disk %d is not done", i)
		}
	}
	s.set.manifest = m
	s.h.mu.Lock()
	s.h.sets[m.ID] = s.set
	s.h.mu.Unlock()
	return s.l.Send(ctx, wire.Message{Type: wire.TypeCommitted, Body: wire.Committed{Manifest: m}})
}

// deliver serves a restore.
func (h *house) deliver(ctx context.Context, l *wire.Link, g *grant) error {
	h.mu.Lock()
	set := h.sets[g.set]
	h.mu.Unlock()
	key := g.began.DomainKey
	if err := l.Send(ctx, wire.Message{Type: wire.TypeSetOpened, Body: wire.SetOpened{Manifest: set.manifest, DomainKey: key}}); err != nil {
		return err
	}
	hash, enc := holdfast.Domain{Key: [32]byte(key)}.Hasher(), chunk.NewEncoder(chunk.LevelFast)
	for {
		m, err := l.Recv(ctx)
		if err != nil {
			return err
		}
		h.mu.Lock()
		on := h.hook
		h.mu.Unlock()
		if on != nil {
			if err := on(m); err != nil {
				return err
			}
		}
		if m.Type == wire.TypeDone {
			g.done <- struct{}{}
			continue
		}
		image := set.images[m.Channel]
		// Backwards, in groups of chunks that are one after the other on the disk or not.
		const step = 192 << 10
		for at := (len(image) - 1) / step * step; at >= 0; at -= step {
			b := chunk.NewBuilder()
			p := &holdfast.Parcel{}
			for _, off := range []int{at + 64<<10, at, at + 128<<10} {
				end := min(off+64<<10, len(image), at+step)
				if off >= end || chunk.IsZero(image[off:end]) {
					continue
				}
				_, n := b.Len()
				p.Places = append(p.Places, holdfast.Place{Off: int64(off), At: uint32(n), Len: uint32(end - off)})
				b.Add(hash.Sum(image[off:end]), image[off:end])
			}
			if len(p.Places) == 0 {
				continue
			}
			p.Group = b.Encode(enc, nil)
			if err := l.Send(ctx, wire.Message{Type: wire.TypeParcel, Channel: m.Channel, Body: p}); err != nil {
				return err
			}
		}
		if err := l.Send(ctx, wire.Message{Type: wire.TypeDelivered, Channel: m.Channel}); err != nil {
			return err
		}
	}
}
