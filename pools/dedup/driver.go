package dedup

import (
	"context"
	"encoding/json"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
)

// Config is the driver's configuration.
type Config struct {
	Path     string `json:"path"`               // the pool's folder, absolute
	Chunking string `json:"chunking,omitempty"` // as holdfast.ParseChunking reads it; only Create looks at it
}

// Driver returns the driver of dedup pools in folders.
func Driver() pools.Driver {
	return pools.Driver{
		Kind: poolKind,
		Create: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) error {
			c, err := readConfig(config)
			if err != nil {
				return err
			}
			chunking, err := holdfast.ParseChunking(c.Chunking)
			if err != nil {
				return err
			}
			fs, err := fsys.CreateOS(c.Path)
			if err != nil {
				return classify("create pool", err)
			}
			return CreateOn(ctx, env, fs, id, chunking)
		},
		Open: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (pools.Pool, error) {
			c, err := readConfig(config)
			if err != nil {
				return nil, err
			}
			fs, err := fsys.NewOS(c.Path)
			if err != nil {
				return nil, classify("open pool", err)
			}
			p, err := OpenOn(ctx, env, fs, id)
			if err != nil {
				return nil, err // not p: a nil *Pool is not a nil pools.Pool
			}
			return p, nil
		},
	}
}

func readConfig(raw json.RawMessage) (Config, error) {
	var c Config
	if err := pools.DecodeConfig(raw, &c); err != nil {
		return c, err
	}
	if c.Path == "" {
		return c, holdfast.Errorf(holdfast.Invalid, "read pool config", "no path").Advise("say in which folder the pool shall be: \"path\"")
	}
	return c, nil
}

// CreateOn makes a pool in an empty file system and leaves it closed. A place that has anything in it is refused (Exist), except what an
// interrupted CreateOn left.
func CreateOn(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID, chunking holdfast.Chunking) error {
	names, err := fs.List(".")
	if err != nil {
		return classify("create pool", err)
	}
	for _, n := range names {
		switch n {
		case superblockCopy, stagingDir, "lost+found":
		default:
			return holdfast.Errorf(holdfast.Exist, "create pool", "the place is not empty: it holds %q", n).Advise("choose an empty folder")
		}
	}
	s, err := newSuperblock(id, chunking, clockOf(env).Now())
	if err != nil {
		return err
	}
	m := newFolder(fs)
	for _, dir := range []string{setsDir, containersDir, stagingDir} {
		if err := m.mkdir(dir); err != nil {
			return err
		}
	}
	if err := m.sweepStaging(); err != nil {
		return err
	}
	if err := writeSuperblock(m, s); err != nil {
		return err
	}
	return ctx.Err()
}

// OpenOn opens the pool in a file system. It fails with Busy while another process has it open, and with Invalid if the pool
// there is another one.
func OpenOn(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID) (*Pool, error) {
	m := newFolder(fs)
	s, err := readSuperblock(m)
	if err != nil {
		return nil, err
	}
	if s.Pool != id {
		return nil, holdfast.Errorf(holdfast.Invalid, "open pool", "the pool here is %s, not %s", s.Pool, id)
	}
	lock, err := fs.Lock("lock")
	if err != nil {
		return nil, classify("open pool", err)
	}
	p := newPool(env, m, s)
	p.closers = append(p.closers, lock)
	err = m.sweepStaging()
	if err == nil {
		p.st = openState(fs, p.listener)
		p.closers = append(p.closers, p.st)
		err = p.load(ctx)
	}
	if err != nil {
		_ = p.release() // the first error is the one that counts
		return nil, err
	}
	return p, nil
}

func clockOf(env pools.Env) clock.Clock {
	if env.Clock == nil {
		return clock.System
	}
	return env.Clock
}
