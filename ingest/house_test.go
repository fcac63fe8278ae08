package ingest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
)

// A house is the appliance's end with real parts: a catalog on the crashable file system, the memory pool, links over loopback TCP.
type house struct {
	t        *testing.T
	mem      *fsys.Mem
	disk     *fsys.Fault
	cat      *catalog.Catalog
	medium   *memory.Medium
	pool     pools.Pool
	poolID   holdfast.PoolID
	server   *Server
	acceptor *wire.Acceptor
	ln       net.Listener
	host     holdfast.HostID
	vm       holdfast.VMInfo
	wg       sync.WaitGroup

	mu      sync.Mutex
	full    bool
	restore holdfast.SetID
	events  []holdfast.Event
	ended   chan error // of sessions: what ServeLink returned
}

var theTask = holdfast.TaskID{ID: holdfast.ID{1, 15: 1}}

func openHouse(t *testing.T) *house {
	t.Helper()
	return openHouseWith(t, wire.LinkOptions{})
}

func openHouseWith(t *testing.T, o wire.LinkOptions) *house {
	t.Helper()
	h := &house{t: t, poolID: holdfast.PoolID{ID: holdfast.NewID()}, host: holdfast.HostID{ID: holdfast.NewID()}, ended: make(chan error, 100),
		vm: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: "vm", Generation: 2}}
	h.mem = fsys.NewMem(1)
	h.disk = fsys.NewFault(h.mem)
	var err error
	if h.cat, err = catalog.Open(h.disk, "catalog"); err != nil {
		t.Fatal(err)
	}
	c, _ := holdfast.ParseChunking("fixed-64K")
	if h.medium, err = memory.NewMedium(h.poolID, c); err != nil {
		t.Fatal(err)
	}
	p, err := h.medium.Open()
	if err != nil {
		t.Fatal(err)
	}
	h.pool = p
	h.server = NewServer(Options{Catalog: h.cat, Desk: h, Listener: h.listen})
	h.acceptor = wire.NewAcceptor(o)
	if h.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.wg.Go(func() {
		for {
			conn, err := h.ln.Accept()
			if err != nil {
				return
			}
			h.wg.Go(func() { _ = h.acceptor.Serve(ctx, conn, h.host) })
		}
	})
	h.wg.Go(func() {
		for {
			l, err := h.acceptor.Accept(ctx)
			if err != nil {
				return
			}
			h.wg.Go(func() { h.ended <- h.server.ServeLink(ctx, l, l.Peer()) })
		}
	})
	t.Cleanup(func() {
		h.ln.Close()
		h.acceptor.Close()
		cancel()
		h.wg.Wait()
		h.server.Close()
		_ = h.cat.Close()
		_ = h.pool.Close()
	})
	return h
}

func (h *house) listen(e holdfast.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *house) saw(typ holdfast.EventType) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Type == typ {
			return true
		}
	}
	return false
}

func (h *house) Backup(_ context.Context, host holdfast.HostID, task holdfast.TaskID) (BackupGrant, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if host != h.host || task != theTask {
		return BackupGrant{}, holdfast.Errorf(holdfast.Permission, "begin", "not your task")
	}
	return BackupGrant{Pool: h.pool, PoolID: h.poolID, VM: h.vm, HostName: "host", Full: h.full}, nil
}

func (h *house) Restore(_ context.Context, host holdfast.HostID, task holdfast.TaskID) (RestoreGrant, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if host != h.host || task != theTask {
		return RestoreGrant{}, holdfast.Errorf(holdfast.Permission, "begin", "not your task")
	}
	return RestoreGrant{Pool: h.pool, Set: h.restore}, nil
}

func (h *house) direct(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", h.ln.Addr().String())
}

// listed returns the ids of the sets that catalog and pool list; they must agree.
func (h *house) listed() []holdfast.SetID {
	h.t.Helper()
	sets, err := catalog.ListSets(h.cat)
	if err != nil {
		h.t.Fatal(err)
	}
	var ids []holdfast.SetID
	for _, s := range sets {
		ids = append(ids, s.Manifest.ID)
	}
	n := 0
	for _, err := range h.pool.Sets(h.t.Context()) {
		if err != nil {
			h.t.Fatal(err)
		}
		n++
	}
	if n != len(ids) {
		h.t.Fatalf("the catalog lists %d sets, the pool %d", len(ids), n)
	}
	return ids
}

// An agent is the other end, as simple as it can be.
type agent struct {
	t     *testing.T
	link  *wire.Link
	began wire.Began
	m     holdfast.Manifest
	hash  *holdfast.Hasher
	puts  int // chunks sent

	refused bool // its own side refused to send a lie
}

func (h *house) agent(dial wire.DialFunc) *agent {
	h.t.Helper()
	if dial == nil {
		dial = h.direct
	}
	l, err := wire.Dial(h.t.Context(), dial, wire.LinkOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Abort(holdfast.Errorf(holdfast.Cancelled, "", "test over")) })
	return &agent{t: h.t, link: l}
}

func (a *agent) send(t wire.Type, channel uint16, body any) {
	a.t.Helper()
	if err := a.link.Send(a.t.Context(), wire.Message{Type: t, Channel: channel, Body: body}); err != nil {
		a.t.Fatal(t, err)
	}
}

func (a *agent) recv(want wire.Type) wire.Message {
	a.t.Helper()
	m, err := a.link.Recv(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	if m.Type != want {
		a.t.Fatalf("got %v %+v instead of %v", m.Type, m.Body, want)
	}
	return m
}

// fails receives until the appliance's refusal and returns it.
func (a *agent) fails() error {
	a.t.Helper()
	for {
		m, err := a.link.Recv(a.t.Context())
		if err != nil {
			return err
		}
		if m.Type == wire.TypeFail {
			return m.Body.(wire.Failure).AsError()
		}
	}
}

func (a *agent) begin() *agent {
	a.t.Helper()
	a.send(wire.TypeBegin, 0, wire.Begin{Task: theTask})
	a.began = a.recv(wire.TypeBegan).Body.(wire.Began)
	a.hash = holdfast.Domain{Key: [32]byte(a.began.DomainKey)}.Hasher()
	return a
}

var diskIDs = []holdfast.DiskID{{ID: holdfast.ID{2, 15: 1}}, {ID: holdfast.ID{2, 15: 2}}}

// start sends the manifest of a VM with a disk for each image.
func (a *agent) start(vm holdfast.VMInfo, images [][]byte) *agent {
	a.t.Helper()
	a.m = holdfast.Manifest{ID: a.began.Set, VM: vm, Kind: holdfast.Full, Consistency: holdfast.CrashConsistent, Created: time.Unix(1, 0).UTC(),
		Attachments: []holdfast.Attachment{{Name: "vm.json", Data: []byte("{}")}}}
	if a.began.Parent != nil {
		a.m.Kind, a.m.Parent = holdfast.Incremental, a.began.Parent.ID
	}
	for i, img := range images {
		a.m.Disks = append(a.m.Disks, holdfast.Disk{ID: diskIDs[i], Name: "d.vhdx", Size: int64(len(img)), Inherit: a.m.Kind == holdfast.Incremental})
	}
	a.send(wire.TypeStart, 0, a.m)
	return a
}

const block = 64 << 10

// disk writes the blocks of an image that differ from old.
func (a *agent) disk(channel uint16, img, old []byte) {
	a.t.Helper()
	var refs []holdfast.Ref
	var ask wire.Ask
	for off := 0; off < len(img); off += block {
		p := img[off : off+block]
		if old != nil && bytes.Equal(p, old[off:off+block]) {
			continue
		}
		r := holdfast.Ref{Extent: holdfast.Extent{Off: int64(off), Len: block}}
		if !chunk.IsZero(p) {
			r.Digest = a.hash.Sum(p)
			ask.Digests = append(ask.Digests, r.Digest)
		}
		refs = append(refs, r)
	}
	if len(ask.Digests) > 0 {
		a.send(wire.TypeAsk, channel, ask)
		have := a.recv(wire.TypeHave)
		missing := have.Body.(wire.Have).Missing
		enc, b := chunk.NewEncoder(chunk.LevelFast), chunk.NewBuilder()
		flush := func() {
			if n, _ := b.Len(); n > 0 {
				g := b.Encode(enc, nil)
				a.send(wire.TypePut, channel, &g)
				a.puts += n
				b.Reset()
			}
		}
		i := 0
		for _, r := range refs {
			if r.Digest.IsZero() {
				continue
			}
			if missing[i] {
				if !b.Fits(block) {
					flush()
				}
				b.Add(r.Digest, img[r.Off:r.End()])
			}
			i++
		}
		flush()
	}
	if len(refs) > 0 {
		a.send(wire.TypePlace, channel, wire.Place{Refs: refs})
	}
	a.send(wire.TypeDiskDone, channel, nil)
}

func (a *agent) commit() holdfast.Manifest {
	a.t.Helper()
	a.send(wire.TypeCommit, 0, a.m)
	m := a.recv(wire.TypeCommitted).Body.(wire.Committed).Manifest
	a.send(wire.TypeTracking, 0, wire.Tracking{Set: m.ID, Tokens: map[holdfast.DiskID]string{diskIDs[0]: "token of " + m.ID.String()}})
	a.recv(wire.TypeTracked)
	return m
}

func (a *agent) close() {
	a.t.Helper()
	if err := a.link.Close(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
}

// backup does a whole session.
func (h *house) backup(dial wire.DialFunc, images, old [][]byte) (holdfast.Manifest, *agent) {
	h.t.Helper()
	a := h.agent(dial).begin().start(h.vm, images)
	for i, img := range images {
		var before []byte
		if a.began.Parent != nil {
			before = old[i]
		}
		a.disk(uint16(i), img, before)
	}
	m := a.commit()
	a.close()
	if err := <-h.ended; err != nil {
		h.t.Fatal(err)
	}
	return m, a
}

// restored reads a set back over the wire.
func (h *house) restored(id holdfast.SetID) [][]byte {
	h.t.Helper()
	h.mu.Lock()
	h.restore = id
	h.mu.Unlock()
	a := h.agent(nil)
	a.send(wire.TypeOpenSet, 0, wire.Begin{Task: theTask})
	o := a.recv(wire.TypeSetOpened).Body.(wire.SetOpened)
	var out [][]byte
	for i, d := range o.Manifest.Disks {
		a.send(wire.TypeWant, uint16(i), wire.Want{Extents: holdfast.Extents{{Off: 0, Len: d.Size}}})
		out = append(out, make([]byte, d.Size))
	}
	dec, hash := chunk.NewDecoder(), holdfast.Domain{Key: [32]byte(o.DomainKey)}.Hasher()
	for left := len(out); left > 0; {
		m, err := a.link.Recv(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		switch b := m.Body.(type) {
		case *holdfast.Parcel:
			place(h.t, dec, hash, b, out[m.Channel])
		case wire.Failure:
			h.t.Fatal(b.AsError())
		default:
			left--
		}
		m.Release()
	}
	a.send(wire.TypeDone, 0, nil)
	a.close()
	if err := <-h.ended; err != nil {
		h.t.Fatal(err)
	}
	return out
}

func place(t *testing.T, dec *chunk.Decoder, hash *holdfast.Hasher, p *holdfast.Parcel, to []byte) {
	t.Helper()
	plain, err := dec.Open(hash, &p.Group, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range p.Places {
		copy(to[x.Off:], plain[x.At:x.At+x.Len])
	}
}

// image makes a disk of n blocks, some of zeros, some alike.
func image(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	out := make([]byte, n*block)
	for i := range n {
		p := out[i*block : (i+1)*block]
		switch r.IntN(4) {
		case 0:
		case 1:
			for j := range p {
				p[j] = byte(i % 3 * j)
			}
		default:
			for j := range p {
				p[j] = byte(r.Uint32())
			}
		}
	}
	return out
}

func same(t *testing.T, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d disks, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("disk %d is not what was backed up", i)
		}
	}
}
