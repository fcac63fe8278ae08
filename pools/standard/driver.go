package standard

import (
	"context"
	"encoding/json"
	"io"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

// lockName is the file whose lock keeps other processes out of a path. '~' is not a letter of object names.
const lockName = "~lock"

// Config is the driver's configuration.
type Config struct {
	Paths    []PathConfig `json:"paths"`
	Chunking string       `json:"chunking,omitempty"` // as holdfast.ParseChunking reads it; only Create looks at it
	Forget   []int        `json:"forget,omitempty"`   // numbers of paths that are lost for good: nothing waits for them any more
}

// PathConfig is one of the folders of a pool.
type PathConfig struct {
	Path  string `json:"path"`            // absolute
	Quota int64  `json:"quota,omitempty"` // bytes that the pool may take there; 0: no bound
}

// Driver returns the driver of standard pools in folders.
func Driver() pools.Driver {
	return pools.Driver{
		Kind:        Kind,
		Identify:    identify,
		Destroy:     destroy,
		Scratch:     scratch,
		ReplacePath: replacePath,
		AddPath:     addPath,
		Create: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) error {
			c, err := readConfig(config)
			if err != nil {
				return err
			}
			chunking, err := holdfast.ParseChunking(c.Chunking)
			if err != nil {
				return err
			}
			paths := make([]Path, len(c.Paths))
			for i, pc := range c.Paths {
				if paths[i], err = createFolder(pc); err != nil {
					return err
				}
			}
			return CreateOn(ctx, env, paths, id, chunking)
		},
		Open: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (pools.Pool, error) {
			c, err := readConfig(config)
			if err != nil {
				return nil, err
			}
			paths, locks, err := openFolders(ctx, c)
			if err != nil {
				return nil, err
			}
			p, err := OpenOn(ctx, env, paths, id, c.Forget...)
			if err != nil {
				closeAll(locks)
				return nil, err // not p: a nil *Pool is not a nil pools.Pool
			}
			p.closers = append(p.closers, locks...)
			return p, nil
		},
	}
}

// AddPath makes a folder one more path of the pool that config names; config does not name the folder yet, and does when the pool is
// opened the next time. The pool must be closed, and all its paths must be there.
func AddPath(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage, added PathConfig) error {
	c, err := readConfig(config)
	if err != nil {
		return err
	}
	paths, locks, err := openFolders(ctx, c)
	if err != nil {
		return err
	}
	defer closeAll(locks)
	pa, err := createFolder(added)
	if err != nil {
		return err
	}
	return AddOn(ctx, env, paths, id, pa, c.Forget...)
}

func closeAll(cs []io.Closer) {
	for _, c := range cs {
		_ = c.Close() // locks go with the process at the latest
	}
}

func readConfig(raw json.RawMessage) (Config, error) {
	const op = "read pool config"
	var c Config
	if err := pools.DecodeConfig(raw, &c); err != nil {
		return c, err
	}
	if len(c.Paths) == 0 || len(c.Paths) > maxPaths {
		return c, holdfast.Errorf(holdfast.Invalid, op, "%d paths", len(c.Paths)).Advise("say in which folders the pool shall be: \"paths\": [{\"path\": …}]")
	}
	for i, pc := range c.Paths {
		twice := slices.ContainsFunc(c.Paths[:i], func(o PathConfig) bool { return o.Path == pc.Path })
		if pc.Path == "" || pc.Quota < 0 || twice {
			return c, holdfast.Errorf(holdfast.Invalid, op, "path %q with a quota of %d bytes is empty, there twice, or below nothing", pc.Path, pc.Quota)
		}
	}
	return c, nil
}

func createFolder(pc PathConfig) (Path, error) {
	f, err := fsys.CreateOS(pc.Path)
	if err != nil {
		return Path{}, err
	}
	s, err := dirstore.Open(f, dirstore.Options{})
	return Path{Label: pc.Path, Store: s, Quota: pc.Quota}, err
}

// openFolders opens and locks the folders. One that is not there, or that has no pool in it, is passed on as lost; one that
// another process has is Busy.
func openFolders(ctx context.Context, c Config) ([]Path, []io.Closer, error) {
	var locks []io.Closer
	paths := make([]Path, len(c.Paths))
	for i, pc := range c.Paths {
		paths[i] = Path{Label: pc.Path, Quota: pc.Quota}
		lock, s, err := openFolder(ctx, pc.Path)
		switch {
		case err == nil:
			locks = append(locks, lock)
			paths[i].Store = s
		case holdfast.KindOf(err) == holdfast.Busy, holdfast.KindOf(err) == holdfast.Cancelled:
			closeAll(locks)
			return nil, nil, err
		default:
			paths[i].Err = err
		}
	}
	return paths, locks, nil
}

func openFolder(ctx context.Context, dir string) (io.Closer, blob.Store, error) {
	f, err := fsys.NewOS(dir)
	if err != nil {
		return nil, nil, err
	}
	return openFS(ctx, f)
}

// openFS locks a file system that a path of a pool lies in, and returns its store.
func openFS(ctx context.Context, f fsys.FS) (io.Closer, blob.Store, error) {
	look, err := dirstore.Open(f, dirstore.Options{ReadOnly: true})
	if err != nil {
		return nil, nil, err
	}
	if _, err := readSuperblock(ctx, look); err != nil {
		return nil, nil, err // before a lock is made in a folder that is no pool
	}
	lock, err := f.Lock(lockName)
	if err != nil {
		return nil, nil, fsys.Classify("open pool", err)
	}
	s, err := dirstore.Open(f, dirstore.Options{})
	if err != nil {
		_ = lock.Close() // the first error is the one that counts
		return nil, nil, err
	}
	return lock, s, nil
}

// CreateOn makes a pool on empty stores and leaves it closed. A store that has anything in it is refused (Exist), except for what an
// interrupted CreateOn of the same pool left.
func CreateOn(ctx context.Context, env pools.Env, paths []Path, id holdfast.PoolID, chunking holdfast.Chunking) error {
	const op = "create pool"
	if len(paths) == 0 || len(paths) > maxPaths {
		return holdfast.Errorf(holdfast.Invalid, op, "%d paths", len(paths))
	}
	sb, err := newSuperblock(id, chunking, clockOf(env).Now())
	if err != nil {
		return err
	}
	made := 0
	for i, pa := range paths {
		old, done, err := vacant(ctx, pa, id)
		if err != nil {
			return err
		}
		if done {
			made++
		}
		if old == nil {
			continue
		}
		if old.Path != i+1 || old.Paths != len(paths) {
			return holdfast.Errorf(holdfast.Exist, op, "%s is path %d of %d of this pool already", pa.Label, old.Path, old.Paths)
		}
		sb = old // so that all paths get the same key
	}
	if made == len(paths) {
		return holdfast.Errorf(holdfast.Exist, op, "the pool is there already")
	}
	for i, pa := range paths {
		one := *sb
		one.Path, one.Paths = i+1, len(paths)
		if err := writeSuperblock(ctx, pa.Store, &one); err != nil {
			return err
		}
	}
	return alive(ctx, op)
}

// vacant refuses a path that holds anything but the pool's own record, which it returns, and says whether that is complete.
func vacant(ctx context.Context, pa Path, id holdfast.PoolID) (old *superblock, done bool, err error) {
	const op = "create pool"
	if pa.Store == nil {
		return nil, false, pa.Err
	}
	names, err := pa.Store.List(ctx, "")
	if err != nil {
		return nil, false, err
	}
	for _, n := range names {
		if n != poolName && n != poolCopy {
			return nil, false, holdfast.Errorf(holdfast.Exist, op, "%s is not empty: it holds %q", pa.Label, n).Advise("choose an empty folder")
		}
	}
	if len(names) == 0 {
		return nil, false, nil
	}
	old, err = readSuperblock(ctx, pa.Store)
	if err != nil || old.Pool != id {
		return nil, false, holdfast.Errorf(holdfast.Exist, op, "%s belongs to another pool", pa.Label).Advise("choose an empty folder")
	}
	return old, len(names) == 2, nil
}

// gather reads the paths' superblocks and puts the paths in order of their numbers. Lost paths get the numbers that are left.
func gather(ctx context.Context, paths []Path, id holdfast.PoolID, forget []int) (*superblock, []*poolPath, error) {
	const op = "open pool"
	var sb *superblock
	var lost []Path
	known := 0
	byNumber := map[int]*poolPath{}
	for _, pa := range paths {
		var s *superblock
		err := pa.Err
		if pa.Store != nil {
			s, err = readSuperblock(ctx, pa.Store)
		}
		if e := alive(ctx, op); e != nil {
			return nil, nil, e
		}
		if err != nil {
			pa.Err = err
			lost = append(lost, pa)
			continue
		}
		if s.Pool != id {
			return nil, nil, holdfast.Errorf(holdfast.Invalid, op, "%s belongs to pool %s, not %s", pa.Label, s.Pool, id)
		}
		if sb == nil {
			sb = s
		}
		if !sb.same(s) || byNumber[s.Path] != nil {
			return nil, nil, holdfast.Errorf(holdfast.Invalid, op, "%s is path %d of the pool, and so is another one, or it is a copy of another pool", pa.Label, s.Path)
		}
		byNumber[s.Path] = &poolPath{Path: pa, number: uint16(s.Path)}
		known = max(known, s.Paths)
	}
	if sb == nil {
		return nil, nil, lost[0].Err
	}
	out := make([]*poolPath, known+1)
	for n := 1; n <= known; n++ {
		pa := byNumber[n]
		if pa == nil && slices.Contains(forget, n) {
			continue
		}
		if pa == nil { // which of the lost ones this is nobody knows, but with one it is clear
			pa = &poolPath{number: uint16(n), lost: holdfast.Errorf(holdfast.Offline, op, "the configuration does not name it")}
			if len(lost) > 0 {
				pa.Path, pa.lost = lost[0], lost[0].Err
				lost = lost[1:]
			}
		}
		out[n] = pa
	}
	for _, pa := range lost { // more than are missing: an empty folder that is no path of the pool
		return nil, nil, holdfast.Errorf(holdfast.Invalid, op, "%s is not a path of the pool", pa.Label).Advise("add it to the pool first")
	}
	return sb, out, nil
}

// OpenOn opens the pool on its stores, in any order; the caller makes sure that nobody else has it open, and closes them after the
// pool. A path whose Store is nil, or that is not the pool's, is lost: sets on it are not there, all others are. The pool
// fails to open only if every path is lost (with the kind of the first one's error) or is another pool's (Invalid). forget names
// lost paths that nothing shall wait for any more.
func OpenOn(ctx context.Context, env pools.Env, paths []Path, id holdfast.PoolID, forget ...int) (*Pool, error) {
	if len(paths) == 0 {
		return nil, holdfast.Errorf(holdfast.Invalid, "open pool", "no path")
	}
	sb, all, err := gather(ctx, paths, id, forget)
	if err != nil {
		return nil, err
	}
	p := newPool(env, sb)
	p.paths = all
	if err := p.load(ctx); err != nil {
		return nil, err
	}
	p.sweep(ctx)
	return p, nil
}

// AddOn makes an empty store one more path of a closed pool, all of whose paths must be there.
func AddOn(ctx context.Context, env pools.Env, paths []Path, id holdfast.PoolID, added Path, forget ...int) error {
	const op = "add path"
	sb, all, err := gather(ctx, paths, id, forget)
	if err != nil {
		return err
	}
	for _, pa := range all {
		if pa != nil && pa.lost != nil {
			return pa.lostError(op)
		}
	}
	old, done, err := vacant(ctx, added, id)
	if err != nil {
		return err
	}
	one := *sb
	one.Path, one.Paths, one.Created = len(all), len(all), clockOf(env).Now().UTC()
	if old != nil && (done || old.Path != one.Path) {
		return holdfast.Errorf(holdfast.Exist, op, "%s is a path of the pool already", added.Label)
	}
	if old != nil {
		one = *old
	}
	return writeSuperblock(ctx, added.Store, &one)
}

func clockOf(env pools.Env) clock.Clock {
	if env.Clock == nil {
		return clock.System
	}
	return env.Clock
}
