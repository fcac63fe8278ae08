package dedup

import (
	"context"
	"encoding/json"
	"io"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

// Config is the driver's configuration.
type Config struct {
	Path     string   `json:"path,omitempty"`     // the pool's folder, absolute
	Paths    []string `json:"paths,omitempty"`    // instead of Path, with Stripe: folders on different disks
	Stripe   string   `json:"stripe,omitempty"`   // "4+2": data and parity over the paths
	Chunking string   `json:"chunking,omitempty"` // as holdfast.ParseChunking reads it; only Create looks at it
	Parity   bool     `json:"parity,omitempty"`   // keep a Reed-Solomon side-car beside every container; may be changed at any time
	Encryption
}

// Driver returns the driver of dedup pools in folders.
func Driver() pools.Driver {
	return pools.Driver{
		Kind:     poolKind,
		Identify: identify,
		Destroy:  destroy,
		Scratch:  scratch,

		ReplacePath: replacePath,
		Create: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) error {
			c, err := readConfig(config)
			if err != nil {
				return err
			}
			chunking, err := holdfast.ParseChunking(c.Chunking)
			if err != nil {
				return err
			}
			sealing, err := c.Sealing(env)
			if err != nil {
				return err
			}
			if len(c.Paths) > 0 {
				return createStriped(ctx, env, id, c, chunking, sealing)
			}
			fs, err := fsys.CreateOS(c.Path)
			if err != nil {
				return classify("create pool", err)
			}
			return CreateSealedOn(ctx, env, fs, id, chunking, sealing)
		},
		Open: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (pools.Pool, error) {
			c, err := readConfig(config)
			if err != nil {
				return nil, err
			}
			sealing, err := c.Sealing(env)
			if err != nil {
				return nil, err
			}
			if len(c.Paths) > 0 {
				p, err := openStriped(ctx, env, id, c, sealing)
				if err != nil {
					return nil, err // not p: a nil *StripedPool is not a nil pools.Pool
				}
				return p, nil
			}
			fs, err := fsys.NewOS(c.Path)
			if err != nil {
				return nil, classify("open pool", err)
			}
			p, err := openFolder(ctx, env, fs, id, OpenOptions{Sealing: sealing, Parity: c.Parity})
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
	_, err := c.striped()
	return c, err
}

// CreateOn makes a pool in an empty file system and leaves it closed. A place that has anything in it is refused (Exist), except what an
// interrupted CreateOn left.
func CreateOn(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID, chunking holdfast.Chunking) error {
	return CreateSealedOn(ctx, env, fs, id, chunking, Sealing{})
}

// CreateSealedOn is CreateOn for a pool that is encrypted as sealing says.
func CreateSealedOn(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID, chunking holdfast.Chunking, sealing Sealing) error {
	names, err := fs.List(".")
	if err != nil {
		return classify("create pool", err)
	}
	for _, n := range names {
		switch n {
		case folderCopy, setsDir, containersDir, keysDir, folderStaging, "lost+found":
		default:
			return holdfast.Errorf(holdfast.Exist, "create pool", "the place is not empty: it holds %q", n).Advise("choose an empty folder")
		}
	}
	s, err := newSuperblock(poolKind, id, chunking, clockOf(env).Now())
	if err != nil {
		return err
	}
	for _, dir := range []string{setsDir, containersDir} {
		if err := fs.MkdirAll(dir); err != nil {
			return classify("create pool", err)
		}
		names, err := fs.List(dir)
		if err != nil {
			return classify("create pool", err)
		}
		if len(names) > 0 {
			return holdfast.Errorf(holdfast.Exist, "create pool", "the place is not empty: it holds %q", dir+"/"+names[0]).Advise("choose an empty folder")
		}
	}
	m, err := dirstore.Open(layout{fs}, dirstore.Options{})
	if err != nil {
		return err
	}
	return writePool(ctx, env, m, s, sealing)
}

// OpenOn opens the pool in a file system. It fails with Busy while another process has it open, and with Invalid if the pool
// there is another one.
func OpenOn(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID) (*Pool, error) {
	return OpenSealedOn(ctx, env, fs, id, Sealing{})
}

// OpenSealedOn is OpenOn for a pool that is encrypted. A pool that is not is refused, so that nothing is written in the clear by mistake.
func OpenSealedOn(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID, sealing Sealing) (*Pool, error) {
	return openFolder(ctx, env, fs, id, OpenOptions{Sealing: sealing})
}

// OpenParityOn is OpenOn with a Reed-Solomon side-car beside every container.
func OpenParityOn(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID) (*Pool, error) {
	return openFolder(ctx, env, fs, id, OpenOptions{Parity: true})
}

// openFolder opens a pool in a folder.
func openFolder(ctx context.Context, env pools.Env, fs fsys.FS, id holdfast.PoolID, o OpenOptions) (*Pool, error) {
	look, err := dirstore.Open(layout{fs}, dirstore.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	if _, err := readSuperblock(ctx, look, poolKind); err != nil {
		return nil, err // before a lock is made in a folder that is no pool
	}
	lock, err := fs.Lock(lockName)
	if err != nil {
		return nil, classify("open pool", err)
	}
	m, err := dirstore.Open(layout{fs}, dirstore.Options{})
	if err != nil {
		_ = lock.Close() // the first error is the one that counts
		return nil, err
	}
	o.Index, o.Closers, o.ownerFile = fs, []io.Closer{lock}, true
	return OpenStore(ctx, env, m, id, o)
}
