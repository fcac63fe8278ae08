package ingest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/dedup"
)

// A sim is an appliance without network: one catalog and one dedup pool on the same file system, with a model of what was
// acknowledged. One random source decides everything, so a seed is a history.
type sim struct {
	fs      fsys.FS
	rng     *rand.Rand
	poolID  holdfast.PoolID
	catDir  string
	cat     *catalog.Catalog
	pool    *dedup.Pool
	vms     []simVM
	step    int
	steady  bool   // no backup is given up in the middle, none repeats old content
	content uint64 // counts contents, so that no two are alike unless they are meant to be

	mu sync.Mutex // guards the model; a power cut is looked at in whatever goroutine syncs
	simModel
}

// simModel is what the world outside knows.
type simModel struct {
	sets       map[holdfast.SetID]*simSet // acknowledged and not deleted
	coming     *simSet                    // being committed: may be there
	going      holdfast.SetID             // being deleted: may be gone
	gone       []holdfast.SetID           // deletion acknowledged
	rebuilding bool                       // the catalog is being made anew: it may list less than the pool has
	phase      string                     // what is being done
}

type simVM struct {
	id    holdfast.VMID
	disk  holdfast.DiskID
	image []byte
	last  holdfast.SetID // newest set; zero: none
}

type simSet struct {
	id    holdfast.SetID
	vm    int
	image []byte
}

const (
	simBlock   = 4096
	simBlocks  = 24
	simVMs     = 3
	simMaxSets = 7
)

// newSim makes pool and catalog.
func newSim(fs fsys.FS, seed uint64) (*sim, error) {
	s := &sim{fs: fs, rng: rand.New(rand.NewPCG(seed, 0x73696d)), catDir: "catalog-0", simModel: simModel{sets: map[holdfast.SetID]*simSet{}}}
	s.poolID.ID = s.newID()
	for range simVMs {
		vm := simVM{id: holdfast.VMID{ID: s.newID()}, disk: holdfast.DiskID{ID: s.newID()}, image: make([]byte, simBlocks*simBlock)}
		s.vms = append(s.vms, vm)
	}
	c, err := holdfast.ParseChunking("fixed-64K")
	if err != nil {
		return nil, err
	}
	if err := fs.MkdirAll("pool"); err != nil {
		return nil, err
	}
	if err := dedup.CreateOn(context.Background(), pools.Env{}, fsys.Sub(fs, "pool"), s.poolID, c); err != nil {
		return nil, err
	}
	return s, s.open(context.Background())
}

// open opens catalog and pool and sorts out what is left, as the daemon does. What failed to open is nil.
func (s *sim) open(ctx context.Context) error {
	var err error
	if s.cat, err = catalog.Open(s.fs, s.catDir); err != nil {
		return fmt.Errorf("open catalog: %w", err)
	}
	p, err := dedup.OpenOn(ctx, pools.Env{}, fsys.Sub(s.fs, "pool"), s.poolID)
	if err != nil {
		_ = s.cat.Close()
		s.cat = nil
		return fmt.Errorf("open pool: %w", err)
	}
	s.pool = p
	_, err = Recover(ctx, s.cat, map[holdfast.PoolID]pools.Pool{s.poolID: p})
	if err != nil {
		err = fmt.Errorf("recover: %w", err)
	}
	return err
}

func (s *sim) close() {
	if s.pool != nil {
		_ = s.pool.Close() // what a failed medium says to a close is no news
	}
	if s.cat != nil {
		_ = s.cat.Close()
	}
	s.pool, s.cat = nil, nil
}

// on returns a sim of the same model on an image of the file system.
func (s *sim) on(fs fsys.FS, now simModel, rng *rand.Rand) *sim {
	return &sim{fs: fs, rng: rng, poolID: s.poolID, catDir: s.catDir, vms: slices.Clone(s.vms), content: s.content + 1<<32, simModel: now}
}

func (s *sim) newID() holdfast.ID {
	var id holdfast.ID
	for i := range id {
		id[i] = byte(s.rng.Uint32())
	}
	return id
}

func (s *sim) model(change func(*simModel)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.simModel)
}

// snapshot returns the model as it is.
func (s *sim) snapshot() simModel {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.simModel
	m.sets = make(map[holdfast.SetID]*simSet, len(s.sets))
	for id, x := range s.sets {
		m.sets[id] = x
	}
	m.gone = slices.Clone(s.gone)
	return m
}

// fill writes content that no one has seen, or content seen before.
func (s *sim) fill(p []byte) {
	seed := s.content
	if s.rng.IntN(4) == 0 && seed > 0 && !s.steady {
		seed = s.rng.Uint64N(seed)
	} else {
		s.content++
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}

// backup backs one VM up and says whether that was acknowledged.
func (s *sim) backup(ctx context.Context) error {
	k := s.rng.IntN(len(s.vms))
	vm := &s.vms[k]
	old := bytes.Clone(vm.image)
	changed := map[int]bool{}
	for range 1 + s.rng.IntN(5) {
		b := s.rng.IntN(simBlocks)
		if changed[b] = true; s.rng.IntN(6) == 0 {
			clear(vm.image[b*simBlock : (b+1)*simBlock])
			continue
		}
		s.fill(vm.image[b*simBlock : (b+1)*simBlock])
	}
	parent := vm.last
	if _, ok := s.sets[parent]; !ok || s.rng.IntN(8) == 0 {
		parent = holdfast.SetID{}
	}
	if parent.IsZero() {
		for b := range simBlocks {
			changed[b] = true
		}
	} else if !bytes.Equal(s.sets[parent].image, old) { // the last backup was lost: everything that differs from the parent changed
		for b := range simBlocks {
			if !bytes.Equal(s.sets[parent].image[b*simBlock:(b+1)*simBlock], vm.image[b*simBlock:(b+1)*simBlock]) {
				changed[b] = true
			}
		}
	}
	x := &simSet{id: holdfast.SetID{ID: s.newID()}, vm: k, image: bytes.Clone(vm.image)}
	m := holdfast.Manifest{ID: x.id, Kind: holdfast.Full, Parent: parent, VM: holdfast.VMInfo{ID: vm.id, Name: fmt.Sprintf("vm%d", k)},
		Disks: []holdfast.Disk{{ID: vm.disk, Name: "disk.vhdx", Size: int64(len(vm.image)), Inherit: !parent.IsZero()}}}
	if !parent.IsZero() {
		m.Kind = holdfast.Incremental
	}
	session, err := s.pool.Begin(ctx, m)
	if err != nil {
		return err
	}
	if err := s.write(ctx, session, vm, changed); err != nil {
		_ = session.Abort(ctx)
		return err
	}
	if s.rng.IntN(10) == 0 && !s.steady {
		return session.Abort(ctx)
	}
	s.model(func(m *simModel) { m.coming = x })
	_, err = commitSet(ctx, s.cat, s.poolID, session, m)
	s.model(func(m *simModel) {
		if err == nil { // the agent hears of it
			m.sets[x.id], m.coming = x, nil
		}
	})
	if err != nil {
		_ = session.Abort(ctx) // as the server does
		return err
	}
	vm.last = x.id
	return nil
}

// write puts the changed blocks.
func (s *sim) write(ctx context.Context, session pools.Session, vm *simVM, changed map[int]bool) error {
	w, err := session.Disk(ctx, vm.disk)
	if err != nil {
		return err
	}
	hash, enc := s.pool.Traits().Domain.Hasher(), chunk.NewEncoder(chunk.LevelFast)
	var refs []holdfast.Ref
	var ds []holdfast.Digest
	var at []int64
	for b := range simBlocks {
		if !changed[b] {
			continue
		}
		p := vm.image[b*simBlock : (b+1)*simBlock]
		r := holdfast.Ref{Extent: holdfast.Extent{Off: int64(b) * simBlock, Len: simBlock}}
		if !chunk.IsZero(p) {
			r.Digest = hash.Sum(p)
			ds, at = append(ds, r.Digest), append(at, r.Off)
		}
		refs = append(refs, r)
	}
	missing := make([]bool, len(ds))
	if err := w.Missing(ctx, ds, missing); err != nil {
		return err
	}
	var g holdfast.Group
	var plain []byte
	flush := func() error {
		if len(g.Chunks) == 0 {
			return nil
		}
		g.Codec, g.Payload = enc.Encode(make([]byte, 0, chunk.MaxEncoded), plain)
		err := w.Put(ctx, &g)
		g, plain = holdfast.Group{}, nil
		return err
	}
	for i, d := range ds {
		if !missing[i] {
			continue
		}
		g.Chunks = append(g.Chunks, holdfast.Piece{Digest: d, Len: simBlock})
		if plain = append(plain, vm.image[at[i]:at[i]+simBlock]...); len(g.Chunks) == 3 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if err := w.Place(ctx, refs); err != nil {
		return err
	}
	return w.Close(ctx)
}

// oneOf returns one of the acknowledged sets.
func (s *sim) oneOf() *simSet {
	all := make([]*simSet, 0, len(s.sets))
	for _, x := range s.sets {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b *simSet) int { return bytes.Compare(a.id.ID[:], b.id.ID[:]) })
	return all[s.rng.IntN(len(all))]
}

func (s *sim) delete(ctx context.Context) error {
	x := s.oneOf()
	s.model(func(m *simModel) { m.going = x.id })
	err := DeleteSet(ctx, s.cat, s.poolID, s.pool, x.id)
	s.model(func(m *simModel) {
		if err == nil {
			delete(m.sets, x.id)
			m.gone, m.going = append(m.gone, x.id), holdfast.SetID{}
		}
	})
	return err
}

func (s *sim) collect(ctx context.Context) error {
	_, err := s.pool.Collect(ctx, pools.CollectOptions{})
	return err
}

// rebuild loses the catalog and makes a new one from the pool.
func (s *sim) rebuild(ctx context.Context) error {
	s.model(func(m *simModel) { m.rebuilding = true })
	if err := s.cat.Close(); err != nil {
		return err
	}
	s.cat = nil
	s.catDir = fmt.Sprintf("catalog-%d", s.step+1)
	cat, err := catalog.Open(s.fs, s.catDir)
	if err != nil {
		return err
	}
	s.cat = cat
	if r, err := Rebuild(ctx, s.cat, s.poolID, s.pool); err != nil {
		return err
	} else if r.Damaged != nil {
		return r.Damaged
	}
	s.model(func(m *simModel) { m.rebuilding = false })
	return nil
}

// reindex loses the pool's index and lets the pool make it anew.
func (s *sim) reindex(ctx context.Context) error {
	if err := s.pool.Close(); err != nil {
		return err
	}
	s.pool = nil
	if err := removeTree(s.fs, "pool/index"); err != nil {
		return err
	}
	p, err := dedup.OpenOn(ctx, pools.Env{}, fsys.Sub(s.fs, "pool"), s.poolID)
	if err != nil {
		return err
	}
	s.pool = p
	return nil
}

func removeTree(f fsys.FS, dir string) error {
	names, err := f.List(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		n = path.Join(dir, n)
		st, err := f.Stat(n)
		if err != nil {
			return err
		}
		if st.IsDir() {
			err = removeTree(f, n)
		} else {
			err = f.Remove(n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reopen closes everything as a daemon does that is told to stop, and starts again.
func (s *sim) reopen(ctx context.Context) error {
	s.close()
	return s.open(ctx)
}

// The operations of a history and their weights.
var simOps = []struct {
	name   string
	weight int
	do     func(*sim, context.Context) error
}{
	{"backup", 10, (*sim).backup},
	{"delete", 4, (*sim).delete},
	{"collect", 4, (*sim).collect},
	{"rebuild", 1, (*sim).rebuild},
	{"reindex", 1, (*sim).reindex},
	{"reopen", 1, (*sim).reopen},
}

// choose chooses the next operation.
func (s *sim) choose() (name string, do func(*sim, context.Context) error) {
	sum := 0
	for _, o := range simOps {
		sum += o.weight
	}
	k, i := s.rng.IntN(sum), 0
	for k >= simOps[i].weight {
		k -= simOps[i].weight
		i++
	}
	switch live := len(s.sets); {
	case live == 0 || live == 1 && simOps[i].name == "delete":
		i = 0
	case live >= simMaxSets && i == 0:
		i = 1
	}
	return simOps[i].name, simOps[i].do
}

// settle brings the model up to date with what became of the operation under way, and fails where that is more than it may.
// It also checks every difference of catalog and pool. It is called after open.
func (s *sim) settle(ctx context.Context) error {
	if s.rebuilding {
		if r, err := Rebuild(ctx, s.cat, s.poolID, s.pool); err != nil || r.Damaged != nil {
			return fmt.Errorf("rebuild: %v %w", r.Damaged, err)
		}
		s.rebuilding = false
	}
	there := map[holdfast.SetID]bool{}
	for m, err := range s.pool.Sets(ctx) {
		if err != nil {
			return fmt.Errorf("list sets of the pool: %w", err)
		}
		there[m.ID] = true
	}
	sets, err := catalog.ListSets(s.cat)
	if err != nil {
		return fmt.Errorf("list sets of the catalog: %w", err)
	}
	listed := map[holdfast.SetID]bool{}
	for _, x := range sets {
		if listed[x.Manifest.ID] = true; !there[x.Manifest.ID] {
			return fmt.Errorf("the catalog lists set %s (%s), which the pool does not have", x.Manifest.ID, x.State)
		}
	}
	for id := range there {
		if !listed[id] {
			return fmt.Errorf("the pool has set %s, which the catalog does not list", id)
		}
	}
	if x := s.coming; x != nil && there[x.id] {
		s.sets[x.id] = x
	}
	if _, ok := s.sets[s.going]; ok && !there[s.going] {
		delete(s.sets, s.going)
	}
	s.coming, s.going = nil, holdfast.SetID{}
	for id := range s.sets {
		if !there[id] {
			return fmt.Errorf("acknowledged set %s is gone", id)
		}
		delete(there, id)
	}
	for id := range there {
		return fmt.Errorf("set %s is there and was never begun, or its deletion was acknowledged", id)
	}
	return s.cat.View(func(tx *catalog.Tx) error {
		for i, err := range tx.Intents() {
			return fmt.Errorf("intent of set %s is left: %v", i.Set, err)
		}
		for x, err := range tx.Tombstones() {
			return fmt.Errorf("tombstone of set %s is left: %v", x.Set, err)
		}
		return nil
	})
}

// explained checks, before Recover, that whatever differs between catalog and pool has an intent or a tombstone.
func (s *sim) explained(ctx context.Context) error {
	there := map[holdfast.SetID]bool{}
	for m, err := range s.pool.Sets(ctx) {
		if err != nil {
			return err
		}
		there[m.ID] = true
	}
	return s.cat.View(func(tx *catalog.Tx) error {
		why := map[holdfast.SetID]bool{}
		for i, err := range tx.Intents() {
			if err != nil {
				return err
			}
			why[i.Set] = true
		}
		for x, err := range tx.Tombstones() {
			if err != nil {
				return err
			}
			why[x.Set] = true
		}
		for x, err := range tx.Sets(catalog.SetFilter{}) {
			if err != nil {
				return err
			}
			if id := x.Manifest.ID; !there[id] && !why[id] {
				return fmt.Errorf("set %s is listed, not in the pool, and has no tombstone", id)
			}
			delete(there, x.Manifest.ID)
		}
		for id := range there {
			if !why[id] {
				return fmt.Errorf("set %s is in the pool, not listed, and has no intent", id)
			}
		}
		return nil
	})
}

// restoreAll restores every acknowledged set and compares each byte.
func (s *sim) restoreAll(ctx context.Context) error {
	for _, x := range s.sets {
		if err := s.restore(ctx, x); err != nil {
			return fmt.Errorf("set %s of VM %d: %w", x.id, x.vm, err)
		}
	}
	return nil
}

// errWrong is the one thing that must never happen.
var errWrong = fmt.Errorf("WRONG BYTES were restored")

func (s *sim) restore(ctx context.Context, x *simSet) error {
	set, err := s.pool.Open(ctx, x.id)
	if err != nil {
		return err
	}
	defer set.Close()
	got := make([]byte, len(x.image))
	dec, hash := chunk.NewDecoder(), s.pool.Traits().Domain.Hasher()
	for p, err := range set.Read(ctx, s.vms[x.vm].disk, holdfast.Extents{{Off: 0, Len: int64(len(x.image))}}) {
		if err != nil {
			return err
		}
		plain, err := dec.Open(hash, &p.Group, nil, nil)
		if err != nil {
			return err
		}
		for _, pl := range p.Places {
			copy(got[pl.Off:], plain[pl.At:pl.At+pl.Len])
		}
		p.Release()
	}
	if !bytes.Equal(got, x.image) {
		return errWrong
	}
	return nil
}
