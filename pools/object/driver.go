package object

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/dedup"
)

const kind = "object"

// How reads are cut: a request costs money and a round trip, so they are larger and more at a time than on disks.
var shape = dedup.Shape{Readers: 8, Join: 8 << 20, Gap: 1 << 20}

// Driver returns the driver of pools in buckets.
func Driver() pools.Driver {
	return pools.Driver{
		Kind: kind, Create: create, Identify: identify, Redact: Redact, Destroy: destroy, Scratch: scratch, ReplacePath: replacePath,
		Open: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (pools.Pool, error) {
			p, err := open(ctx, env, id, config)
			if err != nil {
				return nil, err // not p: a nil *Pool is not a nil pools.Pool
			}
			return p, nil
		}}
}

// create implements pools.Driver.
func create(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (err error) {
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
	pl, err := reach(ctx, env, c, true)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := pl.close(); err == nil {
			err = cerr
		}
	}()
	for _, m := range pl.members {
		if m.err != nil {
			return m.err
		}
		if err := pl.free(ctx, m); err != nil {
			return err
		}
	}
	if err := pl.claim(ctx, id, ""); err != nil {
		return err
	}
	if err := pl.clear(ctx); err != nil {
		return err
	}
	store, err := pl.open(ctx, true, false)
	if err != nil {
		return err
	}
	return dedup.CreateStore(ctx, pl.env, store, id, dedup.CreateOptions{Kind: kind, Chunking: chunking, Ignore: []string{leaseName}, Sealing: sealing})
}

const (
	superblock     = "superblock"
	superblockCopy = "superblock.copy"
)

// free refuses a bucket where something is, and one whose server does not obey conditions.
func (p *place) free(ctx context.Context, m *member) error {
	names, err := p.retry(m).List(ctx, "")
	if err != nil {
		return err
	}
	for _, n := range names {
		switch {
		case n == superblock:
			return holdfast.Errorf(holdfast.Exist, "create pool", "there is a pool here already").Advise("import it, or choose another bucket or prefix")
		case n != leaseName && !leftover(n):
			return holdfast.Errorf(holdfast.Exist, "create pool", "the place is not empty: it holds %q", n).Advise("choose another bucket or prefix")
		}
	}
	return openPolicy.Do(ctx, p.env.Clock, func() error { return m.s.CheckConditions(ctx) })
}

// leftover reports that an object may be what an interrupted create left.
func leftover(n string) bool {
	return n == superblockCopy || blob.In(n, "scratch") || blob.In(n, "keys") || blob.In(n, ".stripe")
}

// clear removes what an interrupted create left: its stripe is not this one's.
func (p *place) clear(ctx context.Context) error {
	for _, m := range p.live() {
		names, err := p.retry(m).List(ctx, "")
		if err != nil {
			return err
		}
		for _, n := range names {
			if leftover(n) {
				if err := p.store(m).Remove(ctx, n); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// at returns the id of the pool at a place, without the lease and without changing anything.
func (p *place) at(ctx context.Context) (holdfast.PoolID, error) {
	store, err := p.open(ctx, false, true)
	if err != nil {
		return holdfast.PoolID{}, err
	}
	return dedup.PoolAt(ctx, store, kind)
}

// identify implements pools.Driver.
func identify(ctx context.Context, env pools.Env, config json.RawMessage) (holdfast.PoolID, error) {
	c, err := readConfig(config)
	if err != nil {
		return holdfast.PoolID{}, err
	}
	pl, err := reach(ctx, env, c, false)
	if err != nil {
		return holdfast.PoolID{}, err
	}
	id, err := pl.at(ctx)
	return id, errors.Join(err, pl.close())
}

func open(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (*Pool, error) {
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	sealing, err := c.Sealing(env)
	if err != nil {
		return nil, err
	}
	pl, err := own(ctx, env, id, c)
	if err != nil {
		return nil, err
	}
	store, err := pl.open(ctx, false, false)
	if err != nil {
		_ = pl.close() // the first error is the one that counts
		return nil, err
	}
	p := &Pool{pl: pl}
	o := dedup.OpenOptions{Kind: kind, Sealing: sealing, Generation: pl.generation(), Patient: true, Shape: shape, Closers: []io.Closer{pl}}
	if pl.rule.mode != "" {
		o.BeforeRecord = p.extend
	}
	if pl.locks() {
		o.HeldUntil = pl.heldUntil
	}
	if p.Pool, err = dedup.OpenStore(ctx, pl.env, store, id, o); err != nil {
		return nil, err // OpenStore has closed the place
	}
	return p, nil
}

// own reaches for a pool and takes its lease.
func own(ctx context.Context, env pools.Env, id holdfast.PoolID, c Config) (*place, error) {
	look, err := reach(ctx, env, c, false)
	if err != nil {
		return nil, err
	}
	have, err := look.at(ctx)
	if err == nil && !id.IsZero() && have != id {
		err = holdfast.Errorf(holdfast.Invalid, "open pool", "the pool here is %s, not %s", have, id)
	}
	_ = look.close() // nothing was written
	if err != nil {
		return nil, err
	}
	pl, err := reach(ctx, env, c, true)
	if err != nil {
		return nil, err
	}
	if err := pl.claim(ctx, have, c.TakeOver); err != nil {
		_ = pl.close() // the first error is the one that counts
		return nil, err
	}
	return pl, nil
}

// destroy implements pools.Driver. The superblock's copy goes last but for the lease: as long as anything is left, the pool can be recognised. The
// keyring goes first: without it what is left of an encrypted pool is noise. What is under retention stays, and is said (Immutable).
func destroy(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (err error) {
	c, err := readConfig(config)
	if err != nil {
		return err
	}
	pl, err := own(ctx, env, id, c)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := pl.close(); err == nil {
			err = cerr
		}
	}()
	for _, m := range pl.live() {
		if err := pl.wipe(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// wipe removes what the driver wrote into a bucket.
func (p *place) wipe(ctx context.Context, m *member) error {
	names, err := p.retry(m).List(ctx, "")
	if err != nil {
		return err
	}
	for _, folder := range []string{"keys/", "sets/", "containers/", "generations/", "scratch/", superblock, ".stripe/"} {
		var mine []string
		for _, n := range names {
			if strings.HasPrefix(n, folder) && n != superblockCopy {
				mine = append(mine, n)
			}
		}
		if err := each(ctx, mine, p.store(m).Remove); err != nil {
			return err
		}
	}
	if err := p.store(m).Remove(ctx, superblockCopy); err != nil {
		return err
	}
	if err := m.l.abandon(ctx); err != nil {
		return err
	}
	return nil
}

// scratch implements pools.Driver: a prefix beside the pool's.
func scratch(config json.RawMessage, name string) (json.RawMessage, error) {
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	c.Prefix = strings.Trim(strings.Trim(c.Prefix, "/")+"-scratch-"+name, "-")
	c.TakeOver, c.ObjectLock = "", "" // what is tried must be removable
	c.Encryption = dedup.Encryption{}
	return c.encode()
}

// replacePath implements pools.Driver: one bucket of a stripe.
func replacePath(config json.RawMessage, from, to string) (json.RawMessage, error) {
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	switch i := slices.Index(c.Buckets, from); {
	case i >= 0:
		c.Buckets[i] = to
	case len(c.Buckets) == 0 && c.Bucket == from:
		c.Bucket = to
	default:
		return nil, holdfast.Errorf(holdfast.NotExist, "replace path", "the pool has no bucket %s", from).Advise("'holdfast pool show NAME' says where it is")
	}
	return c.encode()
}
