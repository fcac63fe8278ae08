package dedup

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
	"github.com/holdfast-backup/holdfast/pools/parity"
)

// A pool over several folders: its objects are striped (pools/parity), its index store lies in Env.StateDir. In each folder are the
// shards, the stripe's labels, dirstore's staging and the lock.

const (
	// memberLock is the lock of a folder of a stripe. It is no object's name, so that the stripe does not take it for one.
	memberLock   = "LOCK"
	memberLabels = ".stripe"
)

// A StripedPool is an open pool over several folders.
type StripedPool struct {
	*Pool
	stripe *parity.Stripe

	mu    sync.Mutex // guards locks
	locks []io.Closer
}

var (
	_ pools.Pool          = (*StripedPool)(nil)
	_ pools.Verifier      = (*StripedPool)(nil)
	_ pools.PathRebuilder = (*StripedPool)(nil)
)

// striped says whether a configuration is of a pool over several folders, and checks it.
func (c Config) striped() (bool, error) {
	const op = "read pool config"
	k, m, err := ParseStripe(c.Stripe)
	switch {
	case err != nil:
		return false, err
	case k == 0 && len(c.Paths) == 0 && c.Path == "":
		return false, holdfast.Errorf(holdfast.Invalid, op, "no path").Advise("say in which folder the pool shall be: \"path\"")
	case k == 0 && len(c.Paths) == 0:
		return false, nil
	case c.Path != "" || len(c.Paths) != k+m:
		return false, holdfast.Errorf(holdfast.Invalid, op, "stripe %q with %d paths", c.Stripe, len(c.Paths)).Advise("name as many paths as the stripe has shards, as 6 for 4+2")
	}
	for i, p := range c.Paths {
		if p == "" || slices.Contains(c.Paths[:i], p) {
			return false, holdfast.Errorf(holdfast.Invalid, op, "path %q is empty or named twice", p)
		}
	}
	return true, nil
}

// createStriped makes a pool over the folders of c.
func createStriped(ctx context.Context, env pools.Env, id holdfast.PoolID, c Config, chunking holdfast.Chunking, sealing Sealing) (err error) {
	media := make([]fsys.FS, len(c.Paths))
	for i, path := range c.Paths {
		if media[i], err = fsys.CreateOS(path); err != nil {
			return classify("create pool", err)
		}
	}
	return CreateStripedOn(ctx, env, media, c.Paths, c.Stripe, id, chunking, sealing)
}

// CreateStripedOn makes a pool over empty file systems and leaves it closed. A place that has anything in it is refused (Exist), except what an
// interrupted CreateStripedOn left.
func CreateStripedOn(ctx context.Context, env pools.Env, media []fsys.FS, names []string, stripe string, id holdfast.PoolID, chunking holdfast.Chunking, sealing Sealing) (err error) {
	k, m, err := ParseStripe(stripe)
	if err != nil {
		return err
	}
	var closers []io.Closer
	defer func() {
		for _, c := range closers {
			err = errors.Join(err, c.Close())
		}
	}()
	stores := make([]blob.Store, len(media))
	for i, f := range media {
		if err := vacant(f, names[i]); err != nil {
			return err
		}
		lock, err := f.Lock(memberLock)
		if err != nil {
			return classify("create pool", err)
		}
		closers = append(closers, lock)
		for _, left := range leftovers {
			if err := pools.RemoveTree(f, left); err != nil {
				return err
			}
		}
		if stores[i], err = dirstore.Open(f, dirstore.Options{}); err != nil {
			return err
		}
	}
	s, err := parity.Create(ctx, stores, k, m, parity.Options{Names: names, Listener: env.Listener})
	if err != nil {
		return err
	}
	closers = append(closers, s)
	return CreateStore(ctx, env, s, id, CreateOptions{Chunking: chunking, Sealing: sealing})
}

// leftovers are what an interrupted CreateStripedOn may have left: a stripe without a superblock is of no worth.
var leftovers = []string{memberLabels, superblockCopy, keysDir}

// vacant refuses a folder with anything in it that is not ours to remove.
func vacant(f fsys.FS, name string) error {
	names, err := f.List(".")
	if err != nil {
		return classify("create pool", err)
	}
	for _, n := range names {
		if !slices.Contains(leftovers, n) && n != memberLock && n != storeStaging && n != "lost+found" {
			return holdfast.Errorf(holdfast.Exist, "create pool", "%s is not empty: it holds %q", name, n).Advise("choose an empty folder")
		}
	}
	return nil
}

// openStriped opens the pool over the folders of c. Folders that are not there are lost members of the stripe.
func openStriped(ctx context.Context, env pools.Env, id holdfast.PoolID, c Config, sealing Sealing) (*StripedPool, error) {
	return OpenStripedOn(ctx, env, openMedia(c.Paths), c.Paths, id, sealing)
}

// openMedia opens folders; nil stands for what is not there.
func openMedia(paths []string) []fsys.FS {
	media := make([]fsys.FS, len(paths))
	for i, path := range paths {
		if f, err := fsys.NewOS(path); err == nil {
			media[i] = f
		}
	}
	return media
}

// labelled reports whether a file system holds a member of a stripe: a folder whose disk is not mounted does not.
func labelled(f fsys.FS) bool {
	if f == nil {
		return false
	}
	names, err := f.List(memberLabels)
	return err == nil && len(names) > 0
}

// OpenStripedOn opens the pool over file systems; nil stands for one that is lost. The stripe tells the listener of those that are missing.
func OpenStripedOn(ctx context.Context, env pools.Env, media []fsys.FS, names []string, id holdfast.PoolID, sealing Sealing) (*StripedPool, error) {
	p := &StripedPool{}
	stores := make([]blob.Store, len(media))
	var err error
	for i, f := range media {
		if !labelled(f) {
			continue
		}
		if stores[i], err = p.member(f); err != nil {
			if errors.Is(err, holdfast.Busy) {
				return nil, errors.Join(err, p.unlock())
			}
			stores[i], err = nil, nil // a disk that fails is lost
		}
	}
	if p.stripe, err = parity.Open(ctx, stores, parity.Options{Names: names, Listener: env.Listener}); err != nil {
		return nil, errors.Join(err, p.unlock())
	}
	if p.Pool, err = OpenStore(ctx, env, p.stripe, id, OpenOptions{Sealing: sealing, Closers: []io.Closer{closer(p.unlock), p.stripe}}); err != nil {
		return nil, err // OpenStore has closed the rest
	}
	return p, nil
}

// closer makes a function an io.Closer.
type closer func() error

func (c closer) Close() error { return c() }

// member locks a folder and opens its store.
func (p *StripedPool) member(f fsys.FS) (blob.Store, error) {
	lock, err := f.Lock(memberLock)
	if err != nil {
		return nil, classify("open pool", err)
	}
	p.mu.Lock()
	p.locks = append(p.locks, lock)
	p.mu.Unlock()
	s, err := dirstore.Open(f, dirstore.Options{})
	if err != nil {
		return nil, err // not s: a nil *Store is not a nil blob.Store
	}
	return s, nil
}

func (p *StripedPool) unlock() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, l := range p.locks {
		errs = append(errs, l.Close())
	}
	p.locks = nil
	return errors.Join(errs...)
}

// Members returns the paths and whether each is there and whole.
func (p *StripedPool) Members() (paths []string, whole []bool) { return p.stripe.Members() }

// Verify implements pools.Verifier. After what every pool verifies it reads all shards, parity too, and heals what is bad: only what could not be
// healed is damage. A Verify of chosen sets leaves the shards to reading.
func (p *StripedPool) Verify(ctx context.Context, o pools.VerifyOptions) (pools.VerifyReport, error) {
	rep, err := p.Pool.Verify(ctx, o)
	if err != nil || len(o.Sets) > 0 {
		return rep, err
	}
	whole := len(rep.Damaged) == 0 // else the sets that are hit are named already, and the listener heard of each object
	scrub, err := p.stripe.Scrub(ctx, nil)
	for _, n := range scrub.Unhealed {
		if whole {
			rep.Damaged = append(rep.Damaged, pools.Damage{Where: n, Text: "shards are damaged or missing and could not be written again"})
		}
	}
	return rep, err
}

// RebuildPath implements pools.PathRebuilder: the folder to gets its shard of every object in the stead of from, while the pool is in use.
func (p *StripedPool) RebuildPath(ctx context.Context, from, to string, progress func(done, all int64)) error {
	f, err := fsys.CreateOS(to)
	if err != nil {
		return classify("rebuild path", err)
	}
	return p.RebuildOn(ctx, f, from, to, progress)
}

// RebuildOn is RebuildPath onto a file system.
func (p *StripedPool) RebuildOn(ctx context.Context, f fsys.FS, from, to string, progress func(done, all int64)) error {
	const op = "rebuild path"
	names, whole := p.stripe.Members()
	place := slices.Index(names, from)
	if at := slices.Index(names, to); at >= 0 {
		if place >= 0 && place != at {
			return holdfast.Errorf(holdfast.Exist, op, "the path %s is in the stripe already", to)
		}
		place = at
	}
	if place < 0 {
		return holdfast.Errorf(holdfast.NotExist, op, "the pool has no path %s", from)
	}
	steps := func(done, of int) {
		if progress != nil {
			progress(int64(done), int64(of))
		}
	}
	if names[place] == to {
		if whole[place] {
			return nil
		}
		// It was cut off, or the disk came back: fill up what is there, if it is one of the stripe's open members.
		if err := p.stripe.Rebuild(ctx, place, nil, to, steps); !errors.Is(err, holdfast.Invalid) {
			return err
		}
	}
	if !labelled(f) {
		if err := vacant(f, to); err != nil {
			return err
		}
	}
	s, err := p.member(f)
	if err != nil {
		return err
	}
	return p.stripe.Rebuild(ctx, place, s, to, steps)
}

// identifyStriped reads the id of the pool over the folders of c.
func identifyStriped(ctx context.Context, c Config) (holdfast.PoolID, error) {
	media := openMedia(c.Paths)
	stores := make([]blob.Store, len(media))
	for i, f := range media {
		if !labelled(f) {
			continue
		}
		s, err := dirstore.Open(f, dirstore.Options{ReadOnly: true})
		if err == nil {
			stores[i] = s
		}
	}
	s, err := parity.Open(ctx, stores, parity.Options{Names: c.Paths, ReadOnly: true})
	if err != nil {
		return holdfast.PoolID{}, err
	}
	id, err := PoolAt(ctx, s, poolKind)
	return id, errors.Join(err, s.Close())
}

// destroyStriped removes the pool from the folders that are there, as destroy does.
func destroyStriped(ctx context.Context, id holdfast.PoolID, c Config) (err error) {
	have, err := identifyStriped(ctx, c)
	if err != nil {
		return err
	}
	if have != id {
		return holdfast.Errorf(holdfast.Invalid, "destroy pool", "the pool here is %s, not %s", have, id)
	}
	p := &StripedPool{}
	media := openMedia(c.Paths)
	for _, f := range media {
		if !labelled(f) {
			continue
		}
		if _, err := p.member(f); err != nil {
			return errors.Join(err, p.unlock())
		}
	}
	// Folder by folder of the stripe, so that the labels and the superblock last until the end everywhere.
	for _, name := range []string{keysDir, setsDir, containersDir, generationsDir, storeStaging, superblockName, superblockCopy, memberLabels, memberLock} {
		for _, f := range media {
			if f == nil || !labelled(f) && name != memberLock {
				continue
			}
			if name == memberLock {
				if err := p.unlock(); err != nil {
					return classify("destroy pool", err)
				}
			}
			if err := pools.RemoveTree(f, name); err != nil {
				return errors.Join(err, p.unlock())
			}
		}
	}
	for _, path := range c.Paths {
		if err := dropFolder(path); err != nil {
			return err
		}
	}
	return nil
}

// scratchStriped returns a place for a scratch pool beside every folder.
func scratchStriped(c Config, name string) (json.RawMessage, error) {
	c.Paths = slices.Clone(c.Paths)
	for i := range c.Paths {
		c.Paths[i] = pools.ScratchFolder(c.Paths[i], name)
	}
	return encodeConfig(c)
}

func replaceStriped(c Config, from, to string) (json.RawMessage, error) {
	i := slices.Index(c.Paths, from)
	if i < 0 {
		return nil, holdfast.Errorf(holdfast.NotExist, "replace path", "the pool has no path %s", from).Advise("'holdfast pool show NAME' says where it is")
	}
	c.Paths = slices.Clone(c.Paths)
	c.Paths[i] = to
	return encodeConfig(c)
}
