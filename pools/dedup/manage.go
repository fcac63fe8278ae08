package dedup

import (
	"context"
	"encoding/json"
	"path/filepath"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

// lockName is the file whose lock keeps other processes out of a pool's folder.
const lockName = "lock"

// identify implements pools.Driver for folders.
func identify(ctx context.Context, _ pools.Env, config json.RawMessage) (holdfast.PoolID, error) {
	var none holdfast.PoolID
	c, err := readConfig(config)
	if err != nil {
		return none, err
	}
	if len(c.Paths) > 0 {
		return identifyStriped(ctx, c)
	}
	f, err := fsys.NewOS(c.Path)
	if err != nil {
		return none, classify("identify pool", err)
	}
	look, err := dirstore.Open(layout{f}, dirstore.Options{ReadOnly: true})
	if err != nil {
		return none, err
	}
	return PoolAt(ctx, look, poolKind)
}

// destroy implements pools.Driver for folders. The superblock's copy goes last: as long as anything is left, the pool can be recognised. The
// keyring goes first: without it what is left of an encrypted pool is noise.
func destroy(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) error {
	if c, err := readConfig(config); err == nil && len(c.Paths) > 0 {
		return destroyStriped(ctx, id, c)
	}
	have, err := identify(ctx, env, config)
	if err != nil {
		return err
	}
	if have != id {
		return holdfast.Errorf(holdfast.Invalid, "destroy pool", "the pool here is %s, not %s", have, id)
	}
	c, err := readConfig(config)
	if err != nil {
		return err
	}
	f, err := fsys.NewOS(c.Path)
	if err != nil {
		return classify("destroy pool", err)
	}
	lock, err := f.Lock(lockName)
	if err != nil {
		return classify("destroy pool", err)
	}
	for _, name := range []string{keysDir, setsDir, containersDir, indexDir, folderStaging, folderOwner, folderSuperblock, folderCopy} {
		if err = pools.RemoveTree(f, name); err != nil {
			break
		}
	}
	if cerr := lock.Close(); err == nil && cerr != nil {
		err = classify("destroy pool", cerr)
	}
	if err == nil {
		err = pools.RemoveTree(f, lockName)
	}
	if err != nil {
		return err
	}
	return dropFolder(c.Path)
}

// dropFolder removes a folder that is empty now.
func dropFolder(dir string) error {
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
	if len(c.Paths) > 0 {
		return scratchStriped(c, name)
	}
	c.Path = pools.ScratchFolder(c.Path, name)
	return encodeConfig(c)
}

// replacePath implements pools.Driver: the folder lies at to now.
func replacePath(config json.RawMessage, from, to string) (json.RawMessage, error) {
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	if len(c.Paths) > 0 {
		return replaceStriped(c, from, to)
	}
	if c.Path != from {
		return nil, holdfast.Errorf(holdfast.NotExist, "replace path", "the pool has no path %s", from).Advise("'holdfast pool show NAME' says where it is")
	}
	c.Path = to
	return encodeConfig(c)
}

func encodeConfig(c Config) (json.RawMessage, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "encode pool config", "%w", err)
	}
	return raw, nil
}
