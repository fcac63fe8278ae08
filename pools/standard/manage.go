package standard

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

// identify implements pools.Driver: the first path that answers says which pool it is.
func identify(ctx context.Context, _ pools.Env, config json.RawMessage) (holdfast.PoolID, error) {
	var none holdfast.PoolID
	c, err := readConfig(config)
	if err != nil {
		return none, err
	}
	var first error
	for _, pc := range c.Paths {
		id, err := poolAt(ctx, pc.Path)
		if err == nil {
			return id, nil
		}
		if first == nil || holdfast.KindOf(first) == holdfast.NotExist {
			first = err
		}
	}
	return none, first
}

func poolAt(ctx context.Context, dir string) (holdfast.PoolID, error) {
	f, err := fsys.NewOS(dir)
	if err != nil {
		return holdfast.PoolID{}, fsys.Classify("identify pool", err)
	}
	s, err := dirstore.Open(f, dirstore.Options{ReadOnly: true})
	if err != nil {
		return holdfast.PoolID{}, err
	}
	sb, err := readSuperblock(ctx, s)
	if holdfast.KindOf(err) == holdfast.NotExist {
		return holdfast.PoolID{}, holdfast.Errorf(holdfast.NotExist, "identify pool", "there is no pool in %s", dir).Advise("look whether the pool's disk is mounted")
	}
	if err != nil {
		return holdfast.PoolID{}, err
	}
	return sb.Pool, nil
}

// destroy implements pools.Driver. Each path's records go last: as long as anything is left there, it can be recognised.
func destroy(ctx context.Context, _ pools.Env, id holdfast.PoolID, config json.RawMessage) error {
	c, err := readConfig(config)
	if err != nil {
		return err
	}
	for _, pc := range c.Paths {
		have, err := poolAt(ctx, pc.Path)
		switch {
		case holdfast.KindOf(err) == holdfast.NotExist:
			continue // gone already
		case err != nil:
			return err
		case have != id:
			return holdfast.Errorf(holdfast.Invalid, "destroy pool", "the pool in %s is %s, not %s", pc.Path, have, id)
		}
		if err := destroyPath(pc.Path); err != nil {
			return err
		}
	}
	return nil
}

func destroyPath(dir string) error {
	f, err := fsys.NewOS(dir)
	if err != nil {
		return fsys.Classify("destroy pool", err)
	}
	lock, err := f.Lock(lockName)
	if err != nil {
		return fsys.Classify("destroy pool", err)
	}
	for _, name := range []string{vmsFolder, "~staging", poolName, poolCopy} {
		if err = pools.RemoveTree(f, name); err != nil {
			break
		}
	}
	if cerr := lock.Close(); err == nil && cerr != nil {
		err = fsys.Classify("destroy pool", cerr)
	}
	if err == nil {
		err = pools.RemoveTree(f, lockName)
	}
	if err != nil {
		return err
	}
	parent, err := fsys.NewOS(filepath.Dir(dir))
	if err != nil {
		return nil // the folder is a root: it stays
	}
	return pools.RemoveFolder(parent, filepath.Base(dir))
}

// scratch implements pools.Driver.
func scratch(config json.RawMessage, name string) (json.RawMessage, error) {
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	c.Forget = nil
	for i := range c.Paths {
		c.Paths[i] = PathConfig{Path: pools.ScratchFolder(c.Paths[i].Path, name)}
	}
	return encodeConfig(c)
}

// replacePath implements pools.Driver: the folder that was from lies at to now.
func replacePath(config json.RawMessage, from, to string) (json.RawMessage, error) {
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(c.Paths, func(pc PathConfig) bool { return pc.Path == from })
	if i < 0 {
		return nil, holdfast.Errorf(holdfast.NotExist, "replace path", "the pool has no path %s", from).Advise("'holdfast pool show NAME' lists its paths")
	}
	c.Paths[i].Path = to
	raw, err := encodeConfig(c)
	if err != nil {
		return nil, err
	}
	_, err = readConfig(raw)
	return raw, err
}

// addPath implements pools.Driver.
func addPath(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage, path string) (json.RawMessage, error) {
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	added := PathConfig{Path: path}
	c.Paths = append(c.Paths, added)
	raw, err := encodeConfig(c)
	if err == nil {
		_, err = readConfig(raw) // a path that is there already
	}
	if err == nil {
		err = AddPath(ctx, env, id, config, added)
	}
	return raw, err
}

func encodeConfig(c Config) (json.RawMessage, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "encode pool config", "%w", err)
	}
	return raw, nil
}
