package dedup

import (
	"cmp"
	"context"
	"io"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// The folders of a store.
const (
	containersDir = "containers"
	setsDir       = "sets"
)

// CreateOptions describe a new pool on a store.
type CreateOptions struct {
	Kind     string // the driver's; "dedup" where empty
	Chunking holdfast.Chunking
	Ignore   []string // objects that may be there already: the driver's own
	Sealing  Sealing
}

// OpenOptions say how the engine runs on a store.
type OpenOptions struct {
	Kind    string // the driver's; "dedup" where empty
	Sealing Sealing
	// Index is the file system in whose folder "index" the rebuildable index store lives. Nil: a folder of Env.StateDir; where there is none
	// either, the pool works without, and reads every container's footer when it is opened.
	Index fsys.FS
	// Generation, if not 0, is one that the driver gave nobody else, such as a lease's: containers get their ids from it. At 0 the
	// engine keeps the count itself.
	Generation uint32
	// Patient makes Collect remove a container only when it was condemned by an earlier Collect and still is: what one listing of
	// the sets, or one late request of an owner before, got wrong is put right by the next.
	Patient bool
	// Shape is how reads are cut; the zero value is right for disks.
	Shape Shape
	// BeforeRecord is called for each set when its containers are sealed and its record is about to be written, with the names
	// of all other objects it needs, as Objects returns them. Its error fails the Commit. Nil: nothing is called, and the recipe is not walked.
	BeforeRecord func(ctx context.Context, objects []string) error

	// HeldUntil says until when the medium itself keeps an object from being removed; the zero time if it does not. For Explain. Nil: it never does.
	HeldUntil func(ctx context.Context, name string) (time.Time, error)
	// Parity keeps a Reed-Solomon side-car beside every container (pools/sidecar). Containers from before get theirs from a Verify of the
	// whole pool.
	Parity bool

	ownerFile bool // the count of generations is in the object OWNER, as it always was in folders
	// Closers are closed in reverse order when the pool is, also where OpenStore fails, but after what the engine itself closes. The store is not closed
	// unless it is among them.
	Closers []io.Closer
}

// A Shape is how the bytes of a Read are asked for. Zero fields stand for the defaults.
type Shape struct {
	Readers int   // requests under way for one Read
	Join    int64 // bytes of one request
	Gap     int64 // unwanted bytes between two groups that are read along rather than asked for apart
}

// CreateStore makes a pool on an empty store and leaves it closed. A store that has anything in it is refused (Exist), except what an
// interrupted CreateStore left and what the options name.
func CreateStore(ctx context.Context, env pools.Env, store blob.Store, id holdfast.PoolID, o CreateOptions) error {
	names, err := store.List(ctx, "")
	if err != nil {
		return err
	}
	for _, n := range names {
		if n != superblockCopy && !isKeys(n) && !slices.Contains(o.Ignore, n) {
			return holdfast.Errorf(holdfast.Exist, "create pool", "the place is not empty: it holds %q", n).Advise("choose an empty place")
		}
	}
	s, err := newSuperblock(kindOr(o.Kind), id, o.Chunking, clockOf(env).Now())
	if err != nil {
		return err
	}
	return writePool(ctx, env, store, s, o.Sealing)
}

// OpenStore opens the pool on a store. The caller has made sure that no other process has it open. It fails with Invalid if the pool there is
// another one; the zero id stands for whatever pool is there.
func OpenStore(ctx context.Context, env pools.Env, store blob.Store, id holdfast.PoolID, o OpenOptions) (*Pool, error) {
	p := &Pool{closers: o.Closers}
	s, err := readSuperblock(ctx, store, kindOr(o.Kind))
	if err == nil && !id.IsZero() && s.Pool != id {
		err = holdfast.Errorf(holdfast.Invalid, "open pool", "the pool here is %s, not %s", s.Pool, id)
	}
	if err != nil {
		_ = p.release() // the first error is the one that counts
		return nil, err
	}
	ring, err := unlock(ctx, store, s, o.Sealing)
	if err != nil {
		_ = p.release() // the first error is the one that counts
		return nil, err
	}
	var cars *sidecars
	if o.Parity {
		cars = newSidecars(store, env.Listener, s.Pool)
		store = cars.Store
	}
	p = newPool(env, store, s)
	p.cars = cars
	p.keys.start(ring)
	p.closers = o.Closers
	p.patient, p.before, p.ownerFile, p.given, p.heldUntil = o.Patient, o.BeforeRecord, o.ownerFile, o.Generation, o.HeldUntil
	p.shape = Shape{Readers: cmp.Or(o.Shape.Readers, readers), Join: cmp.Or(o.Shape.Join, joinBytes), Gap: cmp.Or(o.Shape.Gap, joinGap)}
	index, dir := o.Index, indexDir
	if index == nil && env.StateDir != "" {
		dir = indexDir + "-" + s.Pool.String() // whoever the folder was given to before
		if index, err = fsys.CreateOS(env.StateDir); err != nil {
			index = nil // works without
		}
	}
	p.st = openState(index, dir, p.listener)
	p.closers = append(p.closers, p.st)
	if err := p.load(ctx); err != nil {
		_ = p.release() // the first error is the one that counts
		return nil, err
	}
	return p, nil
}

func kindOr(kind string) string {
	if kind == "" {
		return poolKind
	}
	return kind
}

func clockOf(env pools.Env) clock.Clock {
	if env.Clock == nil {
		return clock.System
	}
	return env.Clock
}

// classify gives an error of the file system its Kind; nil stays nil and what has a kind keeps it.
func classify(op string, err error) error { return fsys.Classify(op, err) }

// PoolAt returns the id of the pool on a store; NotExist if there is none.
func PoolAt(ctx context.Context, store blob.Store, kind string) (holdfast.PoolID, error) {
	s, err := readSuperblock(ctx, store, kindOr(kind))
	if err != nil {
		return holdfast.PoolID{}, err
	}
	return s.Pool, nil
}
